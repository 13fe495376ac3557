"""Everything that can happen to a job, each as the change it makes to the record. No Redis here."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from pruning.job import TRANSITIONS, JobError, JobStatus, Phase
from pruning.job_change import Change, Event
from pruning.removal import Removal
from pruning.search_state import (
    Plan,
    Scored,
    decided_fields,
    plan_field,
    round_fields,
    scored_field,
)
from pruning.spec import PruneSpec

_OF_ONE_ATTEMPT = ("worker", "phase", "search_started_at", "evaluated_at")
_OF_ONE_PLAN = ("removed_blocks", "losses", "dense_loss")
_GOT_ON = {"num_lost": "0"}  # workers that die further on do not die of the same thing
_WORKING = {status: status for status in (JobStatus.RUNNING, JobStatus.CANCELLING)}


def _to(wanted: JobStatus) -> Mapping[JobStatus, JobStatus]:
    return {status: wanted for status, next_ in TRANSITIONS.items() if wanted in next_}


def new_record(
    job_id: str, spec: PruneSpec, metadata: Mapping[str, str], now: float
) -> dict[str, str]:
    """The fields of a job that was just submitted."""
    return {
        "id": job_id,
        "spec": json.dumps(spec.to_dict()),
        "status": JobStatus.QUEUED.value,
        "created_at": str(now),
        "metadata": json.dumps(dict(metadata)),
    }


def cancelling() -> Change:
    moves = {
        JobStatus.QUEUED: JobStatus.CANCELLED,
        JobStatus.PAUSED: JobStatus.CANCELLED,
        JobStatus.RUNNING: JobStatus.CANCELLING,
        JobStatus.CANCELLING: JobStatus.CANCELLING,
    }
    return Change("cancel", moves, event=Event("cancel requested"))


def requeued(reason: str, *, is_lost: bool) -> Change:
    moves = {
        JobStatus.QUEUED: JobStatus.QUEUED,  # its worker died before it had started
        JobStatus.RUNNING: JobStatus.QUEUED,
        JobStatus.CANCELLING: JobStatus.CANCELLED,  # nobody is left to stop
    }
    fields = dict.fromkeys(_OF_ONE_ATTEMPT, "")
    event = Event(reason, level="warn" if is_lost else "info")
    return Change("requeue", moves, fields, event=event, counted=("num_lost",) if is_lost else ())


def started(worker: str) -> Change:
    moves = {JobStatus.QUEUED: JobStatus.RUNNING}
    event = Event(f"started by {worker}")
    return Change("start", moves, _taken_by(worker), event=event, counted=("attempt",))


def taken_over(worker: str) -> Change:
    """From a worker that died without a word."""
    moves = {JobStatus.RUNNING: JobStatus.RUNNING}
    event = Event(f"taken over by {worker}", level="warn")
    counted = ("attempt", "num_lost")
    return Change("take over", moves, _taken_by(worker), event=event, counted=counted)


def _taken_by(worker: str) -> dict[str, str]:
    fields = dict.fromkeys(_OF_ONE_ATTEMPT, "")
    return {**fields, "worker": worker, "started_at": str(time.time())}


def phase_begun(phase: Phase) -> Change:
    event = Event(f"phase {phase}", data={"phase": phase.value})
    return Change("work on it", _WORKING, {"phase": phase.value}, event=event)


def searching(plan: Plan, done: int, total: int, *, is_anew: bool) -> Change:
    """The search goes on behind ``done`` evaluations, or forgets what another plan had found."""
    fields = {
        "evaluations_done": str(done),
        "evaluations_total": str(total),
        "evaluations_before": str(done),
        "search_started_at": str(time.time()),
    }
    if is_anew:
        fields |= dict.fromkeys(_OF_ONE_PLAN, "")
    data = {"evaluations_done": done, "evaluations_total": total}
    message = f"search goes on behind {done} of {total} evaluations" if done else "search begins"
    event = Event(message, type="metrics", data=data)
    plan_ = plan_field(plan)
    return Change("work on it", _WORKING, fields, event=event, search=plan_, is_anew=is_anew)


def evaluated(done: int, total: int, scored: Scored | None = None) -> Change:
    """An event for every whole percent only: a search may take thousands of evaluations."""
    fields = {
        "evaluations_done": str(done),
        "evaluations_total": str(total),
        "evaluated_at": str(time.time()),
    }
    data = {"evaluations_done": done, "evaluations_total": total}
    event = Event(f"{done} of {total} evaluations", type="metrics", data=data)
    is_whole_percent = total > 0 and done * 100 // total > (done - 1) * 100 // total
    return Change(
        "work on it",
        _WORKING,
        fields | _GOT_ON if scored else fields,
        event=event if is_whole_percent else None,
        search=scored_field(scored) if scored else {},
    )


def removed(removals: Sequence[Removal]) -> Change:
    """All of them so far: one that was written twice, or missed before, then does no harm."""
    last = removals[-1]
    data = asdict(last)
    del data["scores"], data["num_windows"]  # of interest in the published record only
    fields = {
        "removed_blocks": " ".join(str(removal.block) for removal in removals),
        "losses": " ".join(str(removal.loss) for removal in removals),
        "dense_loss": str(last.dense_loss),
        **_GOT_ON,
    }
    event = Event(f"removed block {last.block}", type="metrics", data=data)
    return Change(
        "work on it",
        _WORKING,
        fields,
        event=event,
        search=round_fields(removals),
        search_over=decided_fields(last),
    )


def succeeded(pruned_model: str) -> Change:
    fields = {"pruned_model": pruned_model}
    event = Event(f"published {pruned_model}")
    return Change("succeed", _to(JobStatus.SUCCEEDED), fields, event=event)


def failed(error: JobError) -> Change:
    fields = {"error": json.dumps(asdict(error))}
    event = Event(error.message, level="error", data=asdict(error))
    return Change("fail", _to(JobStatus.FAILED), fields, event=event)


def cancelled() -> Change:
    moves = {JobStatus.CANCELLING: JobStatus.CANCELLED}
    return Change("end as cancelled", moves, event=Event("cancelled"))
