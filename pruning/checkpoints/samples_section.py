"""The section of a card with sample texts of the pruned model beside those of the dense one."""

from pruning.checkpoints.store import Manifest
from pruning.evaluation.samples import Sample

_SECTION = """
## Sample texts

The likeliest continuation of a few prompts, by {parent} and without {num_removed} of its blocks:

{texts}
"""


def samples_section(manifest: Manifest) -> str:
    """Nothing if no text was generated."""
    samples = manifest.quality.samples
    if not samples:
        return ""
    texts = "\n\n".join(map(_text, samples))
    num_removed = len(manifest.removed_blocks)
    return _SECTION.format(parent=manifest.parent, num_removed=num_removed, texts=texts)


def _text(sample: Sample) -> str:
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
