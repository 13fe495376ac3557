"""The report of the demo: what each depth costs and brings, side by side with the dense model."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from app.terminal import print_json


@dataclass(frozen=True)
class ModelFigures:
    """The measurements of one model: medians over the repeats, and one completion."""

    model: dict[str, Any]  # as GET /models describes it
    ttft_s: float
    tpot_s: float
    tokens_per_s: float
    completion: str


def figures_of(model: dict[str, Any], outputs: Sequence[dict[str, Any]]) -> ModelFigures:
    """``outputs``: one for each prompt. The prompts of a repeat run as one batch."""
    repeats = list(zip(*(output["timings"] for output in outputs), strict=True))
    num_tokens = sum(output["completion_tokens"] for output in outputs)
    return ModelFigures(
        model=model,
        ttft_s=median(fmean(times["ttft_s"] for times in repeat) for repeat in repeats),
        tpot_s=median(fmean(times["tpot_s"] for times in repeat) for repeat in repeats),
        tokens_per_s=median(
            num_tokens / max(times["e2e_s"] for times in repeat) for repeat in repeats
        ),
        completion=outputs[0]["text"],
    )


def print_report(
    job: dict[str, Any], models: Sequence[ModelFigures], prompt: str, *, as_json: bool
) -> None:
    """``models``: the dense one first. ``prompt`` is that of the completions."""
    if as_json:
        dense = models[0]
        sides = [{**asdict(side), "speedup": _speedup(dense, side)} for side in models]
        print_json({"job": job, "models": sides})
        return
    console = Console(highlight=False)
    console.print(_table(models))
    for text in _explained(models[-1].model):
        console.print(text, markup=False)
    for side in models:
        text = f"[dim]{escape(prompt)}[/]{escape(side.completion)}"
        console.print(Panel(text, title=escape(side.model["id"]), title_align="left"))


def _speedup(dense: ModelFigures, side: ModelFigures) -> dict[str, float]:
    return {
        "measured": dense.tpot_s / side.tpot_s,
        "ideal": dense.model["num_blocks"] / side.model["num_blocks"],
    }


def _table(models: Sequence[ModelFigures]) -> Table:
    dense, *pruned = models
    table = Table(title="What pruning bought, and what it cost")
    table.add_column("")
    table.add_column("dense", justify="right")
    for side in pruned:
        table.add_column(f"{len(side.model['removed_blocks'])} removed", justify="right")
    for name, text in _ROWS:
        table.add_row(name, *map(text, models))
    table.add_section()
    for kind, name in (("measured", "speed-up, measured"), ("ideal", "speed-up, ideal (blocks)")):
        gains = (f"[bold]{_speedup(dense, side)[kind]:.2f}×[/]" for side in pruned)
        table.add_row(name, "", *gains)
    table.add_section()
    for row in _perplexities(pruned):
        table.add_row(*row)
    return table


_ROWS: Sequence[tuple[str, Callable[[ModelFigures], str]]] = (
    ("transformer blocks", lambda side: f"{side.model['num_blocks']}"),
    ("parameters", lambda side: f"{side.model['num_parameters']:,}"),
    ("time to first token", lambda side: f"{side.ttft_s * 1e3:.0f} ms"),
    ("time per output token", lambda side: f"{side.tpot_s * 1e3:.1f} ms"),
    ("tokens per second", lambda side: f"{side.tokens_per_s:.1f}"),
)


def _perplexities(pruned: Sequence[ModelFigures]) -> Iterator[tuple[str, ...]]:
    """Two rows for each domain: as it is served, and without the repair."""
    for domains in zip(*(side.model["domains"] for side in pruned), strict=True):
        dense = domains[0]["dense_perplexity"]
        for name, field in (("perplexity, {}", "perplexity"), ("  unrepaired", "raw_perplexity")):
            cells = (f"{one[field]:.1f} ({one[field] / dense:.2f}×)" for one in domains)
            is_served = field == "perplexity"
            first = name.format(domains[0]["domain"]), f"{dense:.1f}" if is_served else ""
            yield (*first, *cells)


def _explained(model: dict[str, Any]) -> Iterator[str]:
    for domain in model["domains"]:
        yield f"{domain['domain']}: {domain['text']}"
    yield "in parentheses: times the perplexity of the dense model"
    yield "times: medians over requests of several prompts, the models in turn"
