"""What candidates are scored by: the loss, or the divergence from the dense model.

Either of the pruned model as it is, or with its stream rescaled behind each cut, as the repair by
scale does it. The scales are those of each window alone, so scores do not depend on batches.
"""

from dataclasses import dataclass
from typing import Self

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from pruning.models.blocks import finish
from pruning.models.loss import window_divergences, window_losses
from pruning.repair.record import Method
from pruning.repair.repair import possible_methods
from pruning.spec import InvalidSpec
from pruning.spec.prune import Metric, PruneSpec


@dataclass(frozen=True)
class Objective:
    """The lower, the better."""

    is_divergence: bool = False  # mean KL(dense || pruned) of the next token, in nats; or its loss
    is_rescaled: bool = False  # behind each cut, to the mean norms of the dense stream

    @classmethod
    def of(cls, spec: PruneSpec, config: PreTrainedConfig) -> Self:
        """What a search with this spec scores by.

        Raises ``InvalidSpec`` if no model of this configuration can be repaired by scale.
        """
        if spec.score_repaired and Method.SCALE not in possible_methods(config):
            raise InvalidSpec(
                "score_repaired",
                f"a model of type {config.model_type} cannot be repaired by scale: choose "
                "score_repaired=false",
            )
        return cls(spec.metric is Metric.KL, spec.score_repaired)

    @property
    def needs_dense(self) -> bool:
        return self.is_divergence or self.is_rescaled

    @property
    def num_dense_states(self) -> int:
        """How many hidden states of the dense model each window needs while it is scored."""
        return int(self.is_divergence)

    def window_nats(
        self,
        model: PreTrainedModel,
        hidden: torch.Tensor,
        token_ids: torch.Tensor,
        dense: "DenseStream | None",
    ) -> torch.Tensor:
        """Scores per window ``[batch]``, from the output of the last block of the pruned model."""
        final = finish(model, hidden)
        if not self.is_divergence:
            return window_losses(model, final, token_ids)
        assert dense is not None
        assert dense.final is not None
        return window_divergences(model, final, finish(model, dense.final))


LOSS = Objective()


@dataclass(frozen=True)
class DenseStream:
    """The dense model on a batch of windows.

    ``norms`` [num_blocks + 1, batch] are the mean norms of hidden states in front of each block and
    at the end; ``final`` [batch, seqlen, hidden_size] is the input of the head, None if no
    divergence needs it.
    """

    norms: torch.Tensor
    final: torch.Tensor | None

    @property
    def num_bytes(self) -> int:
        return 0 if self.final is None else self.final.nbytes

    def rescaled(self, at: int, hidden: torch.Tensor) -> torch.Tensor:
        """States ``[batch, seqlen, hidden_size]`` with the mean norms in front of block ``at``."""
        scales = (self.norms[at] / mean_norms(hidden)).to(torch.float32)
        return (hidden.float() * scales[:, None, None]).to(hidden.dtype)


def mean_norms(hidden: torch.Tensor) -> torch.Tensor:
    """Mean norm over the tokens of each window of ``hidden [batch, seqlen, hidden_size]``."""
    norms: torch.Tensor = hidden.float().norm(dim=-1)
    return norms.double().mean(dim=1)
