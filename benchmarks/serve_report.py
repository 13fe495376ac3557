"""The ratios of a serving benchmark with their targets, and its latencies."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

AT_LEAST, AT_MOST = "at least", "at most"
_MIN_SHARE_OF_BOUND = 0.95
_MIN_HITS = 0.95  # of the tokens that could be reused


def _of_traffic(part: str, *, has_hits: bool = True) -> Mapping[str, tuple[str, float]]:
    """Targets of a part with traffic like that of users."""
    targets = {
        f"{part}_vs_vllm": (AT_LEAST, 1.0),  # requests per second
        f"{part}_ttft_vs_vllm": (AT_MOST, 1.0),  # median
        f"{part}_worst_ttft_vs_vllm": (AT_MOST, 1.0),
    }
    return {**targets, f"{part}_hits": (AT_LEAST, _MIN_HITS)} if has_hits else targets


# None: no fixed target.
TARGETS: Mapping[str, tuple[str, float] | None] = MappingProxyType(
    {
        "offline_vs_generate": (AT_LEAST, 1.6),
        "offline_vs_continuous_batching": (AT_LEAST, 2.5),
        "offline_mixed_vs_static": (AT_LEAST, 2.2),
        "http_vs_offline": (AT_LEAST, 0.93),
        "http_vs_transformers_serve": (AT_LEAST, 2.0),
        "batch1_vs_generate": (AT_LEAST, 1.6),
        "batch1_vs_floor": (AT_MOST, 1.5),
        "pruned_speedup": None,  # 95 % of the bound
        "pruned_speedup_bound": None,
        "weights_with_ten_variants": (AT_MOST, 1.05),
        "http_vs_vllm": (AT_LEAST, 1.0),  # with the number of clients where it is least
        "http_vs_llama_cpp": (AT_LEAST, 1.0),  # likewise
        **_of_traffic("prefix"),
        **_of_traffic("chat"),
        **_of_traffic("long", has_hits=False),
    }
)


def all_ratios(found: Mapping[str, float | None]) -> dict[str, float | None]:
    """All ratios of ``TARGETS``. None if it was not measured."""
    values = {name: found.get(name) for name in TARGETS}
    return {name: None if value is None else round(value, 4) for name, value in values.items()}


def target(name: str, ratios: Mapping[str, float | None]) -> tuple[str, float] | None:
    """The target of a ratio: its direction and limit."""
    bound = ratios["pruned_speedup_bound"]
    if name == "pruned_speedup" and bound is not None:
        return AT_LEAST, _MIN_SHARE_OF_BOUND * bound
    return TARGETS[name]


def is_met(value: float, wanted: tuple[str, float]) -> bool:
    sense, limit = wanted
    return value >= limit if sense == AT_LEAST else value <= limit


def show(report: Mapping[str, Any], tables: str, console: Console) -> None:
    """Print latencies, the Markdown tables, and the ratios."""
    parts = report["parts"]
    for concurrency, sides in parts.get("http", {}).get("closed_loop", {}).items():
        console.print(_latencies(f"closed loop, {concurrency} at a time", sides))
    if "http" in parts:
        opened = dict(parts["http"]["open_loop"])
        requests_per_s = opened.pop("requests_per_s")
        console.print(_latencies(f"open loop, {requests_per_s:.2f} requests/s", opened))
    if tables:
        console.print(Markdown(tables))
    console.print(_ratios(report["ratios"]))


def _ratios(ratios: Mapping[str, float | None]) -> Table:
    table = Table("ratio", "measured", "target", "met")
    for name, value in ratios.items():
        wanted = target(name, ratios)
        table.add_row(
            name,
            "-" if value is None else f"{value:.3f}",
            "" if wanted is None else f"{wanted[0]} {wanted[1]:.3g}",
            "" if value is None or wanted is None else "yes" if is_met(value, wanted) else "no",
        )
    return table


def _latencies(title: str, sides: Mapping[str, Any]) -> Table:
    """A row for each side and latency, in milliseconds."""
    table = Table("side", "tokens/s", "latency, ms", "mean", "p50", "p95", "p99", title=title)
    for name, side in sides.items():
        for key in ("ttft_s", "tpot_s", "itl_s"):
            values = side[key] or {}
            cells = (f"{1e3 * value:.1f}" for value in values.values())
            is_first = key == "ttft_s"
            rate = f"{side['tokens_per_s']:.1f}"
            table.add_row(
                name if is_first else "", rate if is_first else "", key[:-2].upper(), *cells
            )
    return table
