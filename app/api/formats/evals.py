"""The report of an evaluation, as it is kept."""

from typing import Any

from app.api.formats.engine import engine_view
from app.compare.evaluation import Evaluation
from pruning.evaluation.advice import times
from pruning.evaluation.quality import Interval, Perplexity


def report_of(evaluation: Evaluation) -> dict[str, Any]:
    dense = evaluation.dense or (None,) * len(evaluation.perplexities)
    entry = evaluation.served.entry
    return {
        "model": entry.name,
        "dense": entry.base,
        "num_blocks": entry.num_blocks,
        "engine": engine_view(evaluation.served).model_dump(),
        "texts": [
            _text(own, whole) for own, whole in zip(evaluation.perplexities, dense, strict=True)
        ],
    }


def headline_of(evaluation: Evaluation) -> str:
    """The ratio to the dense model on each text, or else the perplexity."""
    name = evaluation.served.entry.name
    figures = [
        f"{one.text} {times(one.ratio)}" if one.ratio else f"{one.text} {one.perplexity:.2f}"
        for one in evaluation.perplexities
    ]
    return f"{name}: {', '.join(figures)}"


def _text(own: Perplexity, dense: Perplexity | None) -> dict[str, Any]:
    return {
        "text": own.text,
        "num_windows": own.num_windows,
        "seqlen": own.seqlen,
        "perplexity": own.perplexity,
        **_ends("perplexity", own.interval),
        "dense_perplexity": None if dense is None else dense.perplexity,
        "ratio": own.ratio.value if own.ratio else None,
        **_ends("ratio", own.ratio),
    }


def _ends(name: str, interval: Interval | None) -> dict[str, float | None]:
    low, high = (interval.low, interval.high) if interval else (None, None)
    return {f"{name}_low": low, f"{name}_high": high}
