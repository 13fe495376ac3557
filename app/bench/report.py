"""The report of ``sleb bench``: Markdown, and the cells of its tables."""

from collections.abc import Sequence
from statistics import fmean

from app.bench.plan import AGAIN, DENSE, BenchSubject
from app.bench.result import Bench, Row
from app.bench.runs import Sample
from app.compare.speedup import EQUAL_WITHIN
from pruning.checkpoints.markdown import markdown_table
from pruning.plural import counted

HEADINGS = ("side", "what", "dense", "variant", "speed-up", "interval", "ideal", "verdict")

_METHOD = """\
Dense model and variants took turns, each first equally often, on the same prompts with answers of
fixed lengths, after a short run of each that was not measured. Prompts were read {reading}. A
speed-up is a ratio of mean times over {repeats}, with its 95 % interval. It has a verdict only if
the interval is no wider than the effect, or lies within {equal:.0%} of 1. `{again}` is the control:
the dense model a second time, whose true speed-up is 1. A speed-up whose interval overlaps that of
the control has no verdict, nor has one of other kernels than those of the dense model. The ideal is
the speed-up of a forward pass that consists of embeddings, blocks and head only.
"""


def markdown(bench: Bench) -> str:
    """The whole report."""
    subject, plan = bench.subject, bench.plan
    repeats = counted(plan.repeats, "repeat")
    method = _METHOD.format(
        repeats=repeats, equal=EQUAL_WITHIN, again=AGAIN, reading=bench.prompt_reading
    )
    lines = [f"# {subject.name}: speed-up of pruned variants", "", method]
    lines += [f"- `{name}`: {_variant(subject, name)}" for name in subject.removed]
    for scenario, samples in bench.samples.items():
        rows = [row for row in bench.rows() if row.scenario is scenario]
        lines += ["", f"## {scenario.capitalize()}: {plan.description(scenario)}", ""]
        lines.append(markdown_table(HEADINGS, map(cells, rows), 2))
        lines += ["", *(f"- {reason}" for reason in reasons(rows)), ""]
        headings = ("side", "tokens per second", "peak GPU memory", "energy per token")
        shown = {DENSE, AGAIN, *subject.removed}
        sides = {side: runs for side, runs in samples.items() if side in shown}
        lines.append(markdown_table(headings, (_usage(*side) for side in sides.items()), 1))
    machine = bench.facts.get("machine")
    facts = (bench.facts.get("engine"), machine, bench.facts.get("command"))
    lines += ["", "## Engine and machine", "", *(f"`{fact}`\n" for fact in facts)]
    return "\n".join(lines)


def cells(row: Row) -> list[str]:
    """The cells under ``HEADINGS``."""
    measured = row.speedup
    has_interval = measured.low is not None and measured.high is not None
    return [
        row.variant,
        row.what,
        _ms(row.dense_s),
        _ms(row.variant_s),
        f"{measured.ratio:.3f}×",
        f"{measured.low:.2f} to {measured.high:.2f}" if has_interval else "",
        f"{row.ideal:.3f}×" if row.ideal is not None else "",
        measured.verdict.value,
    ]


def summary(row: Row) -> str:
    """The speed-up of a row in words, with its interval and its verdict."""
    variant, what, _, _, ratio, ends, _, verdict = cells(row)
    return f"{row.scenario}, {variant}, {what}: {ratio}{ends and f' ({ends})'}, {verdict}"


def reasons(rows: Sequence[Row]) -> list[str]:
    """The reason of each verdict."""
    return [
        f"{row.variant}, {row.what}: {row.speedup.verdict}: {row.speedup.reason}" for row in rows
    ]


def _variant(subject: BenchSubject, name: str) -> str:
    blocks, repaired = subject.removed[name], subject.repairs.get(name)
    int8 = " with int8 weights" if name in subject.int8 else ""
    if not blocks:
        return f"the dense model{int8}"
    how = f"repaired by {repaired.method}" if repaired else "not repaired"
    return f"without blocks {', '.join(map(str, blocks))}, {how}{int8 and f',{int8}'}"


def _usage(side: str, runs: Sequence[Sample]) -> list[str]:
    peaks = [run.peak_memory_bytes for run in runs if run.peak_memory_bytes is not None]
    energies = [run.energy_j / run.num_tokens for run in runs if run.energy_j is not None]
    return [
        side,
        f"{sum(run.num_tokens for run in runs) / sum(run.seconds for run in runs):,.1f}",
        f"{max(peaks) / 2**30:.2f} GiB" if peaks else "not a GPU",
        f"{fmean(energies):.3f} J" if energies else "not known",
    ]


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms" if seconds < 1 else f"{seconds:,.2f} s"
