"""The memory that a job needs at least, against that of the machine that would run it."""

from dataclasses import dataclass

from pruning.jobs.estimate import Footprint, heal_estimate
from pruning.models.safetensors_headers import WeightSizes
from pruning.models.store import ModelInfo
from pruning.repair.ridge import fit_bytes
from pruning.spec.prune import PruneSpec, Repair, Resident


class MemoryTooSmall(ValueError):
    """The machine has less memory than a job needs, whatever else it does."""

    def __init__(self, need: "Need", total_bytes: int) -> None:
        super().__init__(
            f"{need.what} needs at least {need.num_bytes} bytes of memory, and this machine has "
            f"{total_bytes}: {need.instead}"
        )
        self.param = need.param


@dataclass(frozen=True)
class Need:
    """What a part of a job holds at once, at least."""

    what: str
    param: str
    num_bytes: int
    instead: str


def needs(
    spec: PruneSpec, info: ModelInfo, sizes: WeightSizes, needed: Footprint
) -> tuple[Need, ...]:
    """Of the search, of a repair that was asked for, and of the healing.

    ``repair=auto`` repairs nothing where memory does not suffice, so it has no need of its own.
    """
    is_streamed = spec.resident is Resident.STREAM
    weights = 0 if is_streamed else needed.weight_bytes
    all_needs = [
        Need(
            "the search",
            "model",
            weights + needed.least_state_bytes,
            "take a smaller calibration.seqlen" + ("" if is_streamed else ", or resident=stream"),
        )
    ]
    if spec.repair is Repair.RIDGE and sizes.num_refit:
        width_in = sizes.num_refit // info.hidden_size
        fit = fit_bytes(width_in, info.hidden_size, num_folds=1)
        all_needs.append(Need("repair=ridge", "repair", weights + fit, "take repair=auto"))
    healing = heal_estimate(spec, info.num_blocks, sizes, succeeded=())
    if healing is not None:
        num_bytes = needed.weight_bytes + healing.training_bytes
        all_needs.append(
            Need("the healing", "heal", num_bytes, "take a lower heal.rank, or no heal")
        )
    return tuple(all_needs)


def check_memory(all_needs: tuple[Need, ...], total_bytes: int | None) -> None:
    """Raise ``MemoryTooSmall`` for the first that does not fit; None is memory of others."""
    for need in all_needs:
        if total_bytes is not None and need.num_bytes > total_bytes:
            raise MemoryTooSmall(need, total_bytes)
