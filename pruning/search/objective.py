"""What candidates are scored by: the loss, or the divergence from the dense model."""

from enum import StrEnum

import torch
from transformers import PreTrainedModel

from pruning.models.blocks import finish
from pruning.models.loss import window_divergences, window_losses
from pruning.spec.prune import Metric


class Objective(StrEnum):
    """The lower, the better. Both are means over the predicted tokens of a window, in nats."""

    LOSS = "loss"  # -log p(next token) of the pruned model
    DIVERGENCE = "divergence"  # KL(p of the dense model || p of the pruned one)

    @classmethod
    def of(cls, metric: Metric) -> "Objective":
        """What a search by this metric scores by."""
        return cls.DIVERGENCE if metric is Metric.KL else cls.LOSS

    @property
    def needs_dense(self) -> bool:
        return self is Objective.DIVERGENCE

    def window_nats(
        self,
        model: PreTrainedModel,
        hidden: torch.Tensor,
        token_ids: torch.Tensor,
        dense: torch.Tensor | None,
    ) -> torch.Tensor:
        """Scores per window ``[batch]``, from the output of the last block of the pruned model.

        ``hidden`` and ``dense``, the same of the dense model, are ``[batch, seqlen, hidden_size]``.
        """
        final = finish(model, hidden)
        if not self.needs_dense:
            return window_losses(model, final, token_ids)
        assert dense is not None
        return window_divergences(model, final, finish(model, dense))
