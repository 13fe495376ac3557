"""The request body that retries a job: settings of what follows its search."""

from typing import Any

from pydantic import StrictBool

from app.api.schemas.evaluation import EvaluationBody
from app.api.schemas.fields import optional
from app.api.schemas.generate import Body
from app.api.schemas.heal import HealBody
from app.api.schemas.jobs import GateBody
from pruning.spec import InvalidSpec
from pruning.spec.prune import Dtype, PruneSpec, Quantize, Repair, Resident

_CAN_BE_NULL = ("gate", "quantize", "heal", "evaluation", "save_dtype")
_OF_HEALING = frozenset({"heal"})  # all that a job has that prunes nothing


class RetryJobBody(Body):
    """What to change. A field that is left out stays as it was.

    The search has what it depends on in other fields, which cannot change.
    """

    evaluate: StrictBool | None = optional(
        "Measure the perplexity on held-out text at every depth."
    )
    evaluation: EvaluationBody | None = optional(
        "How much held-out text is measured, as for a new job."
    )
    repair: Repair | None = optional("How the remaining blocks are corrected, as for a new job.")
    gate: GateBody | None = optional("Limits on the quality loss; null for none.")
    quantize: Quantize | None = optional(
        "Measure the perplexity with quantized blocks too; null to not."
    )
    zero_shot: StrictBool | None = optional("Evaluate both models on the paper's five tasks.")
    resident: Resident | None = optional("model, or stream: load one block at a time.")
    save_dtype: Dtype | None = optional("Of the published weights, as for a new job.")
    heal: HealBody | None = optional("Train the pruned model in the end; null to not.")

    def changed(self, spec: PruneSpec, *, heals_only: bool) -> PruneSpec:
        """The spec with these changes. Raises ``InvalidSpec``."""
        asked: dict[str, Any] = self.model_dump(include=self.model_fields_set)
        changes = {
            name: value
            for name, value in asked.items()
            if value is not None or name in _CAN_BE_NULL
        }
        if heals_only and (others := changes.keys() - _OF_HEALING):
            raise InvalidSpec(min(others), f"{min(others)}: this job only heals, so change heal")
        if heals_only and changes.get("heal", spec.heal) is None:
            raise InvalidSpec("heal", "heal=null: this job only heals, so nothing would be left")
        return PruneSpec.from_dict({**spec.to_dict(), **changes})
