"""What ``sleb advise`` does: a sentence and a table about the depths of a model."""

from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from app.commands.models import catalog_of
from app.config import ServeSettings
from app.models.advice import advice_on
from app.terminal import filled, print_json
from pruning.evaluation.advice import Advice, Limits, advice_table


def print_advice(settings: ServeSettings, model: str, limits: Limits, *, as_json: bool) -> None:
    """Raises ``UnknownModel``."""
    advice = advice_on(model, catalog_of(settings), limits)
    if as_json:
        print_json(asdict(advice))
        return
    console = Console(highlight=False)
    console.print(advice.sentence, markup=False, style="bold")
    if advice.depths:
        console.print()
        console.print(_table(advice))
        console.print(f"limits: {advice.limits}", markup=False)
        console.print(
            "speed-up per token, and perplexity by text, as multiples of the dense model's; in "
            "parentheses intervals of 95 %; * predicted",
            markup=False,
        )
    for text in advice.missing:
        console.print(f"missing: {text}", markup=False)


def _table(advice: Advice) -> Table:
    headings, rows = advice_table(advice)
    table = Table(box=None, pad_edge=False)
    return filled(table, headings, rows, ["depth", "keeps"], overflow="fold")
