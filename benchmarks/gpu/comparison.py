"""The figures that were measured on a card beside those that were predicted for it."""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from benchmarks.gpu.cards import card_named
from benchmarks.gpu.plan import GpuPlan
from benchmarks.gpu.prediction import in_words, predicted

Part = Mapping[str, Any]
_Read = Callable[[Part], Iterator[tuple[str, float]]]  # names of figures, and their values


def comparison(report: Mapping[str, Any], plan: GpuPlan) -> list[str]:
    """A Markdown table of the parts that were run; empty on a card that is not known."""
    gpus: list[str] = report["machine"]["gpus"]
    card = card_named(gpus[0]) if gpus else None
    if card is None:
        return []
    found = measured(report["parts"])
    lines = ["| part | figure | predicted | measured | over |", "|---|---|--:|--:|--:|"]
    for figure in predicted(plan, card):
        if (value := found.get(figure.key)) is not None:
            words = f"{in_words(figure.value)} | {in_words(value)} | {value / figure.value:.2f}"
            lines.append(f"| {figure.part} | {figure.name}, {figure.unit} | {words} |")
    return lines


def measured(parts: Mapping[str, Part]) -> dict[tuple[str, str], float]:
    """The figures of a report by part and name, as they are predicted."""
    return {
        (name, figure): value
        for name, read in _READS.items()
        if name in parts
        for figure, value in read(parts[name])
    }


def _steps(part: Part) -> Iterator[tuple[str, float]]:
    for row in part["rows"]:
        yield "floor", row["floor_ms"]
        yield f"{row['sequences']} sequences with graphs", row["graphs_ms"]
        yield f"{row['sequences']} sequences without", row["one kernel at a time_ms"]


def _generate(part: Part) -> Iterator[tuple[str, float]]:
    yield "engine", part["engine_tokens_per_s"]


def _pruned(part: Part) -> Iterator[tuple[str, float]]:
    yield "generation, pruned over dense", part["generation"]
    yield "prompt, dense over pruned", part["prompt"]


def _search(part: Part) -> Iterator[tuple[str, float]]:
    for name, found in part.items():
        yield f"{name}, first round", found["round_s"]
        yield f"{name}, a search at most", found["search_s"] / 60


def _int8(part: Part) -> Iterator[tuple[str, float]]:
    for row in part["rows"]:
        yield f"{row['sequences']} sequences", row["int8_ms"]


def _stream(part: Part) -> Iterator[tuple[str, float]]:
    yield "load of a block", part["load_s"]
    yield "pass of all windows", part["pass_s"]
    yield f"round of {part['whole_depth']} blocks", part["whole_round_s"] / 60


def _heal(part: Part) -> Iterator[tuple[str, float]]:
    yield "training", part["tokens_per_s"]


_READS: Mapping[str, _Read] = MappingProxyType(
    {
        "steps": _steps,
        "generate": _generate,
        "pruned": _pruned,
        "search": _search,
        "int8": _int8,
        "stream": _stream,
        "heal": _heal,
    }
)
