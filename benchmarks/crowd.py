"""How many requests run at once where keys and values have room for a number of tokens.

A long prompt comes beside short ones, and all places are taken by conversations. Whole outputs are
made, so that sequences which lose their pages for lack of others are counted too.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from types import MappingProxyType
from typing import Annotated

import typer
from rich.console import Console

from app.engine.autotuning import Autotuner
from app.engine.cache.paged_cache import unit_shape
from app.engine.cache.pages import pages_of
from app.engine.engine import Engine
from app.engine.kernels.compiled.openmp import keep_compiled_in
from app.engine.scheduling.scheduler import EngineLimits
from app.engine.scheduling.sequence import TokenEvent
from app.engine.variant import Variant, make_variant
from benchmarks.model import model_store
from benchmarks.offline import engine_requests
from benchmarks.reports import facts, write
from benchmarks.workload import Prompts, SampleRequest
from pruning.config import Settings
from pruning.models.blocks import num_blocks
from pruning.models.demo_model import NAME
from pruning.models.store import set_up_torch


@dataclass(frozen=True)
class Group:
    """Requests of the same lengths in tokens."""

    number: int
    prompt_len: int
    output_len: int


CROWDS: Mapping[str, Sequence[Group]] = MappingProxyType(
    {
        "a long one beside short ones": (Group(1, 8000, 128), Group(63, 64, 128)),
        "conversations": (Group(64, 200, 1024),),
    }
)


@dataclass(frozen=True)
class Found:
    """What was seen of one crowd."""

    requests: int
    most_running: int  # sequences at once
    all_running_s: float | None  # from the start; None if some never ran beside all others
    preemptions: int
    whole_outputs: int
    seconds: float


def main(
    out: Annotated[Path, typer.Option(help="Where to write the JSON.")],
    model: Annotated[str, typer.Option(help="A dense model, by name or directory.")] = NAME,
    tokens: Annotated[int, typer.Option(min=1, help="That the cache has room for.")] = 65_536,
    seed: int = 0,
) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    settings, store = Settings(), model_store(model)
    set_up_torch(settings.threads)
    keep_compiled_in(settings.data_dir)
    loaded = store.load(model, dtype="bfloat16", device="cpu")
    dense, prompts = make_variant(model, model, loaded.model), Prompts(loaded.tokenizer, seed)
    crowds = {}
    for name, groups in CROWDS.items():
        crowds[name] = asdict(watched(dense, requests_of(prompts, groups), tokens))
        Console(stderr=True, highlight=False).print(name, crowds[name])
    report = {
        "crowds": crowds,
        "tokens": tokens,
        **facts("crowd"),
    }
    write(report, out)


def requests_of(prompts: Prompts, groups: Sequence[Group]) -> list[SampleRequest]:
    """The requests of all groups, in their order."""
    return [
        request
        for group in groups
        for request in prompts.uniform(group.number, group.prompt_len, group.output_len)
    ]


def watched(
    variant: Variant,
    samples: Sequence[SampleRequest],
    num_tokens: int,
    tuner: Autotuner | None = None,
) -> Found:
    """Run these requests, all of which come at the start, with room for so many tokens."""
    limits = EngineLimits(kv_cache_bytes=_bytes_for(variant, num_tokens))
    engine = Engine(limits, tuner=tuner or Autotuner())
    engine.kernels.finish(variant)
    for request in engine_requests(variant, samples):
        engine.add(request)
    began_s, most, all_s = perf_counter(), 0, None
    outputs: dict[str, int] = {}
    for event in _events(engine):
        outputs[event.request_id] = outputs.get(event.request_id, 0) + 1
        most = max(most, running := engine.stats().num_running)
        if all_s is None and running == len(samples):
            all_s = round(perf_counter() - began_s, 3)
    counts = engine.stats().cache_counts.values()
    return Found(
        requests=len(samples),
        most_running=most,
        all_running_s=all_s,
        preemptions=sum(each.num_preemptions for each in counts),
        whole_outputs=sum(
            outputs.get(str(number), 0) == each.num_new_tokens
            for number, each in enumerate(samples)
        ),
        seconds=round(perf_counter() - began_s, 3),
    )


def _events(engine: Engine) -> Iterator[TokenEvent]:
    while engine.has_work:
        yield from engine.step()


def _bytes_for(variant: Variant, num_tokens: int) -> int:
    """The memory for whole pages of so many tokens, and for the unit of no page."""
    num_units = pages_of(num_tokens) * num_blocks(variant.model) + 1
    return num_units * unit_shape(variant.model).num_bytes


if __name__ == "__main__":
    typer.run(main)
