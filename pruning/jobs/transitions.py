"""Everything that can happen to a job, each as the change it makes to the record. No Redis here."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType

from pruning.jobs.job import TRANSITIONS, JobError, JobStatus, Phase, Webhook
from pruning.jobs.script import Change, Event
from pruning.removal import Removal
from pruning.search.state import (
    Plan,
    Scored,
    decided_fields,
    plan_field,
    round_fields,
    scored_field,
)
from pruning.spec.prune import PruneSpec

_OF_ONE_ATTEMPT = ("worker", "phase", "search_started_at", "evaluated_at")
_OF_ONE_PLAN = ("removed_blocks", "losses", "dense_loss")
_IN_FRONT = {"in_front": "1"}  # of others of its priority, once it has left the queue and is back
_HALVED = {"num_halvings": "1"}
_GOT_ON = {"num_lost": "0"}  # workers that die further on do not die of the same thing
_S = JobStatus
_WORKING = {status: status for status in (_S.RUNNING, _S.CANCELLING)}
_STILL_RUNNING = {_S.RUNNING: _S.RUNNING}


def _to(wanted: JobStatus) -> Mapping[JobStatus, JobStatus]:
    return {status: wanted for status, next_ in TRANSITIONS.items() if wanted in next_}


def new_record(
    job_id: str,
    spec: PruneSpec,
    metadata: Mapping[str, str],
    now: float,
    priority: int = 0,
    webhook: Webhook | None = None,
) -> dict[str, str]:
    """The fields of a job that was just submitted."""
    return {
        "id": job_id,
        "spec": json.dumps(spec.to_dict()),
        "status": JobStatus.QUEUED.value,
        "created_at": str(now),
        "status_since": str(now),
        "priority": str(priority),
        "metadata": json.dumps(dict(metadata)),
        "webhook": webhook.to_json() if webhook else "",
    }


def cancelling() -> Change:
    moves = {
        JobStatus.QUEUED: JobStatus.CANCELLED,
        JobStatus.PAUSED: JobStatus.CANCELLED,
        JobStatus.RUNNING: JobStatus.CANCELLING,
        JobStatus.CANCELLING: JobStatus.CANCELLING,
    }
    return Change("cancel", moves, event=Event("cancel requested"))


def pausing() -> tuple[Change, ...]:
    """A running job stays so until its worker obeys. Once more changes nothing."""
    asked = {"pause_requested_at": str(time.time())}
    return (
        Change("pause", {_S.QUEUED: _S.PAUSED}, event=Event("paused")),
        Change("pause", _STILL_RUNNING, asked, Event("pause requested"), if_pausing=False),
        Change("pause", {**_STILL_RUNNING, _S.PAUSED: _S.PAUSED}),
    )


def resumed() -> tuple[Change, ...]:
    """From its pause, or from a request for one that its worker has not obeyed yet."""
    withdrawn = {"pause_requested_at": ""}
    return (
        Change("resume", {_S.PAUSED: _S.QUEUED}, _IN_FRONT, Event("resumed")),
        Change("resume", _STILL_RUNNING, withdrawn, Event("pause withdrawn"), if_pausing=True),
    )


def stopped() -> tuple[Change, ...]:
    """Its worker has obeyed, if it is still meant to."""
    return _left(Event("cancelled"), Event("paused"), Event("handed back: no pause is wanted now"))


def released(reason: str, *, is_lost: bool) -> tuple[Change, ...]:
    """Nobody works on it any more, for ``reason``; if its worker is lost, that counts."""
    level = "warn" if is_lost else "info"
    ended, paused = (Event(f"{word}: {reason}", level) for word in ("cancelled", "paused"))
    return _left(ended, paused, Event(reason, level), counted=("num_lost",) if is_lost else ())


def short_of_memory(reason: str) -> tuple[Change, ...]:
    """Its worker has given it up, for another one to try with half the batch."""
    warning = Event(reason, "warn")
    return _left(Event("cancelled"), Event(f"paused: {reason}", "warn"), warning, _HALVED)


def _left(
    cancelled: Event,
    paused: Event,
    queued: Event,
    also: Mapping[str, str] = MappingProxyType({}),
    counted: tuple[str, ...] = (),
) -> tuple[Change, ...]:
    fields = {**dict.fromkeys(_OF_ONE_ATTEMPT, ""), **also}
    return (
        Change("leave it", {_S.CANCELLING: _S.CANCELLED}, event=cancelled),
        Change("leave it", {_S.RUNNING: _S.PAUSED}, fields, paused, if_pausing=True),
        Change("leave it", {_S.RUNNING: _S.QUEUED}, fields | _IN_FRONT, queued, counted),
        Change("leave it", {_S.QUEUED: _S.QUEUED}, fields, queued, counted),  # had not begun
    )


def started(worker: str) -> tuple[Change, ...]:
    """By its next worker, or by one that takes it from a worker that died without a word."""
    fields = dict.fromkeys(_OF_ONE_ATTEMPT, "")
    fields |= {"worker": worker, "started_at": str(time.time())}
    lost = Event(f"taken over by {worker}", level="warn")
    both = ("attempt", "num_lost")
    return (
        Change("start", {_S.QUEUED: _S.RUNNING}, fields, Event(f"started by {worker}"), both[:1]),
        Change("start", _STILL_RUNNING, fields, lost, both, if_pausing=False),
    )


def confirmed() -> Change:
    """Nothing happens, which only whoever works on the job may ask for."""
    return Change("work on it", _WORKING)


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


def warned(message: str) -> Change:
    return Change("work on it", _WORKING, event=Event(message, level="warn"))


def succeeded(pruned_model: str) -> Change:
    fields = {"pruned_model": pruned_model}
    event = Event(f"published {pruned_model}")
    return Change("succeed", _to(JobStatus.SUCCEEDED), fields, event=event)


def failed(error: JobError) -> Change:
    fields = {"error": json.dumps(asdict(error))}
    event = Event(error.message, level="error", data=asdict(error))
    return Change("fail", _to(JobStatus.FAILED), fields, event=event)
