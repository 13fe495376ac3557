"""The vLLM servers of this service: one for each model, few at once, the memory divided before.

They read models and checkpoints as they are, and other depths as exports.
"""

import asyncio
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp

import torch
from transformers import PreTrainedTokenizerBase

from app.config import ServeSettings
from app.models.catalog import Catalog
from app.models.entry import ModelEntry
from app.models.external import ExternalModel
from app.vllm import keeper
from app.vllm.options import VllmOptions
from app.vllm.process import Facts, Launch, VllmProcess, VllmStartFailed
from app.vllm.server import ServerState, VllmServer, VllmUnavailable
from pruning.checkpoints.store import CheckpointStore
from pruning.config import child_environment
from pruning.models.architectures import ARCHITECTURES, UnsupportedConfig
from pruning.models.memory import free_bytes, total_bytes
from pruning.models.opening import Openings
from pruning.models.store import load_tokenizer, pick_device
from pruning.plural import counted

_SHORT_DIR = "/tmp"  # noqa: S108 - the path of a socket has at most 103 bytes
_KV_SHARE = 4  # of the free memory of a CPU, as the own engine takes
_BUSY_S = 10.0  # until a refused client may ask again
_SILENCE_S = 600.0
_CONNECT_S = 5.0
_MAX_REASON_CHARS = 1000


@dataclass(frozen=True)
class VllmModel:
    """A model that a server of ours is ready to generate with."""

    model: ExternalModel
    tokenizer: PreTrainedTokenizerBase
    max_len: int  # of prompt and output together
    version: str  # of vLLM
    args: tuple[str, ...]  # that the settings give it

    @property
    def max_scored(self) -> int:
        """The longest prompt, as vLLM generates at least one token."""
        return self.max_len - 1


@dataclass(frozen=True, eq=False)
class Exports:
    """What vLLM reads, written by ``sleb export`` in this environment, in a folder of bounded size.

    The one that was not used for longest goes first. ``dtype`` is a torch name, in which vLLM
    computes; None: in that of the weights. Bound to one event loop.
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
        export += ["--dtype", self._dtype_of(entry), "--accept"]  # a +int8 name was asked for
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


class VllmServers:
    """Bound to one event loop. ``num_open`` counts the open requests of a model, by its name."""

    def __init__(self, options: VllmOptions, exports: Exports) -> None:
        self.options = options
        self._settings = options.settings
        self._exports = exports
        self._servers: dict[str, VllmServer] = {}
        self._openings = Openings()
        self._turn = asyncio.Lock()  # held while a server is started or stopped for another
        self.num_open: Callable[[str], int] = lambda _name: 0

    @property
    def is_chosen(self) -> bool:
        """Whether the settings name vLLM for any model."""
        return self._settings.engine == "vllm" or bool(self._settings.vllm_models)

    def serves(self, entry: ModelEntry) -> bool:
        """Whether requests for this entry go to vLLM."""
        if entry.is_foreign:
            return True
        if entry.external is not None or entry.error is not None:
            return False
        return self._settings.engine == "vllm" or entry.base in self._settings.vllm_models

    def state(self, entry: ModelEntry) -> ServerState | None:
        """None if no server was started for it, or the last one was stopped."""
        server = self._servers.get(entry.pinned_name)
        return None if server is None else server.state

    def states(self) -> Mapping[str, ServerState]:
        return {name: server.state for name, server in self._servers.items()}

    async def model(self, entry: ModelEntry) -> VllmModel:
        """Start its server, if there is none, and wait until it is ready.

        Raises ``VllmUnavailable``, ``UnsupportedConfig``, and what stores and tokenizers do.
        """
        _check_windows(entry)
        name = entry.pinned_name
        async with self._turn:
            if (known := self._servers.get(name)) is not None and known.is_given_up:
                await self._stop(name)
            if name not in self._servers:
                await self._make_place(name)
                self._add(entry)
            server = self._servers[name]
        facts = await server.ready()
        if server.tokenizer is None:
            directory = await self._exports.directory(entry)
            await asyncio.to_thread(self._openings.check, directory)
            server.tokenizer = await asyncio.to_thread(load_tokenizer, directory)
        return self._ready(server.model, server.tokenizer, facts)

    def ready_model(self, entry: ModelEntry) -> VllmModel | None:
        """None unless a server of it is ready. This is no use of the server."""
        server = self._servers.get(entry.pinned_name)
        if server is None or server.tokenizer is None or server.facts is None:
            return None
        return self._ready(server.model, server.tokenizer, server.facts)

    @property
    def is_starting(self) -> bool:
        """Whether any server is started now, or soon again."""
        states = (server.state.state for server in self._servers.values())
        return any(state in ("starting", "restarting") for state in states)

    def _ready(
        self, model: ExternalModel, tokenizer: PreTrainedTokenizerBase, facts: Facts
    ) -> VllmModel:
        return VllmModel(
            model,
            tokenizer,
            facts.max_model_len,
            facts.version,
            self.options.args,
        )

    async def unload(self, entry: ModelEntry) -> None:
        """Stop the server of this entry, if there is one."""
        await self._stop(entry.pinned_name)

    async def aclose(self) -> None:
        await asyncio.gather(*map(self._stop, [*self._servers]))

    def _add(self, entry: ModelEntry) -> None:
        folder = Path(mkdtemp(prefix="sleb-vllm-", dir=_SHORT_DIR))
        model = _external_model(entry, folder / "socket", self._settings)

        async def start() -> VllmProcess:
            directory = await self._exports.directory(entry)
            kv_cache_bytes = self._checked_memory(entry.name, directory)
            assert model.api_key is not None
            assert model.socket is not None
            return await VllmProcess.start(
                Launch(
                    command=self.options.command(directory, model.model, model.socket),
                    environment=self.options.environment(model.api_key, kv_cache_bytes),
                    model=model.model,
                    key=model.api_key,
                    socket=model.socket,
                    log=self._settings.vllm_dir / "logs" / f"{entry.pinned_name}.log",
                    start_s=self._settings.vllm_start_s,
                )
            )

        self._servers[entry.pinned_name] = VllmServer(entry.name, model, start)

    async def _make_place(self, name: str) -> None:
        """Stop the server that was not used for longest. Raises ``VllmUnavailable``."""
        while len(self._servers) >= self.options.max_servers:
            idle = [other for other in self._servers if self._is_idle(other)]
            if not idle:
                raise VllmUnavailable(
                    f"vLLM cannot start for {name!r}: at most "
                    f"{counted(self.options.max_servers, 'server')} can run at once "
                    "(SLEB_VLLM_SERVERS), and all are starting or have requests",
                    _BUSY_S,
                )
            await self._stop(min(idle, key=lambda other: self._servers[other].used_s))

    def _is_idle(self, name: str) -> bool:
        is_starting = self._servers[name].state.state == "starting"
        return not is_starting and self.num_open(name) == 0

    async def _stop(self, name: str) -> None:
        server = self._servers.pop(name, None)
        if server is not None:
            await server.stop()
            assert server.model.socket is not None
            shutil.rmtree(server.model.socket.parent, ignore_errors=True)

    def _checked_memory(self, name: str, directory: Path) -> int:
        """The bytes of its cache on a CPU. Raises ``VllmStartFailed`` if its weights do not fit."""
        device = torch.device(pick_device(self._settings.device))
        weights = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
        if device.type == "cuda":
            self._check_card(name, device, weights // self.options.num_gpus)
            return 0
        free = free_bytes(device)
        every = self._settings.kv_cache_bytes or free // _KV_SHARE
        kv_cache_bytes = max(2**30, every // self.options.max_servers)
        if weights + kv_cache_bytes > free:
            raise VllmStartFailed(
                f"not enough memory: {name!r} needs {weights + kv_cache_bytes} bytes in vLLM "
                f"for weights and cache, but only {free} are free; unload other models, or "
                "lower SLEB_KV_CACHE_BYTES or SLEB_VLLM_SERVERS"
            )
        return kv_cache_bytes

    def _check_card(self, name: str, device: torch.device, weights: int) -> None:
        """Raise ``VllmStartFailed`` if a card's part of the weights exceeds this server's part."""
        share = self.options.gpu_share
        room = min(int(share * total_bytes(device)), free_bytes(device))
        if weights >= room:
            raise VllmStartFailed(
                f"not enough GPU memory: {name!r} has {weights} bytes of weights per GPU, but a "
                f"vLLM server has only {room} bytes per GPU ({share:.0%} of the GPU, or what is "
                "free); unload other models, lower SLEB_VLLM_SERVERS, or split the model with "
                "--tensor-parallel-size in SLEB_VLLM_ARGS"
            )


def servers_of(
    settings: ServeSettings, options: VllmOptions, catalog: Catalog, checkpoints: CheckpointStore
) -> VllmServers:
    # written on the CPU: the memory of the card is for vLLM
    export = child_environment(settings) | {"SLEB_DEVICE": "cpu"}
    folder, max_bytes = settings.vllm_dir / "exports", settings.vllm_cache_bytes
    exports = Exports(catalog, checkpoints, folder, max_bytes, export, options.dtype)
    return VllmServers(options, exports)


def _check_windows(entry: ModelEntry) -> None:
    """Raise ``UnsupportedConfig`` for a pruned model of which vLLM computes something else."""
    family = None if entry.info is None or not entry.is_pruned else entry.info.model_type
    if family is not None and ARCHITECTURES[family].is_by_position_in_vllm:
        raise UnsupportedConfig(
            f"vLLM uses a sliding window in every other block of a {family}, regardless of "
            f"the config, so its results for {entry.name!r} would be wrong: serve "
            f"{entry.base!r} with the built-in engine, by listing the other models in "
            "SLEB_VLLM_MODELS"
        )


def _external_model(entry: ModelEntry, socket: Path, settings: ServeSettings) -> ExternalModel:
    return ExternalModel(
        name=entry.pinned_name,
        backend="vllm",
        base_url="http://vllm/v1",
        model=entry.pinned_name,
        api_key=secrets.token_urlsafe(32),
        parent=entry.parent,
        removed_blocks=entry.removed_blocks,
        num_removed=entry.num_removed,
        num_blocks=entry.num_blocks or None,
        max_num_seqs=settings.max_num_seqs,
        max_waiting=settings.max_waiting,
        connect_s=_CONNECT_S,
        silence_s=_SILENCE_S,
        socket=socket,
    )
