"""The loss of a model over windows, for tests to compare with."""

import torch
from transformers import PreTrainedModel

from pruning.models.loss import last_hidden, window_losses


@torch.inference_mode()
def mean_loss(model: PreTrainedModel, windows: torch.Tensor, batch_size: int = 16) -> float:
    """Nats per predicted token over ``windows``, token ids ``[num_windows, seqlen]``.

    Every window stands alone: its first token is not predicted.
    """
    batches = torch.split(windows.to(model.device), batch_size)
    losses = [window_losses(model, last_hidden(model, batch), batch) for batch in batches]
    return float(torch.cat(losses).mean())
