"""Each thing that can happen to a job, as the change that it makes to the record."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType

from pruning.jobs.job import (
    RETRIED,
    TRANSITIONS,
    HealProgress,
    JobError,
    JobStatus,
    Phase,
    Sink,
    SinkState,
)
from pruning.jobs.keys import SINK
from pruning.jobs.script import Change, Event
from pruning.plural import counted
from pruning.removal import Removal
from pruning.search.state import (
    ScoredCandidate,
    SearchPlan,
    decided_field,
    obsolete_fields,
    plan_field,
    round_name,
    scored_field,
)
from pruning.spec.prune import PruneSpec

_ATTEMPT_FIELDS = (
    "worker",
    "phase",
    "phase_started_at",
    "search_started_at",
    "evaluated_at",
    "repair_steps_done",
    "repair_steps_total",
    "repaired_at",
    "heal_progress",
    "healed_at",
)
_PLAN_FIELDS = ("removed_blocks", "losses", "dense_loss")
_IN_FRONT = {"in_front": "1"}  # a job that returns to the queue precedes others of its priority
_LOST_IN = {"lost_in": "phase"}
_HALVED = {"num_halvings": "1"}
_PROGRESSED = {"num_lost": "0"}  # a later death of a worker has another cause
_S = JobStatus
_WORKING = {status: status for status in (_S.RUNNING, _S.CANCELLING)}
_STILL_RUNNING = {_S.RUNNING: _S.RUNNING}


def _moves_to(wanted: JobStatus) -> Mapping[JobStatus, JobStatus]:
    return {status: wanted for status, next_ in TRANSITIONS.items() if wanted in next_}


def cancelling() -> Change:
    moves = {
        JobStatus.QUEUED: JobStatus.CANCELLED,
        JobStatus.PAUSED: JobStatus.CANCELLED,
        JobStatus.RUNNING: JobStatus.CANCELLING,
        JobStatus.CANCELLING: JobStatus.CANCELLING,
    }
    return Change("cancel", moves, event=Event("cancel requested"))


def pausing() -> tuple[Change, ...]:
    """A running job keeps running until its worker stops. Repeating the request changes nothing."""
    requested = {"pause_requested_at": str(time.time())}
    return (
        Change("pause", {_S.QUEUED: _S.PAUSED}, event=Event("paused")),
        Change("pause", _STILL_RUNNING, requested, Event("pause requested"), if_pausing=False),
        Change("pause", {**_STILL_RUNNING, _S.PAUSED: _S.PAUSED}),
    )


def resumed() -> tuple[Change, ...]:
    """A paused job is queued; a pause request that is still pending is withdrawn."""
    withdrawn = {"pause_requested_at": ""}
    return (
        Change("resume", {_S.PAUSED: _S.QUEUED}, _IN_FRONT, Event("resumed")),
        Change("resume", _STILL_RUNNING, withdrawn, Event("pause withdrawn"), if_pausing=True),
    )


def retried(spec: PruneSpec, checkpoint_bytes: int) -> Change:
    """A job that has failed or was cancelled is queued with this spec, and keeps its search."""
    fields = dict.fromkeys((*_ATTEMPT_FIELDS, "error", "finished_at"), "")
    fields |= {"num_lost": "0", "num_halvings": "0", "checkpoint_bytes": str(checkpoint_bytes)}
    fields |= {"spec": json.dumps(spec.to_dict()), **_IN_FRONT}
    moves = dict.fromkeys(RETRIED, _S.QUEUED)
    return Change("retry", moves, fields, Event("retried"))


def stopped() -> tuple[Change, ...]:
    """The worker has stopped as requested. A job whose pause was withdrawn is queued again."""
    return _requeued(Event("cancelled"), Event("paused"), Event("queued: the pause was withdrawn"))


def released(reason: str, *, is_lost: bool) -> tuple[Change, ...]:
    """The worker is gone, for ``reason``. ``is_lost`` counts it as lost with the job."""
    level = "warn" if is_lost else "info"
    cancelled, paused = (Event(f"{word}: {reason}", level) for word in ("cancelled", "paused"))
    counters, copied = (("num_lost",), _LOST_IN) if is_lost else ((), {})
    return _requeued(cancelled, paused, Event(reason, level), {}, counters, copied)


def short_of_memory(reason: str) -> tuple[Change, ...]:
    """The worker has given the job up, to be tried again with half the batch."""
    warning = Event(reason, "warn")
    return _requeued(Event("cancelled"), Event(f"paused: {reason}", "warn"), warning, _HALVED)


def _requeued(
    cancelled: Event,
    paused: Event,
    queued: Event,
    also: Mapping[str, str] = MappingProxyType({}),
    incremented: tuple[str, ...] = (),
    copied: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Change, ...]:
    """A job that no worker has any more: cancelled or paused if that was requested, else queued."""
    fields = {**dict.fromkeys(_ATTEMPT_FIELDS, ""), **also}
    return (
        Change("requeue", {_S.CANCELLING: _S.CANCELLED}, event=cancelled),
        Change("requeue", {_S.RUNNING: _S.PAUSED}, fields, paused, if_pausing=True),
        Change(
            "requeue",
            {_S.RUNNING: _S.QUEUED},
            fields | _IN_FRONT,
            queued,
            incremented,
            copied=copied,
        ),
        Change("requeue", {_S.QUEUED: _S.QUEUED}, fields, queued, incremented),  # not yet started
    )


def started(worker: str) -> tuple[Change, ...]:
    """A worker takes the job from the queue, or from a worker that died unnoticed."""
    fields = dict.fromkeys(_ATTEMPT_FIELDS, "")
    fields |= {"worker": worker, "started_at": str(time.time())}
    started_ = Event(f"started by {worker}")
    taken_over = Event(f"taken over by {worker}", level="warn")
    counters = ("attempt", "num_lost")
    return (
        Change("start", {_S.QUEUED: _S.RUNNING}, fields, started_, ("attempt",)),
        Change(
            "start",
            _STILL_RUNNING,
            fields,
            taken_over,
            counters,
            copied=_LOST_IN,
            if_pausing=False,
        ),
    )


def confirmed() -> Change:
    """Changes nothing, and is allowed only to the worker that has the job."""
    return Change("update", _WORKING)


def phase_begun(phase: Phase) -> Change:
    event = Event(f"phase {phase}", data={"phase": phase.value})
    fields = {"phase": phase.value, "phase_started_at": str(time.time())}
    return Change("update", _WORKING, fields, event=event)


def searching(plan: SearchPlan, done: int, total: int, *, is_anew: bool = False) -> Change:
    """The search starts after ``done`` of ``total`` evaluations. ``is_anew`` clears its state."""
    fields = {
        "evaluations_done": str(done),
        "evaluations_total": str(total),
        "evaluations_before": str(done),
        "search_started_at": str(time.time()),
    }
    if is_anew:
        fields |= dict.fromkeys(_PLAN_FIELDS, "")
    data = {"evaluations_done": done, "evaluations_total": total}
    message = (
        f"search resumes after {done} of {counted(total, 'evaluation')}"
        if done
        else "search starts"
    )
    event = Event(message, type="metrics", data=data)
    search = plan_field(plan)
    return Change("update", _WORKING, fields, event, search=search, clears_search=is_anew)


def evaluated(
    done: int, total: int, scored: Sequence[ScoredCandidate] = (), before: int | None = None
) -> Change:
    """Candidates are evaluated, after ``before``."""
    data = {"evaluations_done": done, "evaluations_total": total}
    fields = {name: str(value) for name, value in data.items()} | {"evaluated_at": str(time.time())}
    search: dict[str, str] = {}
    for candidate in scored:
        search |= scored_field(candidate)
    if scored:
        fields |= _PROGRESSED
    before = done - 1 if before is None else before
    event = _step(data, before, f"{done} of {counted(total, 'evaluation')}")
    return Change("update", _WORKING, fields, event, search=search)


def removed(removals: Sequence[Removal]) -> Change:
    """A block is removed. ``removals`` are all so far, so that repeating the write is harmless."""
    last = removals[-1]
    data = asdict(last)
    del data["scores"], data["num_windows"]  # too long for an event; in removal.json
    event = Event(f"removed block {last.block}", type="metrics", data=data)
    search: dict[str, str] = {}
    for removal in removals:
        search |= decided_field(round_name(removal.step), removal)
    return Change(
        "update",
        _WORKING,
        {
            "removed_blocks": " ".join(str(removal.block) for removal in removals),
            "losses": " ".join(str(removal.loss) for removal in removals),
            "dense_loss": str(last.dense_loss),
            **_PROGRESSED,
        },
        event=event,
        search=search,
        search_removed=obsolete_fields(round_name(last.step), last),
    )


def repairing(done: int, total: int) -> Change:
    """``done`` of ``total`` steps of the repair are done. A later worker repeats all of them."""
    data = {"repair_steps_done": done, "repair_steps_total": total}
    fields = {name: str(value) for name, value in data.items()} | {"repaired_at": str(time.time())}
    event = _step(data, done - 1, f"repair: {done} of {counted(total, 'step')}")
    return Change("update", _WORKING, fields, event)


def healing(progress: HealProgress, *, is_check: bool) -> Change:
    """A step of the healing is made. Only checks on held-out text are events.

    A later worker goes on where the state of the training was saved.
    """
    data = asdict(progress)
    fields = {"heal_progress": json.dumps(data), "healed_at": str(time.time())}
    held_out = "" if progress.held_out_loss is None else f"{progress.held_out_loss:.4f}"
    message = (
        f"{progress.training}: {progress.num_tokens} tokens, loss {progress.loss:.4f}, "
        f"held-out loss {held_out or 'not measured'}"
    )
    event = Event(message, type="metrics", data={"heal": data}) if is_check else None
    return Change("update", _WORKING, fields | _PROGRESSED, event=event)


def _step(data: Mapping[str, int], before: int, message: str) -> Event | None:
    """The event of ``data``, which is done and the total; there may be thousands of steps.

    None unless that is another whole percent than ``before``.
    """
    done, total = data.values()
    is_news = total > 0 and done * 100 // total > before * 100 // total
    return Event(message, type="metrics", data=data) if is_news else None


def warned(message: str) -> Change:
    return Change("update", _WORKING, event=Event(message, level="warn"))


def succeeded(pruned_model: str, sinks: Sequence[Sink] = ()) -> Change:
    """The model is published, and due to be sent to these sinks."""
    waiting = json.dumps(asdict(SinkState(is_sent=False, num_attempts=0, at=time.time())))
    fields = {"pruned_model": pruned_model, **{sink.field: waiting for sink in sinks}}
    due = tuple(SINK.format(sink=sink) for sink in sinks)
    event = Event(f"published {pruned_model}")
    return Change("succeed", _moves_to(JobStatus.SUCCEEDED), fields, event=event, due=due)


def failed(error: JobError) -> Change:
    fields = {"error": json.dumps(asdict(error))}
    event = Event(error.message, level="error", data=asdict(error))
    return Change("fail", _moves_to(JobStatus.FAILED), fields, event=event)
