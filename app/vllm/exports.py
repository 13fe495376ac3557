"""Directories that vLLM reads: models and checkpoints as they are, other depths as exports.

Exports are written by ``sleb export`` in a process of its own, and kept in a folder of bounded
size; the one that was not used for longest goes first.
"""

import asyncio
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from app.models.catalog import Catalog
from app.models.entry import ModelEntry
from app.vllm import keeper
from app.vllm.process import VllmStartFailed
from pruning.checkpoints.store import CheckpointStore

_MAX_REASON_CHARS = 1000


@dataclass(frozen=True, eq=False)
class Exports:
    """Bound to one event loop. ``environment`` is that of ``sleb export``.

    ``dtype`` is a torch name, in which vLLM computes; None: in that of the weights.
    """

    catalog: Catalog
    checkpoints: CheckpointStore
    folder: Path
    max_bytes: int
    environment: Mapping[str, str]
    dtype: str | None = None
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)

    async def directory(self, entry: ModelEntry) -> Path:
        """Of the model that the entry means. Raises ``VllmStartFailed``, and what the stores do."""
        order = entry.order
        if not entry.is_int8 and not entry.is_pruned:
            return await asyncio.to_thread(self.catalog.directory, entry.base)
        is_published = entry.is_whole_checkpoint and not entry.is_int8
        if is_published and order is not None and self._dtype_of(entry) in ("auto", order.dtype):
            return await asyncio.to_thread(self.checkpoints.directory, order.name)
        async with self._turn:
            path = self.folder / _digest(entry, self._dtype_of(entry)) / "model"
            if not path.exists():
                await self._export(entry, path)
                await asyncio.to_thread(self._make_room, path)
            os.utime(path.parent)
            return path

    def _dtype_of(self, entry: ModelEntry) -> str:
        """In which its files have the weights that our engine computes with.

        Only a repair of dense weights is rounded when it is written.
        """
        if entry.view_repair is None or entry.is_int8:
            return "auto"
        return self.dtype or entry.dtype or "auto"

    async def _export(self, entry: ModelEntry, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        export = [sys.executable, "-m", "app", "export", entry.pinned_name, str(path)]
        export += ["--dtype", self._dtype_of(entry)]
        scratch = path.parent / ".scratch"  # which the keeper removes
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", keeper.__name__, str(scratch), *export),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=dict(self.environment),
            start_new_session=True,
        )
        assert process.stderr is not None
        try:
            said = await process.stderr.read()
            code = await process.wait()
        finally:
            if process.stdin is not None:
                process.stdin.close()
        if code != 0 and not path.exists():  # another replica may have exported it
            shutil.rmtree(path.parent, ignore_errors=True)
            reason = said.decode(errors="replace").strip()[-_MAX_REASON_CHARS:]
            raise VllmStartFailed(f"{entry.name!r} cannot be exported for vLLM: {reason}")

    def _make_room(self, newest: Path) -> None:
        kept = sorted(self.folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        sizes = {path: _num_bytes(path) for path in kept}
        total = sizes[newest.parent]
        for path in kept:
            if path != newest.parent:
                total += sizes[path]
                if total > self.max_bytes:
                    shutil.rmtree(path, ignore_errors=True)


def _digest(entry: ModelEntry, dtype: str) -> str:
    """Another one where the weights are others."""
    fingerprint = entry.order.parent_fingerprint if entry.order else None
    repair = entry.repair.sha256 if entry.repair else None
    what = f"{entry.pinned_name} {entry.removed_blocks} {fingerprint} {repair} {dtype}"
    return sha256(what.encode()).hexdigest()[:16]


def _num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
