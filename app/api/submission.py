"""From the body of a request to a waiting job, or to what such a job would need.

What can never be done is refused here, not hours later.

The folder of texts that jobs may name: no file outside of it is read for a client.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from app.api.deps import Services
from app.api.schemas.jobs import CalibrationBody, PruneJobBody, SourceBody, WebhookBody
from app.auth.keys import caller
from app.config import ServeSettings
from app.webhooks.target import WebhooksOff, address_rule, check
from pruning.jobs.estimate import (
    DiskTooSmall,
    Duration,
    Footprint,
    duration,
    footprint,
    is_upper_bound,
    wait_s,
)
from pruning.jobs.job import Job, JobStatus, Webhook
from pruning.jobs.redis import JobStoreUnavailable
from pruning.jobs.store import Claim, QueueFull, Terms
from pruning.models.quantize import check_quantizable
from pruning.models.safetensors_files import weight_sizes
from pruning.spec.gate import Gate
from pruning.spec.prune import Calibration, CalibrationMix, CalibrationSpec, InvalidSpec, PruneSpec

_SHOWN = 256  # characters of a name in a message


@dataclass(frozen=True)
class TextsFolder:
    path: Path
    max_bytes: int  # of a file in it: a worker reads all of it into memory

    def file(self, name: str) -> Path:
        """Where the text of this name is, links resolved.

        Raises ``InvalidSpec`` for one that is not in the folder, or larger than is allowed.
        """
        if "\0" in name:
            raise InvalidSpec("calibration.path", "the path contains a null character")
        path = self.path / name
        num_bytes = _num_bytes(path)
        if num_bytes is None or not path.resolve().is_relative_to(self.path.resolve()):
            raise InvalidSpec(
                "calibration.path",
                f"no file {name[:_SHOWN]!r} in the texts folder of the service: put it there first",
            )
        if num_bytes > self.max_bytes:
            raise InvalidSpec(
                "calibration.path",
                f"{name[:_SHOWN]!r} has {num_bytes} bytes, where SLEB_MAX_TEXT_BYTES allows "
                f"{self.max_bytes}: a part of it is enough for calibration",
            )
        return path.resolve()


def _num_bytes(path: Path) -> int | None:
    """None for what is no file, whatever else it is."""
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:  # its name is too long, or it may not be looked at
        return None


_JUDGED_BY = 100  # of the newest jobs


@dataclass(frozen=True)
class Submitted:
    """The job as it was when it was created, now or for an earlier request with the same key."""

    job: Job
    is_replayed: bool


@dataclass(frozen=True)
class Estimate:
    model: str
    num_evaluations: int
    is_upper_bound: bool
    duration: Duration
    footprint: Footprint
    free_disk_bytes: int


@dataclass(frozen=True)
class _Checked:
    spec: PruneSpec
    webhook: Webhook | None
    num_evaluations: int
    footprint: Footprint
    free_disk_bytes: int


def submit(body: PruneJobBody, services: Services, key: str | None) -> Submitted:
    """Create the job and bring it to the workers. What is refused leaves nothing, not even its key.

    Raises what the spec and the model's directory raise, ``DiskTooSmall``, ``InvalidWebhook``,
    ``WebhooksOff``, ``QueueFull``, what ``IdempotencyKeys.claim`` raises, and ``JobNotFound`` if
    the key's job was deleted.
    """
    claim = None if key is None else services.idempotency.claim(_own(key), _fingerprint(body))
    if isinstance(claim, str):
        return Submitted(_as_created(services.jobs.get(claim)), is_replayed=True)
    with _released_if_refused(services, claim):
        checked = _checked(body, services)
        terms = Terms(services.settings.max_queued_jobs, claim)
        try:
            job = services.jobs.create(
                checked.spec, body.metadata, terms, body.priority, checked.webhook
            )
        except QueueFull as full:
            full.retry_after_s = _wait_s(services)
            raise
    services.queue.enqueue(job.id)
    return Submitted(job, is_replayed=False)


def estimate(body: PruneJobBody, services: Services) -> Estimate:
    """What the job would need; raises as ``submit`` does, but for key and queue."""
    checked = _checked(body, services)
    spec = checked.spec
    succeeded = services.jobs.list(_JUDGED_BY, status=JobStatus.SUCCEEDED).jobs
    return Estimate(
        model=spec.model,
        num_evaluations=checked.num_evaluations,
        is_upper_bound=is_upper_bound(spec),
        duration=duration(spec, checked.num_evaluations, succeeded),
        footprint=checked.footprint,
        free_disk_bytes=checked.free_disk_bytes,
    )


def _own(key: str) -> str:
    """Two clients that think of the same key get a job each; it has no character like this one."""
    name = caller.get()
    return key if name is None else f"{name}\0{key}"


def _fingerprint(body: PruneJobBody) -> str:
    """Of what the body says, however it is written and whichever defaults it leaves out."""
    canonical = json.dumps(body.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _as_created(job: Job) -> Job:
    """An answer that is given again says what it said first."""
    created = (job.id, job.model, job.spec, JobStatus.QUEUED, job.created_at)
    return Job(
        *created,
        priority=job.priority,
        status_since=job.created_at,
        metadata=job.metadata,
        webhook=job.webhook,
    )


@contextmanager
def _released_if_refused(services: Services, claim: Claim | None) -> Iterator[None]:
    try:
        yield
    except Exception:
        if claim is not None:
            with suppress(JobStoreUnavailable):  # then it runs out by itself
                services.idempotency.release(claim)
        raise


def _wait_s(services: Services) -> float:
    running = services.jobs.list(_JUDGED_BY, status=JobStatus.RUNNING).jobs
    succeeded = services.jobs.list(_JUDGED_BY, status=JobStatus.SUCCEEDED).jobs
    return wait_s(running, succeeded, time.time())


def _checked(body: PruneJobBody, services: Services) -> _Checked:
    spec = _spec(body, _texts_of(services.settings))
    info = services.models.inspect(spec.model)
    if spec.quantize is not None:
        check_quantizable(info.model_type)
    num_evaluations = spec.num_evaluations(info.num_blocks)
    if info.max_positions is not None and spec.calibration.seqlen > info.max_positions:
        raise InvalidSpec(
            "calibration.seqlen",
            f"seqlen={spec.calibration.seqlen} is beyond the {info.max_positions} positions of "
            f"{spec.model}",
        )
    needed = footprint(spec, info, weight_sizes(info.path))
    free_bytes = shutil.disk_usage(_nearest(services.settings.checkpoints_dir)).free
    if needed.least_checkpoint_bytes > free_bytes:
        raise DiskTooSmall(needed.least_checkpoint_bytes, free_bytes)
    webhook = None if body.webhook is None else _webhook(body.webhook, services.settings)
    return _Checked(spec, webhook, num_evaluations, needed, free_bytes)


def _webhook(body: WebhookBody, settings: ServeSettings) -> Webhook:
    if settings.webhook_secret is None:
        raise WebhooksOff
    check(body.url, address_rule(is_private_allowed=settings.webhook_allow_private))
    return Webhook(body.url, tuple(dict.fromkeys(body.events)))


def _nearest(path: Path) -> Path:
    """The path itself or what it will be made in."""
    return next(parent for parent in (path, *path.parents) if parent.is_dir())


def _texts_of(settings: ServeSettings) -> TextsFolder:
    return TextsFolder(settings.texts_dir, settings.max_text_bytes)


def _spec(body: PruneJobBody, texts: TextsFolder) -> PruneSpec:
    return PruneSpec(
        model=body.model,
        num_remove=body.num_remove,
        sparsity=body.sparsity,
        max_perplexity_ratio=body.max_perplexity_ratio,
        target_speedup=body.target_speedup,
        calibration=_calibration(body.calibration, texts),
        protect_first=body.protect_first,
        protect_last=body.protect_last,
        dtype=body.dtype,
        evaluate=body.evaluate,
        metric=body.metric,
        search=body.search,
        resident=body.resident,
        gate=None if body.gate is None else Gate(**body.gate.model_dump()),
        quantize=body.quantize,
        zero_shot=body.zero_shot,
    )


def _calibration(body: CalibrationBody | list[SourceBody], texts: TextsFolder) -> Calibration:
    if isinstance(body, CalibrationBody):
        return _source(body, texts, "calibration")
    sources = [_source(source, texts, f"calibration.{at}") for at, source in enumerate(body)]
    return CalibrationMix(tuple(sources), tuple(source.weight for source in body))


def _source(body: CalibrationBody, texts: TextsFolder, param: str) -> CalibrationSpec:
    """``param`` is the dotted name of the source in the body."""
    try:
        path = None if body.path is None else str(texts.file(body.path))
        return CalibrationSpec(
            body.dataset, body.sampling, body.num_samples, body.seqlen, body.seed, path
        )
    except InvalidSpec as error:
        at = error.param.replace("calibration", param, 1)
        raise InvalidSpec(at, str(error)) from error
