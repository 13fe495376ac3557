"""What a model card says of a healing: its training, its texts, and its control."""

from collections.abc import Iterator, Mapping

from pruning.healing.record import Healing
from pruning.plural import counted
from pruning.repair.record import Method


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
    if healing.control is not None:
        yield (
            f"- Control: {parent} with the same adapters after the same training, of "
            f"{healing.control.num_tokens:,} tokens, which the checkpoint has in `control/`. As "
            f"far as it is better than {parent}, the gain is due to the text and not to healing."
        )
