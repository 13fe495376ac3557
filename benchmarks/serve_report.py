"""The ratios of a serving benchmark with their targets."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

AT_LEAST, AT_MOST = "at least", "at most"
_MIN_HITS = 0.95  # of the tokens that could be reused


def _of_traffic(part: str, *, has_hits: bool = True) -> Mapping[str, tuple[str, float]]:
    """Targets of a part with traffic like that of users."""
    targets = {
        f"{part}_vs_vllm": (AT_LEAST, 1.0),  # requests per second
        f"{part}_ttft_vs_vllm": (AT_MOST, 1.0),  # median
        f"{part}_worst_ttft_vs_vllm": (AT_MOST, 1.0),
    }
    return {**targets, f"{part}_hits": (AT_LEAST, _MIN_HITS)} if has_hits else targets


TARGETS: Mapping[str, tuple[str, float]] = MappingProxyType(
    {
        "offline_vs_generate": (AT_LEAST, 1.6),
        "offline_mixed_vs_static": (AT_LEAST, 2.2),
        "batch1_vs_generate": (AT_LEAST, 1.6),
        "batch1_vs_floor": (AT_MOST, 1.5),
        "http_vs_vllm": (AT_LEAST, 1.0),  # with the number of clients where it is least
        "http_vs_llama_cpp": (AT_LEAST, 1.0),  # likewise
        **_of_traffic("prefix"),
        **_of_traffic("chat"),
        **_of_traffic("long", has_hits=False),
    }
)


def all_ratios(ratios: Mapping[str, float | None]) -> dict[str, float | None]:
    """All ratios of ``TARGETS``. None if it was not measured."""
    values = {name: ratios.get(name) for name in TARGETS}
    return {name: None if value is None else round(value, 4) for name, value in values.items()}


def is_met(value: float, wanted: tuple[str, float]) -> bool:
    sense, limit = wanted
    return value >= limit if sense == AT_LEAST else value <= limit


def show(report: Mapping[str, Any], tables: str, console: Console) -> None:
    """Print the Markdown tables and the ratios."""
    if tables:
        console.print(Markdown(tables))
    console.print(_ratios(report["ratios"]))


def _ratios(ratios: Mapping[str, float | None]) -> Table:
    table = Table("ratio", "measured", "target", "met")
    for name, value in ratios.items():
        sense, limit = TARGETS[name]
        table.add_row(
            name,
            "-" if value is None else f"{value:.3f}",
            f"{sense} {limit:.3g}",
            "" if value is None else "yes" if is_met(value, TARGETS[name]) else "no",
        )
    return table
