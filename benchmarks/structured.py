"""What a response format costs: decode steps of a batch with one and without, in alternating turns.

Both batches have the same prompts, seeds and number of tokens, in one process. The arrays that the
schemas ask for are longer than what is measured, so that no sequence ends.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from app.engine.grammar import Grammar, grammar_source, grammar_tokens
from app.engine.sampling.sampling import upper_bounds
from app.engine.scheduling.sequence import Request, ResponseFormat
from app.engine.variant import Variant, make_variant
from benchmarks.model import model_store
from benchmarks.offline import engine_requests
from benchmarks.reports import facts, write
from benchmarks.steady import SteadyBatch, steady_output_len, steps_in_turn
from benchmarks.workload import Prompts, SampleRequest
from pruning.config import Settings
from pruning.models.store import LoadedModel, set_up_torch

_MAX_RATIO = 1.1
_NUM_ITEMS = 100_000  # items
_RECORD: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "city": {"enum": ["Paris", "London", "Rome", "Berlin"]},
        "tags": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        "born": {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"},
    },
    "required": ["name", "age", "city", "tags", "born"],
    "additionalProperties": False,
}
_ITEMS: Mapping[str, Mapping[str, Any]] = {"records": _RECORD, "any JSON": {}}


def main(
    out: Annotated[Path, typer.Option(help="Where to write the JSON; a table goes beside it.")],
    model: Annotated[str, typer.Option(help="A dense model, by name or directory.")] = (
        "smollm2-135m"
    ),
    sequences: Annotated[int, typer.Option(min=1, help="Sequences in a step.")] = 32,
    turns: Annotated[int, typer.Option(min=2, help="Turns of each side.")] = 10,
    steps: Annotated[int, typer.Option(min=1, help="Decode steps of a turn.")] = 4,
    prompt_len: int = 32,
    seed: int = 0,
) -> None:
    """Measure decode steps with a response format against those without one."""
    out.parent.mkdir(parents=True, exist_ok=True)  # fails before the measurement, not after it
    settings = Settings()
    loaded = model_store(model).load(model, device=settings.device)
    set_up_torch(settings.threads)
    variant = make_variant(model, model, loaded.model)
    output_len = steady_output_len(sequences, (turns + 1) * steps)
    requests = Prompts(loaded.tokenizer, seed).uniform(sequences, prompt_len, output_len)
    found = [_measured(loaded, variant, requests, name, (turns, steps)) for name in _ITEMS]
    report = {
        "schemas": found,
        "passes": all(one["ratio"] <= _MAX_RATIO for one in found),
        "sequences": sequences,
        "model": model,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        **facts("structured"),
    }
    text = markdown(report)
    write(report, out, text)
    Console().print(text, markup=False, soft_wrap=True)


def _measured(
    loaded: LoadedModel,
    variant: Variant,
    requests: Sequence[SampleRequest],
    name: str,
    sizes: tuple[int, int],
) -> dict[str, Any]:
    """Seconds of decode steps: of each turn the median, and the ratio of adjacent turns."""
    turns, steps = sizes
    schema = json.dumps({"type": "array", "items": _ITEMS[name], "minItems": _NUM_ITEMS})
    began_s = time.perf_counter()
    tokenizer = loaded.tokenizer.backend_tokenizer.to_str()
    tokens = grammar_tokens(tokenizer, variant.vocab_size, variant.eos_token_ids)
    with_tokens_s = time.perf_counter()
    grammar = Grammar(grammar_source(schema), tokens)
    compiled_s = time.perf_counter()
    sides = {
        "by schema": SteadyBatch(variant, requests, make_requests=partial(_sampled, grammar)),
        "free": SteadyBatch(variant, requests, make_requests=partial(_sampled, None)),
    }
    return {
        "items": name,
        **steps_in_turn(sides, turns, steps),
        "first_masks_s": _first_masks_s(grammar, variant, len(requests)),
        "tokens_s": with_tokens_s - began_s,
        "compile_s": compiled_s - with_tokens_s,
    }


def _sampled(
    grammar: Grammar | None, variant: Variant, requests: Sequence[SampleRequest]
) -> list[Request]:
    """Sampled with a seed each. Where a sequence ends is up to the schema, if there is one."""
    wanted = None if grammar is None else ResponseFormat("json_schema")
    return [
        replace(
            one,
            grammar=grammar,
            params=replace(
                one.params,
                temperature=1.0,
                seed=number,
                ignore_eos=grammar is None,
                response_format=wanted,
            ),
        )
        for number, one in enumerate(engine_requests(variant, requests))
    ]


def _first_masks_s(grammar: Grammar, variant: Variant, number: int) -> float:
    """Seconds for the first masks of a batch."""
    matchers = [grammar.matcher() for _ in range(number)]
    began_s = time.perf_counter()
    upper_bounds(matchers, variant.vocab_size, variant.model.device)
    return time.perf_counter() - began_s


def markdown(report: Mapping[str, Any]) -> str:
    lines = [
        f"# Response formats: {report['sequences']} sequences of {report['model']}",
        "",
        "| array of | free, ms a step | by schema, ms a step | ratio, at most 1.10 |",
        "|---|--:|--:|--:|",
    ]
    for one in report["schemas"]:
        own_ms, free_ms = (1e3 * seconds for seconds in one["step_s"].values())
        lines.append(f"| {one['items']} | {free_ms:.1f} | {own_ms:.1f} | {one['ratio']:.3f} |")
    lines += ["", "Once for a tokenizer, and once for each schema:", ""]
    lines += [
        f"- {one['items']}: {1e3 * one['tokens_s']:.0f} ms for the tokens, "
        f"{1e3 * one['compile_s']:.0f} ms for the schema"
        for one in report["schemas"]
    ]
    load = report["machine"]["load_average"]
    lines += ["", f"Load averages at the end: {', '.join(map(str, load))}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
