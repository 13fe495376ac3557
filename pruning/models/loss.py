"""Mean negative log likelihood and divergence of token windows, for search and evaluation.

Logits are float32: bfloat16 would round the loss to 0.008 nats or more, which is coarser than the
gaps that decide a round.
"""

from collections.abc import Iterator

import torch
from transformers import PreTrainedModel

from pruning.models.blocks import final_logits
from pruning.models.memory import free_bytes
from pruning.models.products import float32_products

# float32 logits at once: about a CPU's last-level cache; a GPU takes more, or it waits for launches
LOGITS_BYTES, GPU_LOGITS_BYTES = 24 * 2**20, 2**30


def last_hidden(model: PreTrainedModel, token_ids: torch.Tensor) -> torch.Tensor:
    """The input of the head ``[batch, seqlen, hidden_size]``, after the last norm."""
    with float32_products(next(model.parameters()), token_ids.numel()):
        hidden: torch.Tensor = model.base_model(token_ids, use_cache=False).last_hidden_state
    return hidden


def window_losses(
    model: PreTrainedModel, hidden: torch.Tensor, token_ids: torch.Tensor
) -> torch.Tensor:
    """Mean nats per predicted token of each window: float64 ``[batch]``.

    Runs only the head, on ``hidden [batch, seqlen, hidden_size]``, in chunks of rows. The first
    token of each window is not predicted.
    """
    rows = hidden[:, :-1].flatten(0, 1)
    targets = token_ids[:, 1:].flatten()
    nats = [_nats(logits, target) for logits, target in _chunks(model, rows, targets)]
    return torch.cat(nats).double().view(token_ids.shape[0], -1).mean(dim=1)


def window_divergences(
    model: PreTrainedModel, hidden: torch.Tensor, dense: torch.Tensor
) -> torch.Tensor:
    """Mean KL(dense || pruned) per predicted token of each window, in nats: float64 ``[batch]``.

    ``hidden`` and ``dense`` are inputs of the head ``[batch, seqlen, hidden_size]`` of the pruned
    and of the dense model, which have the same head. The positions are those of ``window_losses``.
    """
    rows, dense_rows = (states[:, :-1].flatten(0, 1) for states in (hidden, dense))
    per_chunk = rows_per_chunk(model, rows.device, num_logits=2)
    nats = []
    for chunk, dense_chunk in zip(rows.split(per_chunk), dense_rows.split(per_chunk), strict=True):
        wanted = _logits(model, dense_chunk).log_softmax(dim=1)
        log_shares = _logits(model, chunk).log_softmax(dim=1)
        nats.append(log_shares.sub_(wanted).mul_(wanted.exp_()).sum(dim=1).neg_())
    return torch.cat(nats).double().view(hidden.shape[0], -1).mean(dim=1)


def token_losses(
    model: PreTrainedModel, rows: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Nats of each of the ``targets [rows]`` in float32, and whether it is the likeliest token.

    ``rows [rows, hidden_size]`` are inputs of the head. Of equally likely tokens the first counts.
    """
    nats, is_likeliest = [], []
    for logits, target in _chunks(model, rows, targets):
        is_likeliest.append(logits.argmax(dim=1) == target)
        nats.append(_nats(logits, target))
    return torch.cat(nats), torch.cat(is_likeliest)


def _chunks(
    model: PreTrainedModel, rows: torch.Tensor, targets: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield float32 logits ``[rows, vocab]``, which may be overwritten, and their targets."""
    per_chunk = rows_per_chunk(model, rows.device)
    for chunk, target in zip(rows.split(per_chunk), targets.split(per_chunk), strict=True):
        yield _logits(model, chunk), target


def _logits(model: PreTrainedModel, rows: torch.Tensor) -> torch.Tensor:
    with float32_products(rows, len(rows)):
        return final_logits(model, rows).float()


def rows_per_chunk(model: PreTrainedModel, device: torch.device, num_logits: int = 1) -> int:
    """How many rows fit with ``num_logits`` logits for each token of the vocabulary.

    On a GPU they take an eighth of the free memory at most.
    """
    num_bytes = LOGITS_BYTES
    if device.type == "cuda":
        num_bytes = max(num_bytes, min(GPU_LOGITS_BYTES, free_bytes(device) // 8))
    vocab_size: int = model.config.vocab_size
    return max(1, num_bytes // (4 * num_logits * vocab_size))


def _nats(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross entropy per row of ``logits [rows, vocab]``, which are overwritten to save memory."""
    of_target = logits.gather(1, targets.unsqueeze(1)).squeeze(1)
    peak = logits.amax(dim=1, keepdim=True)
    return logits.sub_(peak).exp_().sum(dim=1).log_().add_(peak.squeeze(1)).sub_(of_target)
