"""What a job will need and how long it will take, before it runs: plain arithmetic, no torch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from pruning.jobs.job import Job, JobStatus
from pruning.models.safetensors_files import WeightSizes
from pruning.models.store import ModelInfo
from pruning.spec.calibration import Sampling
from pruning.spec.prune import PruneSpec, Resident

_ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
_WAIT_LIMITS_S = (5.0, 3600.0)
_UNKNOWN_WAIT_S = 60.0


class DiskTooSmall(ValueError):
    """The checkpoint of the job can never be written where it has to go."""

    param = "model"

    def __init__(self, least_bytes: int, free_bytes: int) -> None:
        super().__init__(
            f"the pruned checkpoint needs at least {least_bytes} bytes, and {free_bytes} are free "
            "in the data directory: free some, or choose a smaller model or dtype"
        )


@dataclass(frozen=True)
class Footprint:
    """Bytes. The checkpoint is counted by its weights: what lies beside them takes a few MB."""

    weight_bytes: int  # of the dense model; streamed, few of its blocks are in memory at once
    state_bytes: int | None  # hidden states of a search at full speed; None: windows not known yet
    least_state_bytes: int  # with less the search cannot run
    checkpoint_bytes: int  # at most
    least_checkpoint_bytes: int  # were every free block to go where the search decides


@dataclass(frozen=True)
class Duration:
    """Seconds that a job may take, judged by earlier ``jobs`` of the same kind; None without any.

    An upper bound where its number of evaluations is one.
    """

    seconds: float | None
    jobs: tuple[str, ...]


def is_upper_bound(spec: PruneSpec) -> bool:
    """Whether ``num_evaluations`` is one, because only the search shows how far it goes."""
    return spec.num_remove is None and spec.sparsity is None


def footprint(spec: PruneSpec, info: ModelInfo, sizes: WeightSizes) -> Footprint:
    """For a spec that the model allows."""
    dtype = info.dtype if spec.dtype == "auto" else spec.dtype
    item_bytes = _ITEM_BYTES.get(dtype, 1)  # what else there is has 8 bits
    blocks, most = info.num_blocks, spec.most_removals(info.num_blocks)
    fewest = 1 if is_upper_bound(spec) else most
    text = spec.calibration
    state_bytes = text.seqlen * info.hidden_size * item_bytes
    is_streamed = spec.resident is Resident.STREAM
    all_states = text.num_samples * state_bytes * ((3 if is_streamed else 2) * blocks + 1)
    return Footprint(
        weight_bytes=item_bytes * sizes.num_parameters(blocks),
        state_bytes=None if Sampling.ROWS in _samplings(spec) else all_states,
        least_state_bytes=state_bytes * ((2 if is_streamed else 1) * blocks + 1),
        checkpoint_bytes=item_bytes * sizes.num_parameters(blocks, fewest),
        least_checkpoint_bytes=item_bytes * sizes.num_parameters(blocks, most),
    )


def duration(spec: PruneSpec, num_evaluations: int, succeeded: Iterable[Job]) -> Duration:
    """By the pace of those ``succeeded`` jobs that ran once, on that model and such windows."""
    paces = {
        job.id: seconds / job.progress.evaluations_done
        for job in succeeded
        if _work(job.spec) == _work(spec) and job.progress.evaluations_done
        if (seconds := _ran_s(job)) is not None
    }
    if not paces:
        return Duration(None, ())
    return Duration(num_evaluations * median(paces.values()), tuple(paces))


def wait_s(running: Sequence[Job], succeeded: Iterable[Job], now: float) -> float:
    """Seconds until one of the ``running`` jobs ends, and so the first that waits can begin.

    By their own estimates, or else by how long earlier jobs took; within sensible limits.
    """
    took_s = [seconds for job in succeeded if (seconds := _ran_s(job)) is not None]
    typical_s = median(took_s) if took_s else None
    ends = [end for job in running if (end := _end(job, typical_s)) is not None]
    if not ends:
        return _UNKNOWN_WAIT_S
    low, high = _WAIT_LIMITS_S
    return min(max(min(ends) - now, low), high)


def _end(job: Job, typical_s: float | None) -> float | None:
    if job.estimated_finish is not None:
        return job.estimated_finish
    if job.started_at is None or typical_s is None:
        return None
    return job.started_at + typical_s


def _ran_s(job: Job) -> float | None:
    """None for a job of several attempts, whose evaluations were not all in the last."""
    is_known = job.status is JobStatus.SUCCEEDED and job.attempt == 1
    if not is_known or job.started_at is None or job.finished_at is None:
        return None
    return job.finished_at - job.started_at


def _work(spec: PruneSpec) -> tuple[object, ...]:
    """What decides how long one evaluation takes."""
    text = spec.calibration
    windows = (_samplings(spec), text.num_samples, text.seqlen)
    how = (spec.metric, spec.search, spec.resident, spec.evaluate)
    return (spec.model, spec.dtype, *how, *windows)


def _samplings(spec: PruneSpec) -> frozenset[Sampling]:
    return frozenset(part.sampling for part in spec.calibration.parts)
