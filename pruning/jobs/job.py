"""A pruning job as data: its statuses and their transitions, its record, events and webhook.

Plain data without Redis, HTTP or torch. ``store.py`` keeps it.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Literal

from pruning.models.names import VariantName
from pruning.records import read_record
from pruning.spec.prune import PruneSpec

JOB_ID = re.compile(r"prn-[0-9a-f]{21}")


def created_at(job_id: str) -> float:
    """When the job was created, in seconds since the epoch: ids begin with the microseconds."""
    return int(job_id.removeprefix("prn-")[:13], 16) / 1e6


class WebhookEvent(StrEnum):
    """``prune_job.`` and the status that a job has reached."""

    QUEUED = "prune_job.queued"  # again: creation sends no message
    RUNNING = "prune_job.running"
    PAUSED = "prune_job.paused"
    CANCELLING = "prune_job.cancelling"
    SUCCEEDED = "prune_job.succeeded"
    FAILED = "prune_job.failed"
    CANCELLED = "prune_job.cancelled"


FINAL_EVENTS = (WebhookEvent.SUCCEEDED, WebhookEvent.FAILED, WebhookEvent.CANCELLED)


@dataclass(frozen=True)
class Webhook:
    """The URL that receives a message at each of ``events``."""

    url: str
    events: tuple[WebhookEvent, ...] = FINAL_EVENTS


class JobStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    CANCELLING = "cancelling"  # the worker stops after its current evaluation
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in _FINALS


class StopRequest(StrEnum):
    """A request to the worker to stop, and the status of the job afterwards."""

    PAUSE = "pause"
    CANCEL = "cancel"


class Sink(StrEnum):
    """Where the result of a job that has succeeded is sent as well."""

    STORE = "store"  # an object store gets its checkpoints
    MLFLOW = "mlflow"  # a tracking server gets a run

    @property
    def field(self) -> str:
        """The field of the record that tells how far it is."""
        return f"sink_{self.value}"


@dataclass(frozen=True)
class SinkState:
    """How far the sending of a job's result to a sink is."""

    is_sent: bool
    num_attempts: int  # that failed
    at: float  # of the last change, in seconds since the epoch
    url: str | None = None  # where it is
    error: str | None = None  # of the last attempt


class Phase(StrEnum):
    LOAD = "load"
    CALIBRATE = "calibrate"
    SEARCH = "search"
    REPAIR = "repair"
    HEAL = "heal"
    EVALUATE = "evaluate"
    PUBLISH = "publish"


_S = JobStatus
TRANSITIONS: Mapping[JobStatus, frozenset[JobStatus]] = {
    _S.QUEUED: frozenset({_S.RUNNING, _S.PAUSED, _S.FAILED, _S.CANCELLED}),
    _S.RUNNING: frozenset(
        {_S.QUEUED, _S.PAUSED, _S.CANCELLING, _S.SUCCEEDED, _S.FAILED}  # queued: requeued
    ),
    _S.PAUSED: frozenset({_S.QUEUED, _S.CANCELLED}),
    # cancelling to succeeded: the model was published before the request was seen
    _S.CANCELLING: frozenset({_S.CANCELLED, _S.SUCCEEDED, _S.FAILED}),
    _S.SUCCEEDED: frozenset(),
    _S.FAILED: frozenset({_S.QUEUED}),  # on a client's request only
    _S.CANCELLED: frozenset({_S.QUEUED}),
}
RETRIED = (_S.FAILED, _S.CANCELLED)  # those of which a job can be queued again
_FINALS = frozenset({_S.SUCCEEDED, _S.FAILED, _S.CANCELLED})


class JobNotFound(LookupError):
    """No job has this id."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"job {job_id[:64]!r} not found: it was deleted, or the id is wrong")
        self.job_id = job_id


_EXPECTED = MappingProxyType(
    {
        "cancel": "expected a job that has not ended",
        "delete": "cancel it, or wait until it ends",
        "pause": "expected a queued or running job",
        "resume": "expected a paused or pausing job",
        "retry": "expected a failed or cancelled job",
    }
)


class IllegalTransition(ValueError):
    """The status of the job does not allow the requested change."""

    def __init__(self, job_id: str, status: JobStatus, verb: str) -> None:
        reason = f"cannot {verb} job {job_id}: its status is {status}"
        super().__init__(f"{reason}; {_EXPECTED[verb]}" if verb in _EXPECTED else reason)
        self.job_id = job_id
        self.status = status


@dataclass(frozen=True)
class Progress:
    """Candidate evaluations of the search; ``evaluations_total`` is 0 until it is known."""

    evaluations_done: int = 0
    evaluations_total: int = 0

    @property
    def ratio(self) -> float:
        return self.evaluations_done / self.evaluations_total if self.evaluations_total else 0.0


@dataclass(frozen=True)
class RepairProgress:
    """Steps of the repair: one block that runs on all text, or one fit. Known once one is done."""

    steps_done: int
    steps_total: int

    @property
    def ratio(self) -> float:
        return self.steps_done / self.steps_total


@dataclass(frozen=True)
class HealProgress:
    """The last step of the healing. Losses are nats of divergence from the dense model per token.

    ``training`` is ``healed``, or ``control`` for that of the dense model behind it.
    """

    training: str
    num_tokens: int
    ratio: float
    loss: float
    tokens_per_s: float
    seconds: float  # that the training has taken, in all attempts
    held_out_loss: float | None  # at the last check of this attempt


@dataclass(frozen=True)
class Pace:
    """Evaluations of the latest attempt, and their total time in seconds."""

    num_evaluations: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class JobError:
    code: str  # for programs: "invalid_spec", "model_not_found", "worker_lost", ...
    message: str
    param: str | None = None  # the dotted name of the setting at fault


@dataclass(frozen=True)
class Job:
    """The record of a job. Times are seconds since the epoch, losses nats per predicted token.

    ``losses[i]`` is the loss without ``removed_blocks[:i + 1]``. ``attempt`` counts the workers
    that took the job, ``num_lost`` the workers that died with it since its last progress. Workers
    take jobs of higher ``priority`` first.
    """

    id: str
    model: str
    spec: PruneSpec
    status: JobStatus
    created_at: float
    priority: int = 0
    source: str | None = None  # the published checkpoint that it heals, without pruning anything
    search_of: str | None = None  # the job whose search it went on with when it was created
    status_since: float | None = None
    pause_requested_at: float | None = None
    phase: Phase | None = None
    progress: Progress = Progress()
    repair_progress: RepairProgress | None = None  # of the latest attempt
    heal_progress: HealProgress | None = None  # likewise
    pace: Pace = Pace()
    removed_blocks: tuple[int, ...] = ()
    losses: tuple[float, ...] = ()
    dense_loss: float | None = None
    attempt: int = 0
    num_lost: int = 0
    lost_in: Phase | None = None  # the phase of the last of them
    num_halvings: int = 0  # of the batch size, after it ran out of memory
    worker: str | None = None
    pruned_model: str | None = None
    started_at: float | None = None
    finished_at: float | None = None
    estimated_finish: float | None = None  # of the search, the repair or the healing, during each
    error: JobError | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    webhook: Webhook | None = None
    owner: str | None = None  # the tenant whose key made it; None for everybody
    held_at: int | None = None  # the limit of running jobs that its tenant had at the last look
    sinks: Mapping[Sink, SinkState] = field(default_factory=dict)

    @property
    def stop_request(self) -> StopRequest | None:
        return stop_request(self.status, is_pausing=self.pause_requested_at is not None)

    @property
    def checkpoint_name(self) -> str:
        """The name of the checkpoint that the job publishes."""
        return str(VariantName(self.model, job=self.id))

    @classmethod
    def from_fields(cls, fields: Mapping[str, str]) -> "Job":
        """Parse a record of text fields. A missing or empty field has no value yet."""
        spec = PruneSpec.from_dict(json.loads(fields["spec"]))
        values = {name: read(text) for name, read in _FIELDS.items() if (text := fields.get(name))}
        sinks = {
            sink: read_record(SinkState, json.loads(text))
            for sink in Sink
            if (text := fields.get(sink.field))
        }
        return cls(
            id=fields["id"],
            model=spec.model,
            spec=spec,
            status=JobStatus(fields["status"]),
            created_at=float(fields["created_at"]),
            progress=_progress(fields),
            repair_progress=_repair_progress(fields),
            pace=_pace(fields),
            estimated_finish=_estimated_finish(fields),
            sinks=sinks,
            **values,
        )


# what reads each text of a record that stands for one field of a job
_FIELDS: Mapping[str, Callable[[str], Any]] = {
    **dict.fromkeys(("priority", "attempt", "num_lost", "num_halvings", "held_at"), int),
    **dict.fromkeys(("source", "search_of", "worker", "pruned_model", "owner"), str),
    **dict.fromkeys(("status_since", "pause_requested_at", "dense_loss"), float),
    **dict.fromkeys(("started_at", "finished_at"), float),
    **dict.fromkeys(("phase", "lost_in"), Phase),
    "removed_blocks": lambda text: tuple(map(int, text.split())),
    "losses": lambda text: tuple(map(float, text.split())),
    "heal_progress": lambda text: read_record(HealProgress, json.loads(text)),
    "error": lambda text: JobError(**json.loads(text)),  # its message may be no text yet
    "metadata": json.loads,
    "webhook": lambda text: read_record(Webhook, json.loads(text)),
}


@dataclass(frozen=True)
class JobEvent:
    id: str  # orders the events of one job
    created_at: float
    level: str  # "info", "warn" or "error"
    message: str
    type: Literal["message", "metrics"]  # its name in a stream, where a line has a meaning
    data: Mapping[str, Any]


@dataclass(frozen=True)
class JobPage:
    """Jobs, newest first. ``has_more`` if older jobs follow."""

    jobs: tuple[Job, ...]
    has_more: bool


def stop_request(status: JobStatus, *, is_pausing: bool) -> StopRequest | None:
    """The request to the worker of a job with this status."""
    if status is JobStatus.CANCELLING:
        return StopRequest.CANCEL
    return StopRequest.PAUSE if is_pausing else None


def _number(fields: Mapping[str, str], name: str) -> float | None:
    return float(text) if (text := fields.get(name)) else None


def _progress(fields: Mapping[str, str]) -> Progress:
    done, total = fields.get("evaluations_done") or 0, fields.get("evaluations_total") or 0
    return Progress(evaluations_done=int(done), evaluations_total=int(total))


def _pace(fields: Mapping[str, str]) -> Pace:
    began, last = _number(fields, "search_started_at"), _number(fields, "evaluated_at")
    num_before = int(fields.get("evaluations_before") or 0)
    num_evaluations = _progress(fields).evaluations_done - num_before
    if not began or not last or num_evaluations <= 0:
        return Pace()
    return Pace(num_evaluations, last - began)


def _repair_progress(fields: Mapping[str, str]) -> RepairProgress | None:
    done, total = fields.get("repair_steps_done"), fields.get("repair_steps_total")
    return RepairProgress(int(done), int(total)) if done and total else None


MIN_FOR_PACE = 3  # evaluations or steps: a single one says little of the others


def _estimated_finish(fields: Mapping[str, str]) -> float | None:
    """The end of the phase, if what remains of it takes as long as what is done."""
    ends = {Phase.SEARCH: _end_of_search, Phase.REPAIR: _end_of_repair, Phase.HEAL: _end_of_healing}
    end_of = ends.get(Phase(phase)) if (phase := fields.get("phase")) else None
    return end_of(fields) if end_of and not fields.get("finished_at") else None


def _end_of_search(fields: Mapping[str, str]) -> float | None:
    pace, progress, last = _pace(fields), _progress(fields), _number(fields, "evaluated_at")
    if pace.num_evaluations < MIN_FOR_PACE or not last:
        return None
    num_left = progress.evaluations_total - progress.evaluations_done
    return last + pace.seconds / pace.num_evaluations * num_left


def _end_of_repair(fields: Mapping[str, str]) -> float | None:
    began, last = _number(fields, "phase_started_at"), _number(fields, "repaired_at")
    progress = _repair_progress(fields)
    if progress is None or progress.steps_done < MIN_FOR_PACE or not began or not last:
        return None
    num_left = progress.steps_total - progress.steps_done
    return last + (last - began) / progress.steps_done * num_left


def _end_of_healing(fields: Mapping[str, str]) -> float | None:
    """Of the training that is running: the control follows that of the healed model."""
    text, last = fields.get("heal_progress"), _number(fields, "healed_at")
    progress: HealProgress | None = _FIELDS["heal_progress"](text) if text else None
    if progress is None or not last or not progress.ratio:
        return None
    return last + progress.seconds * (1 - progress.ratio) / progress.ratio
