"""What the quantized weights of an export cost, and whether the user has to accept it."""

from collections.abc import Sequence

from pruning.checkpoints.card import QuantizedText
from pruning.evaluation.limits import Limits
from pruning.spec.prune import Quantize

MAX_RATIO = Limits().max_ratio  # of perplexity with quantized weights to that with plain ones


class QuantizationCostly(RuntimeError):
    """The quantized weights are worse than the limit, and the user has not accepted that."""


def is_costly(texts: Sequence[QuantizedText]) -> bool:
    """Whether perplexity rises above the limit on any text. A broken model is costly."""
    return not all(text.ratio.value <= MAX_RATIO for text in texts)


def cost_of(weights: Quantize, texts: Sequence[QuantizedText]) -> str:
    """What the weights do to perplexity on the text where they are worst."""
    worst = max(texts, key=lambda text: text.ratio.value)
    percent = (worst.ratio.value - 1) * 100
    if percent <= 0:
        return f"{weights} weights do not raise perplexity on any text"
    shown = f"{percent:.0f}" if percent >= 10 else f"{percent:.1f}"
    return f"{weights} weights raise perplexity by up to {shown} % (on {worst.domain})"


def refusal(
    weights: Quantize, texts: Sequence[QuantizedText], milder: Sequence[QuantizedText]
) -> QuantizationCostly:
    """``milder`` are the texts with int8 weights, if these were measured too."""
    costs = cost_of(weights, texts)
    if milder:
        costs = f"{costs}; {cost_of(Quantize.INT8, milder)}"
    instead = "use --quantize int8" if milder and not is_costly(milder) else "export plain weights"
    return QuantizationCostly(
        f"{costs}. The limit is {(MAX_RATIO - 1) * 100:.0f} %, so nothing was written: {instead}, "
        f"or write the {weights} weights with --accept"
    )
