"""Mean negative log likelihood of token windows: the one number that search and evaluation share.

Always from float32 logits: bfloat16 would quantise the loss at 0.008 nats and more, coarser
than the gaps that decide a round.
"""

import torch
from transformers import PreTrainedModel

from pruning.blocks import final_logits

LOGITS_BYTES = 24 * 2**20  # float32 logits alive at once, about what a CPU's last cache holds


@torch.inference_mode()
def mean_loss(model: PreTrainedModel, windows: torch.Tensor, batch_size: int = 16) -> float:
    """Nats per predicted token over ``windows``, token ids ``[num_windows, seqlen]``.

    Every window stands alone: its first token predicts and is not predicted.
    """
    total = 0.0
    for batch in torch.split(windows.to(model.device), batch_size):
        total += float(summed_loss(model, last_hidden(model, batch), batch))
    return total / (windows.shape[0] * (windows.shape[1] - 1))


def last_hidden(model: PreTrainedModel, token_ids: torch.Tensor) -> torch.Tensor:
    """Normalised hidden states ``[batch, seqlen, hidden_size]`` in front of the head."""
    hidden: torch.Tensor = model.base_model(token_ids, use_cache=False).last_hidden_state
    return hidden


def summed_loss(
    model: PreTrainedModel, hidden: torch.Tensor, token_ids: torch.Tensor
) -> torch.Tensor:
    """Sum of the nats of all next tokens, a float64 scalar, computed a chunk of rows at a time."""
    rows = hidden[:, :-1].flatten(0, 1)
    targets = token_ids[:, 1:].flatten()
    rows_per_chunk = max(1, LOGITS_BYTES // (4 * model.config.vocab_size))
    total = torch.zeros((), dtype=torch.float64, device=hidden.device)
    chunks = torch.split(rows, rows_per_chunk), torch.split(targets, rows_per_chunk)
    for chunk, target in zip(*chunks, strict=True):
        total += _nats(final_logits(model, chunk).float(), target)
    return total


def _nats(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Summed cross entropy of ``[rows, vocab]``, overwritten: no second array of that size."""
    of_target = logits.gather(1, targets.unsqueeze(1)).squeeze(1)
    peak = logits.amax(dim=1, keepdim=True)
    normaliser = logits.sub_(peak).exp_().sum(dim=1).log_().add_(peak.squeeze(1))
    return (normaliser - of_target).double().sum()
