"""What a job has published: the checkpoint, the names it can be served under, and its files."""

import hashlib
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse

from app.catalog import Catalog
from app.deps import Services, ServicesDep
from app.errors import described
from app.job_schemas import CheckpointFileView, CheckpointList, CheckpointView
from pruning.checkpoints import (
    MANIFEST,
    CheckpointCorrupt,
    CheckpointNotFound,
    CheckpointStore,
    FileEntry,
    Manifest,
)
from pruning.jobs import JobNotFound, JobStoreUnavailable

router = APIRouter(prefix="/prune-jobs/{job_id}/checkpoints", tags=["prune jobs"])

_ETAG = {"ETag": {"description": "The file's sha256, quoted.", "schema": {"type": "string"}}}
_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_DOWNLOAD: dict[int | str, dict[str, Any]] = {
    **described(JobNotFound, CheckpointNotFound, CheckpointCorrupt, JobStoreUnavailable),
    200: {"description": "The file.", "headers": _ETAG, "content": _BYTES},
    304: {"description": "The file is the one that If-None-Match names.", "headers": _ETAG},
}


@router.get("", responses=described(JobNotFound, CheckpointCorrupt, JobStoreUnavailable))
def list_checkpoints(job_id: str, services: ServicesDep, request: Request) -> CheckpointList:
    """The job's published checkpoint, or none while there is none."""
    try:
        path, manifest = _published(job_id, services)
    except CheckpointNotFound:
        return CheckpointList(data=[])
    files = [
        CheckpointFileView(
            name=name,
            num_bytes=entry.num_bytes,
            sha256=entry.sha256,
            url=request.url_for("get_checkpoint_file", job_id=job_id, file=name).path,
        )
        for name, entry in _files(path, manifest).items()
    ]
    checkpoint = CheckpointView(
        id=manifest.name,
        created_at=manifest.created_at,
        num_blocks=len(manifest.keep),
        removed_blocks=list(manifest.removed_blocks),
        num_parameters=manifest.num_parameters,
        variants=_servable(manifest, services.registry.catalog),
        files=files,
    )
    return CheckpointList(data=[checkpoint])


@router.get("/{file}", name="get_checkpoint_file", response_class=FileResponse, responses=_DOWNLOAD)
def get_file(job_id: str, file: str, services: ServicesDep, request: Request) -> Response:
    """One file as it was published; its ETag is its sha256, and parts of it can be asked for."""
    path, manifest = _published(job_id, services)
    entry = _files(path, manifest).get(file)
    if entry is None or Path(file).name != file:
        raise CheckpointNotFound(
            f"{manifest.name} has no file {file[:128]!r}: the list of the job's checkpoints names "
            "them all"
        )
    if not (path / file).is_file():
        raise CheckpointCorrupt(f"{manifest.name}: {file} is missing; prune again")
    headers = {"ETag": f'"{entry.sha256}"'}
    known = request.headers.get("if-none-match", "")
    if headers["ETag"] in (tag.strip() for tag in known.split(",")):
        return Response(status_code=304, headers=headers)
    return FileResponse(path / file, headers=headers, filename=file)


def _published(job_id: str, services: Services) -> tuple[Path, Manifest]:
    """Raises ``JobNotFound``, ``CheckpointNotFound`` or ``CheckpointCorrupt``."""
    name = services.jobs.get(job_id).checkpoint_name
    checkpoints = CheckpointStore(services.settings.checkpoints_dir)
    return checkpoints.path(name), checkpoints.manifest(name)


def _files(path: Path, manifest: Manifest) -> dict[str, FileEntry]:
    """Those of the manifest, and the manifest itself."""
    text = (path / MANIFEST).read_bytes()
    own = FileEntry(len(text), hashlib.sha256(text).hexdigest())
    return {**manifest.files, MANIFEST: own}


def _servable(manifest: Manifest, catalog: Catalog) -> list[str]:
    """Names of the prefixes: all of them beside the dense parent, without it the whole alone."""
    names = [f"{manifest.name}-{k}" for k in range(1, len(manifest.removed_blocks) + 1)]
    entries = [catalog.resolve(name) for name in names]
    return [entry.name for entry in entries if entry.is_view or entry.is_whole_checkpoint]
