"""The report of the demo: what each depth costs and brings, side by side with the dense model."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from app.models.measured_speedups import NOT_MEASURED
from app.terminal import print_json
from pruning.models.names import split_int8


@dataclass(frozen=True)
class ModelFigures:
    """The measurements of one model: medians over the repeats, and one completion."""

    model: dict[str, Any]  # as GET /models describes it, with the speed-up that counts
    ttft_s: float
    tpot_s: float
    tokens_per_s: float
    completion: str
    reason: str | None = None  # of the verdict about its speed; None for the dense model


def figures_of(
    model: dict[str, Any], outputs: Sequence[dict[str, Any]], reason: str | None = None
) -> ModelFigures:
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
        reason=reason,
    )


def print_report(
    job: dict[str, Any],
    advice: dict[str, Any],
    models: Sequence[ModelFigures],
    prompt: str,
    *,
    as_json: bool,
) -> None:
    """``models``: the dense one first. ``prompt`` is that of the completions."""
    if as_json:
        dense = models[0]
        sides = [{**asdict(side), "speedup": _speedups(dense, side)} for side in models]
        print_json({"job": job, "advice": advice, "models": sides})
        return
    console = Console(highlight=False)
    print_table(models, advice, console)
    for side in models:
        text = f"[dim]{escape(prompt)}[/]{escape(side.completion)}"
        console.print(Panel(text, title=escape(side.model["id"]), title_align="left"))


def print_table(models: Sequence[ModelFigures], advice: dict[str, Any], console: Console) -> None:
    """The table, and what its rows mean. The advice has the quality of int8 weights."""
    console.print(_table(models, advice))
    for text in _explained(models[1:]):
        console.print(text, markup=False)


def _speedups(dense: ModelFigures, side: ModelFigures) -> dict[str, Any]:
    """Those that the advice counts with: the ratio of the times above has no interval."""
    return {
        "measured": side.model["measured_speedup"],
        "predicted": side.model["predicted_speedup"],
        "ideal": dense.model["num_blocks"] / side.model["num_blocks"],
    }


def _table(models: Sequence[ModelFigures], advice: dict[str, Any]) -> Table:
    dense, *others = models
    table = Table(title="Cost and benefit of pruning and of int8 weights")
    for heading in ("", *map(_heading, models)):
        table.add_column(heading, justify="right" if heading else "left")
    for name, text in _ROWS:
        table.add_row(name, *map(text, models))
    table.add_section()
    columns = [_speedup_cells(_speedups(dense, side)) for side in others]
    for name, *texts in zip(_SPEEDUPS, *columns, strict=True):
        table.add_row(name, "", *texts)
    table.add_section()
    for row in _perplexities(others, advice):
        table.add_row(*row)
    return table


def _heading(side: ModelFigures) -> str:
    num_removed = len(side.model["removed_blocks"])
    if split_int8(side.model["id"])[1]:
        return "int8"
    return f"{num_removed} removed" if num_removed else "dense"


_ROWS: Sequence[tuple[str, Callable[[ModelFigures], str]]] = (
    ("transformer blocks", lambda side: f"{side.model['num_blocks']}"),
    ("parameters", lambda side: f"{side.model['num_parameters']:,}"),
    ("time to first token", lambda side: f"{side.ttft_s * 1e3:.0f} ms"),
    ("time per output token", lambda side: f"{side.tpot_s * 1e3:.1f} ms"),
    ("tokens per second", lambda side: f"{side.tokens_per_s:.1f}"),
)


_SPEEDUPS = (
    *("speed-up, measured", "  95 % interval"),
    *("speed-up, predicted", "speed-up, ideal (blocks)"),
)


def _speedup_cells(speedups: dict[str, Any]) -> Iterator[str]:
    """Those of ``_SPEEDUPS``."""
    measured, predicted = speedups["measured"], speedups["predicted"]
    yield NOT_MEASURED if measured is None else f"[bold]{measured['ratio']:.2f}×[/]"
    is_known = measured is not None and measured["low"] is not None
    yield f"{measured['low']:.2f} to {measured['high']:.2f}" if is_known else ""
    yield "" if predicted is None else f"{predicted:.2f}×"
    yield f"{speedups['ideal']:.2f}×"


def _perplexities(
    others: Sequence[ModelFigures], advice: dict[str, Any]
) -> Iterator[tuple[str, ...]]:
    """Two rows for each domain: as it is served, and without the repair."""
    ratios = {each["name"]: each["ratios"] for each in advice["depths"]}
    for number, domain in enumerate(others[-1].model["domains"]):
        name, dense = domain["domain"], domain["dense_perplexity"]
        served, unrepaired = [f"perplexity, {name}", f"{dense:.1f}"], ["  unrepaired", ""]
        for side in others:
            if domains := side.model["domains"]:
                served.append(_with_ratio(domains[number]["perplexity"], dense))
                unrepaired.append(_with_ratio(domains[number]["raw_perplexity"], dense))
            else:
                ratio = ratios.get(side.model["id"], {}).get(name)
                served.append(f"({ratio['value']:.2f}×)" if ratio else NOT_MEASURED)
                unrepaired.append("")
        yield tuple(served)
        yield tuple(unrepaired)


def _with_ratio(perplexity: float, dense: float) -> str:
    return f"{perplexity:.1f} ({perplexity / dense:.2f}×)"


def _explained(pruned: Sequence[ModelFigures]) -> Iterator[str]:
    for domain in pruned[-1].model["domains"]:
        yield f"{domain['domain']}: {domain['text']}"
    yield "in parentheses: ratio to the dense model"
    yield "times: medians over several prompts; the models generate in turn"
    yield (
        "predicted: from the measured times of the blocks; ideal: blocks of the dense "
        "model / blocks of the pruned model"
    )
    for side in pruned:
        if side.model["measured_speedup"] is None:
            yield f"{_heading(side)}: the speed-up is {NOT_MEASURED}: {side.reason}"
