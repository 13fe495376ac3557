"""Job records as Redis has them: a broken one is a failed job whose error says why."""

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from pruning.jobs.job import Job, JobError, JobStatus
from pruning.records import MAX_BYTES, InvalidRecord, check_record, check_time, reason_of, sendable
from pruning.spec.prune import PruneSpec

BROKEN = "broken_record"  # the code of its error
_MAX_BLOCK = 10_000
_TIMES = ("created_at", "status_since", "pause_requested_at", "started_at", "finished_at")

logger = logging.getLogger(__name__)


def stored_job(job_id: str, record: object) -> Job:
    """The job of a hash, or of the error that Redis has given instead of one."""
    try:
        return _parsed(job_id, record)
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        reason = reason_of(error)
    except RecursionError:
        reason = "it is nested too deeply"
    logger.warning("the record of job %s is damaged: %s", job_id, reason)
    return _broken(job_id, record, f"the record of this job is damaged: {reason}")


def numbers(texts: Iterable[object]) -> list[float]:
    """The finite numbers among values of records; all others are left out."""
    valid = []
    for text in texts:
        try:
            number = float(text)  # type: ignore[arg-type]  # whatever was stored
        except (TypeError, ValueError):
            continue
        valid += [number] if math.isfinite(number) else []
    return valid


def _parsed(job_id: str, record: object) -> Job:
    if not isinstance(record, Mapping):
        raise InvalidRecord(str(record))
    if sum(map(len, record.values())) > MAX_BYTES:
        raise InvalidRecord(f"it has more than {MAX_BYTES} bytes")
    job = Job.from_fields(texts(record))
    if job.error is not None:  # of an operating system, it may have names that are no text
        job = replace(job, error=replace(job.error, message=sendable(job.error.message)))
    check_record(job)
    for name in _TIMES:
        check_time(name, getattr(job, name))
    repaired, healed = job.repair_progress, job.heal_progress
    for name, is_so in {
        "id": job.id == job_id,
        "removed_blocks": len({*job.removed_blocks}) == len(job.removed_blocks)
        and all(0 <= block < _MAX_BLOCK for block in job.removed_blocks),
        "losses": len(job.losses) == len(job.removed_blocks),
        "progress": min(job.progress.evaluations_done, job.progress.evaluations_total) >= 0,
        "repair_steps_total": repaired is None or 0 <= repaired.steps_done <= repaired.steps_total,
        "heal_progress": healed is None or 0 <= healed.ratio <= 1,
        "estimated_finish": math.isfinite(job.estimated_finish or 0.0),
    }.items():
        if not is_so:
            raise InvalidRecord(f"{name}: inconsistent with other fields, or invalid")
    return job


def _broken(job_id: str, record: object, reason: str) -> Job:
    fields: Mapping[Any, Any] = record if isinstance(record, Mapping) else {}
    owner = fields.get(b"owner") or fields.get("owner")
    return Job(
        id=job_id,
        model="unknown",
        spec=PruneSpec("unknown", num_remove=1),
        status=JobStatus.FAILED,
        created_at=0.0,
        error=JobError(BROKEN, reason),
        owner=_text(owner) if owner else None,
    )


def texts(record: Mapping[Any, Any]) -> dict[str, str]:
    """Decode a hash."""
    return {_text(name): _text(value) for name, value in record.items()}


def _text(stored: bytes | str) -> str:
    """The client returns bytes, as RQ needs it to; a message has texts."""
    return stored.decode(errors="replace") if isinstance(stored, bytes) else stored
