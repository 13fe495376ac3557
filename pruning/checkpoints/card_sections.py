"""Sections of a model card: what to take, sample texts, and how the model was healed."""

from collections.abc import Callable, Iterator, Mapping

from pruning.checkpoints.markdown import bullets, markdown_table
from pruning.checkpoints.store import Manifest
from pruning.checkpoints.task_table import task_legend, task_sentences, task_table
from pruning.evaluation.frontier import judge
from pruning.evaluation.limits import Limits
from pruning.evaluation.points import DENSE_RATIO, Load, Point
from pruning.evaluation.quality import DomainQuality, Interval, Measured
from pruning.evaluation.results import Sample
from pruning.evaluation.task_shares import TaskShares
from pruning.evaluation.verdict_table import explained, verdict_table
from pruning.healing.record import Healing
from pruning.models.names import int8_name
from pruning.plural import counted
from pruning.repair.record import Method

_ADVICE = """
## What to take

{sentence}

{table}

{notes}
"""

_TASKS = """
## Tasks

{sentence}

{table}

{legend}
"""
_LOAD = Load("stream", "per token")
_SAMPLES = """
## Sample texts

The likeliest continuation of a few prompts, by {parent} and without {num_removed} of its blocks:

{texts}
"""


def advice_section(manifest: Manifest) -> str:
    """What to take, by predicted speed. Nothing if no domain was measured."""
    if not manifest.quality.domains:
        return ""
    at_one = {_LOAD.name: Interval(1.0, 1.0, 1.0)}
    dense = Point(manifest.parent, ratios=DENSE_RATIO, speeds=at_one)
    int8 = Point(int8_name(manifest.parent), is_int8=True)
    verdict = judge(manifest.parent, [dense, int8, *points_of(manifest)], [_LOAD], Limits())
    notes = [*explained(verdict)]
    if (step := verdict.next_step) is not None:
        notes.append(f"next: {step.words}: `{step.command}`")
    return _ADVICE.format(
        sentence=verdict.sentence,
        table=markdown_table(*verdict_table(verdict)),
        notes=bullets([f"{note}." for note in notes]),
    )


def points_of(manifest: Manifest) -> list[Point]:
    """Every depth as it is served; of a healed checkpoint, those of its source as well."""
    healing, last = manifest.healing, len(manifest.removed_blocks)
    source = healing.parent if healing else manifest.name
    unhealed = DomainQuality.unhealed_after
    depths = [_point(manifest, source, depth, unhealed) for depth in range(1, last + 1)]
    if healing is None:
        return depths
    healed = range(1 if healing.is_elastic else last, last + 1)
    served = DomainQuality.served_after
    return [*depths, *(_point(manifest, manifest.name, depth, served) for depth in healed)]


def _point(
    manifest: Manifest,
    checkpoint: str,
    depth: int,
    of_depth: Callable[[DomainQuality, int], Measured],
) -> Point:
    last, predicted = len(manifest.removed_blocks), manifest.predicted_speedup(depth)
    name = checkpoint if depth == last else f"{checkpoint}-{depth}"
    whole, pruned = manifest.dense_num_parameters, manifest.num_parameters
    domains = manifest.quality.domains
    return Point(
        name,
        depth,
        is_healed=manifest.healing is not None and checkpoint == manifest.name,
        speeds={} if predicted is None else {_LOAD.name: Interval(predicted, None, None)},
        predicted=(_LOAD.name,),
        checkpoint=checkpoint,
        num_blocks=manifest.num_blocks - depth,
        ratios={domain.domain: domain.ratio(of_depth(domain, depth)) for domain in domains},
        parameters=(whole - (whole - pruned) / last * depth) / whole,
        probe=manifest.quality.probe if name == manifest.name else None,
        tasks=TaskShares.of(manifest.quality.tasks) if name == manifest.name else None,
    )


def tasks_section(manifest: Manifest) -> str:
    """The tasks, the worst one first. Nothing without any."""
    shares = TaskShares.of(manifest.quality.tasks)
    if shares is None:
        return ""
    return _TASKS.format(
        sentence=" ".join(task_sentences(shares)).removeprefix("tasks: ").capitalize(),
        table=markdown_table(*task_table(shares)),
        legend=bullets(task_legend()),
    )


def samples_section(manifest: Manifest) -> str:
    """Nothing if no text was generated."""
    samples = manifest.quality.samples
    if not samples:
        return ""
    texts = "\n\n".join(map(_sample, samples))
    num_removed = len(manifest.removed_blocks)
    return _SAMPLES.format(parent=manifest.parent, num_removed=num_removed, texts=texts)


def _sample(sample: Sample) -> str:
    """As indented code, where text of a model is no markup."""
    lines = (
        f"{sample.prompt}…",
        f"dense:  {_line(sample.dense)}",
        f"pruned: {_line(sample.pruned)}",
    )
    return "\n".join(f"    {line}" for line in lines)


def _line(text: str) -> str:
    """In one line, whatever a model has written."""
    shown = "".join(char if char.isprintable() else " " for char in text).strip()
    return shown or "(nothing)"


def healed_by(healing: Healing, repaired_by: Mapping[Method, str]) -> str:
    """How the model was changed, with the words of each method of repair."""
    repaired = "" if healing.method is Method.NONE else f"{repaired_by[healing.method]} and "
    depths = ", with one adapter for every depth" if healing.is_elastic else ""
    return f"{repaired}healed by training on {healing.run.best.num_tokens:,} tokens{depths}"


def _of_depths(parent: str, healing: Healing) -> str:
    """What the adapter is for, where it heals several depths."""
    before, after = healing.run.checks[0].by_depth, healing.run.best.by_depth
    if not after:
        return ""
    nats = ", ".join(f"{one:.3g} → {other:.3g}" for one, other in zip(before, after, strict=True))
    return (
        f": it is for {parent}, and heals every prefix of the removal order, on top of the repairs "
        f"in `repair/`. Each step trained the deepest model and another one. Nats after 1, 2 ... "
        f"removals: {nats}"
    )


def training_lines(parent: str, healing: Healing) -> Iterator[str]:
    """How the model was healed, and what it is compared with."""
    run, settings = healing.run, healing.settings
    before, after = run.checks[0].loss, run.best.loss
    yield (
        f"- Healed from {healing.parent}: adapters (LoRA, rank {settings.rank}) on the linear "
        f"layers of its blocks were trained to predict what {parent} predicts, for "
        f"{counted(run.num_steps, 'step')} of the optimiser. The step after "
        f"{run.best.num_tokens:,} tokens diverged least from {parent} on held-out text: "
        f"{after:.4g} nats per token, and {before:.4g} before. Its adapter is merged here; the "
        f"checkpoint has it in `adapter/` in peft's format{_of_depths(parent, healing)}."
    )
    for text in healing.texts:
        use = "Trained on" if text.part == "train" else "Stopped by"
        windows = f"{counted(text.num_windows, 'window')} of {text.seqlen} tokens"
        yield f"- {use} {text.domain}: {text.source}, {windows} (sha256 `{text.digest}`)."
    if healing.control is not None and healing.control.num_steps == 0:
        yield (
            f"- Control: the same training changes nothing in {parent}, which predicts what it "
            "should."
        )
    elif healing.control is not None:
        yield (
            f"- Control: {parent} with the same adapters after the same training, of "
            f"{healing.control.num_tokens:,} tokens, which the checkpoint has in `control/`. As "
            f"far as it is better than {parent}, the gain is due to the text and not to healing."
        )
