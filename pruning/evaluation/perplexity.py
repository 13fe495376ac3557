"""Perplexity of a model on token windows.

Measured as in the paper: windows do not overlap, and each is a sequence of its own.
"""

from collections.abc import Callable
from math import isfinite
from statistics import fmean

import torch

from pruning.data.windows import Windows
from pruning.evaluation.quality import Perplexity, interval_of, perplexity_of
from pruning.models.forward import Forward
from pruning.models.loss import window_losses
from pruning.removal import Losses, NonFiniteLoss


def perplexity(losses: Losses) -> float:
    """exp of the mean nats per token over windows that do not overlap."""
    return perplexity_of(fmean(losses))


@torch.inference_mode()
def measure_perplexity(
    forward: Forward,
    windows: Windows,
    observe: Callable[[int, int], object] = lambda _done, _total: None,
) -> Perplexity:
    """Measure on all ``windows``. Calls ``observe(done, total)`` with numbers of windows.

    Raises ``NonFiniteLoss``.
    """
    num_windows, seqlen = windows.token_ids.shape
    losses: list[float] = []
    batches = torch.split(windows.token_ids, max(1, forward.batch_tokens // seqlen))
    for token_ids, hidden in forward.hidden(batches):
        losses += window_losses(forward.model, hidden, token_ids).tolist()
        observe(len(losses), num_windows)
    if not all(map(isfinite, losses)):
        raise NonFiniteLoss(
            f"the loss on {windows.source} is not finite, so the weights are damaged or "
            "exceed the range of the dtype: try float32"
        )
    return perplexity_on(windows, windows.source, losses)


def perplexity_on(windows: Windows, text: str, losses: Losses) -> Perplexity:
    """What these losses of all ``windows`` say of a model."""
    num_windows, seqlen = windows.token_ids.shape
    return Perplexity(
        text=text,
        num_windows=num_windows,
        seqlen=seqlen,
        loss=fmean(losses),
        perplexity=perplexity(losses),
        digest=windows.digest,
        interval=interval_of(losses),
        losses=tuple(losses),
    )
