"""The checkpoint of a job: its prefixes, which can be served by name, and its files."""

import dataclasses
import hashlib
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field
from starlette.background import BackgroundTask
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from app.api.deps import JobId, ServicesDep
from app.api.formats.models import domain_views, repair_view
from app.api.openapi import responses_for
from app.api.problems import Problem, problem_response
from app.api.schemas.bodies import kind, view_of
from app.api.schemas.generate import DomainView, MeasuredSpeedupView, RepairView
from app.models.catalog import Catalog
from app.models.entry import ModelEntry, RemovalOrder
from pruning.checkpoints.store import (
    MANIFEST,
    CheckpointCorrupt,
    CheckpointNotFound,
    CheckpointStore,
    FileEntry,
    Manifest,
)
from pruning.jobs.store import READ_RAISES
from pruning.models.names import healed_name

router = APIRouter(prefix="/prune-jobs/{job_id}/checkpoints", tags=["prune jobs"])

FileName = Annotated[
    str,
    PathParameter(description="Path of the file within the checkpoint, e.g. `model.safetensors`."),
]

_HEALED = healed_name("") + "/"  # in front of the names of files
_ETAG = {"ETag": {"description": "SHA-256 of the file, quoted.", "schema": {"type": "string"}}}
_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
_RANGES: Mapping[int, Problem] = {
    400: Problem(
        "range-malformed",
        "Malformed Range header.",
        400,
        "Expected bytes=FIRST-LAST, bytes=FIRST- or bytes=-LENGTH; byte positions start at 0.",
    ),
    416: Problem(
        "range-not-satisfiable",
        "Range not satisfiable.",
        416,
        "The range starts beyond the end of the file; see Content-Range for its size.",
    ),
}
_DOWNLOAD: dict[int | str, dict[str, Any]] = {
    **responses_for(*READ_RAISES, CheckpointNotFound, CheckpointCorrupt),
    **{
        status: {"description": problem.title, "content": _PROBLEM}
        for status, problem in _RANGES.items()
    },
    200: {"description": "The file.", "headers": _ETAG, "content": _BYTES},
    206: {
        "description": "The part of the file that Range selects.",
        "headers": _ETAG,
        "content": _BYTES,
    },
    304: {"description": "The file matches If-None-Match.", "headers": _ETAG},
}


class CheckpointFileView(BaseModel):
    name: str = Field(description="Path within the checkpoint.")
    num_bytes: int = Field(description="Size of the file in bytes.")
    sha256: str = Field(description="SHA-256 of the file.")
    url: str = Field(description="Download URL.")


class PrefixView(BaseModel):
    """The dense model without the first blocks of a removal order."""

    model: str = Field(description="Model name for generation requests.")
    num_removed: int = Field(description="Number of removed blocks.")
    removed_block: int = Field(description="Index of the last removed block.")
    loss: float = Field(
        description="Loss without repair on the calibration text, in nats per token."
    )
    perplexity: float | None = Field(
        description="Perplexity on the text of evaluated_on; null until evaluated."
    )
    domains: list[DomainView] = Field(description="Quality by domain; empty until evaluated.")
    predicted_speedup: float | None = Field(
        description="Predicted speed-up of a decode step at batch size 1, from block times "
        "measured on the job's machine; null until published."
    )
    measured_speedup: MeasuredSpeedupView | None = Field(
        description="Measured speed-up of any variant with the same number of blocks; null if none "
        "was measured."
    )
    repair: RepairView | None = Field(
        description="Repair of the variant; null until published, or without repair."
    )


class CheckpointView(BaseModel):
    """The published checkpoint of a job. Before publication, it has prefixes but no files."""

    id: str = Field(description="Name of the checkpoint.")
    object: Literal["prune_job.checkpoint"] = kind("prune_job.checkpoint")
    is_published: bool = Field(description="Whether all files are complete.")
    created_at: float | None = Field(
        description="Publication time, in seconds since the epoch; null until published."
    )
    num_blocks: int = Field(description="Number of remaining blocks.")
    removed_blocks: list[int] = Field(description="Removed blocks, in order of removal.")
    num_parameters: int | None = Field(description="Number of parameters; null until published.")
    evaluated_on: str | None = Field(
        description="Evaluation text, with the number and length of its windows."
    )
    prefixes: list[PrefixView] = Field(description="Prefixes that can be served now.")
    files: list[CheckpointFileView] = Field(
        description="Files of the checkpoint; empty until published."
    )


class CheckpointList(BaseModel):
    object: Literal["list"] = kind("list")
    data: list[CheckpointView] = Field(description="The checkpoint of the job, if it has one.")


class Download(FileResponse):
    """A file, whole or in part (RFC 9110, 14). A ``Range`` that cannot be served is a problem."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_replaced = False

        async def replace(message: Message) -> None:
            nonlocal is_replaced
            if (status := message.get("status", 0)) in _RANGES:
                is_replaced = True
                size = Headers(raw=message["headers"]).get("content-range")
                headers = {"Content-Range": size} if size else {}
                problem = dataclasses.replace(_RANGES[status], headers=headers)
                await problem_response(problem, scope["path"])(scope, receive, send)
            elif not is_replaced:
                await send(message)

        await super().__call__(scope, receive, replace)


@router.get("", responses=responses_for(*READ_RAISES, CheckpointCorrupt))
def list_prune_job_checkpoints(
    job_id: JobId, services: ServicesDep, request: Request
) -> CheckpointList:
    """List the checkpoint of a job. Before it is published, the list has the prefixes found so
    far.

    A prefix can be served as soon as it is found, and keeps its name. The prefixes of a cancelled
    or failed job remain. The healed checkpoint of a job is listed after the one it was healed
    from.
    """
    name = services.jobs.store.get(job_id).checkpoint_name
    views = [
        _checkpoint_view(each, job_id, services.checkpoints, services.catalog, request)
        for each in (name, healed_name(name))
    ]
    return CheckpointList(data=[view for view in views if view is not None])


def _checkpoint_view(
    name: str, job_id: str, checkpoints: CheckpointStore, catalog: Catalog, request: Request
) -> CheckpointView | None:
    files: Mapping[str, FileEntry] = {}
    try:
        manifest = checkpoints.manifest(name)
        order: RemovalOrder | None = RemovalOrder.of_checkpoint(manifest)
        files = _files(checkpoints.content(name), manifest)
    except CheckpointNotFound:
        order = catalog.order(name)
    if order is None:
        return None
    folder = _HEALED if order.is_healed else ""
    return view_of(
        CheckpointView,
        order,
        id=order.name,
        created_at=order.created_at if order.is_published else None,
        num_blocks=order.num_blocks - order.depth,
        evaluated_on=order.quality.evaluated_on or None,
        prefixes=[_prefix_view(entry, catalog) for entry in catalog.prefixes(order)],
        files=[
            CheckpointFileView(
                name=file,
                num_bytes=entry.num_bytes,
                sha256=entry.sha256,
                url=request.url_for(
                    "get_checkpoint_file", job_id=job_id, file=f"{folder}{file}"
                ).path,
            )
            for file, entry in files.items()
        ],
    )


@router.get("/{file:path}", response_class=Download, responses=_DOWNLOAD)
def get_checkpoint_file(
    job_id: JobId, file: FileName, services: ServicesDep, request: Request
) -> Response:
    """Download one published file. The ETag is its SHA-256; Range requests are supported.

    Files of the healed checkpoint have the prefix ``+healed/``.
    """
    name = services.jobs.store.get(job_id).checkpoint_name
    if file.startswith(_HEALED):
        name, file = healed_name(name), file.removeprefix(_HEALED)
    checkpoints = services.checkpoints
    manifest = checkpoints.manifest(name)
    entry = _files(checkpoints.content(name), manifest).get(file)
    if entry is None or ".." in Path(file).parts or Path(file).is_absolute():
        raise CheckpointNotFound(
            f"{manifest.name} has no file {file[:128]!r}: see the list of the job's checkpoints"
        )
    headers = {"ETag": f'"{entry.sha256}"'}
    known = request.headers.get("if-none-match", "")
    if headers["ETag"] in (tag.strip() for tag in known.split(",")):
        return Response(status_code=304, headers=headers)
    holding = ExitStack()
    path = holding.enter_context(checkpoints.held(name, None if file == MANIFEST else [file]))
    fault = None if (path / file).is_file() else "is missing"
    if not (path / file).resolve().is_relative_to(path.resolve()):
        fault = "is a symbolic link out of the checkpoint"
    if fault is not None:
        holding.close()
        raise CheckpointCorrupt(f"{manifest.name}: {file} {fault}; prune the model again")
    return Download(
        path / file,
        media_type="application/octet-stream",
        headers=headers,
        filename=Path(file).name,
        background=BackgroundTask(holding.close),
    )


def _files(content: bytes, manifest: Manifest) -> dict[str, FileEntry]:
    """Return the files of the manifest and the manifest itself."""
    own = FileEntry(len(content), hashlib.sha256(content).hexdigest())
    return {**manifest.files, MANIFEST: own}


def _prefix_view(entry: ModelEntry, catalog: Catalog) -> PrefixView:
    assert entry.order is not None
    return view_of(
        PrefixView,
        entry,
        model=entry.name,
        removed_block=entry.removed_blocks[-1],
        loss=entry.order.quality.losses[entry.num_removed],
        domains=domain_views(entry),
        measured_speedup=catalog.measured_speedup(entry),
        repair=repair_view(entry),
    )
