"""The report of ``sleb bench`` in words and tables."""

from collections.abc import Sequence
from statistics import fmean

from app.bench.plan import DENSE
from app.bench.result import Bench, Row
from app.bench.runs import Sample
from app.compare.speedup import EQUAL_WITHIN

HEADINGS = ("side", "what", "dense", "variant", "speed-up", "interval", "ideal", "verdict")

_HOW = """\
Dense model and variants took turns, each first equally often, on the same prompts with answers of
forced lengths, after a short run of each that does not count. A speed-up is a ratio of mean times
over {repeats} repeats, with its 95 % interval. It has a verdict only if that is no wider than the
effect, or lies within {equal:.0%} of 1. The ideal is that of a forward of nothing but embeddings,
blocks and head.
"""


def markdown(bench: Bench) -> str:
    """The whole report; ends with a newline."""
    subject, plan = bench.subject, bench.plan
    how = _HOW.format(repeats=plan.repeats, equal=EQUAL_WITHIN)
    lines = [f"# {subject.name}: what fewer blocks buy", "", how]
    lines += [f"- `{name}`: {_removed(blocks)}" for name, blocks in subject.removed.items()]
    for scenario, samples in bench.samples.items():
        rows = [row for row in bench.rows() if row.scenario is scenario]
        lines += ["", f"## {scenario.capitalize()}: {plan.described(scenario)}", ""]
        lines += _table(HEADINGS, [cells(row) for row in rows], num_left=2)
        lines += ["", *(f"- {its}" for its in reasons(rows)), ""]
        headings = ("side", "tokens per second", "peak GPU memory", "energy per token")
        sides = {side: runs for side, runs in samples.items() if side in {DENSE, *subject.removed}}
        lines += _table(headings, [_usage(side, runs) for side, runs in sides.items()], num_left=1)
    machine = bench.facts.get("machine")
    lines += ["", "## Machine", "", f"`{machine}`", "", f"`{bench.facts.get('command')}`", ""]
    return "\n".join(lines)


def cells(row: Row) -> list[str]:
    """Under ``HEADINGS``."""
    found = row.speedup
    has_interval = found.low is not None and found.high is not None
    return [
        row.variant,
        row.what,
        _ms(row.dense_s),
        _ms(row.variant_s),
        f"{found.ratio:.3f}×",
        f"{found.low:.2f} to {found.high:.2f}" if has_interval else "",
        f"{row.ideal:.3f}×" if row.ideal is not None else "",
        found.verdict.value,
    ]


def reasons(rows: Sequence[Row]) -> list[str]:
    """Why each verdict is what it is."""
    return [
        f"{row.variant}, {row.what}: {row.speedup.verdict}: {row.speedup.reason}" for row in rows
    ]


def _removed(blocks: Sequence[int]) -> str:
    return f"without blocks {', '.join(map(str, blocks))}" if blocks else "the dense model again"


def _usage(side: str, runs: Sequence[Sample]) -> list[str]:
    peaks = [its.peak_memory_bytes for its in runs if its.peak_memory_bytes is not None]
    energies = [its.energy_j / its.num_tokens for its in runs if its.energy_j is not None]
    return [
        side,
        f"{sum(its.num_tokens for its in runs) / sum(its.seconds for its in runs):,.1f}",
        f"{max(peaks) / 2**30:.2f} GiB" if peaks else "not a GPU",
        f"{fmean(energies):.3f} J" if energies else "not known",
    ]


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms" if seconds < 1 else f"{seconds:,.2f} s"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], num_left: int) -> list[str]:
    rule = ["---"] * num_left + ["--:"] * (len(headings) - num_left)
    return [f"| {' | '.join(row)} |" for row in (headings, rule, *rows)]
