"""The section of a card that says which depth to take."""

from pruning.checkpoints.candidates import candidates_of
from pruning.checkpoints.markdown import bullets, markdown_table
from pruning.checkpoints.store import Manifest
from pruning.evaluation.advice import Limits, advice_table, advise

_ADVICE = """
## Which depth

{sentence}

{table}

{notes}
"""

_READ = (
    "speed-up per token, and perplexity by text, as multiples of the dense model's; in "
    "parentheses intervals of 95 %; * predicted."
)


def advice_section(manifest: Manifest) -> str:
    """Which depth to take, by predicted speed. Nothing if no domain was measured."""
    if not manifest.quality.domains:
        return ""
    advice = advise(manifest.parent, candidates_of(manifest), Limits())
    notes = [
        f"limits: {advice.limits}.",
        _READ,
        *(f"{text}." for text in advice.missing),
    ]
    return _ADVICE.format(
        sentence=advice.sentence, table=markdown_table(*advice_table(advice)), notes=bullets(notes)
    )
