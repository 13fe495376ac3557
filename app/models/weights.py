"""Weights in memory: each model is read once, counted, and refused if it does not fit."""

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Lock, Thread

import torch

from app.engine.variant import Variant
from pruning.models.memory import free_bytes, is_out_of_memory, shortage
from pruning.models.safetensors_files import fingerprint
from pruning.models.store import LoadedModel, pick_device
from pruning.sleb import Blocks

logger = logging.getLogger(__name__)

_MOST_NAMED = 5


class NoRoomForWeights(RuntimeError):
    """Weights do not fit beside those that are loaded."""


class WeightsLoading(RuntimeError):
    """Weights are being read, and cannot be let go of before that is over."""


@dataclass(frozen=True)
class Source:
    """Where the weights of this name come from, and what will be in memory of them."""

    name: str
    num_bytes: Callable[[], int]  # from headers or a manifest; reads no weight
    read: Callable[[], LoadedModel]


@dataclass(frozen=True, eq=False)
class Weights:
    """Loaded weights, and the variants over them that were asked for so far."""

    name: str
    loaded: LoadedModel
    num_bytes: int  # of all parameters, each tensor counted once
    fingerprint: str  # of the files as they were when they were read
    variants: dict[Blocks | None, Variant] = field(default_factory=dict)


@dataclass(frozen=True)
class _Pending:
    """Weights that are being read, or wait for that."""

    num_bytes: int
    future: "Future[Weights]"


class LoadedWeights:
    """Weights by name. Safe from any thread, and no method waits for a model to be read."""

    def __init__(self, device: str = "auto", max_bytes: int | None = None) -> None:
        self._device = device
        self._max_bytes = max_bytes
        self._lock = Lock()
        self._reading = Lock()
        self._pending: dict[str, _Pending] = {}
        self._loaded: dict[str, Weights] = {}

    def get(self, source: Source) -> "Future[Weights]":
        """The weights of that name, which are read if nobody has begun to. Cannot be cancelled.

        Raises ``NoRoomForWeights`` before anything is read. The future raises what ``source.read``
        does, or ``NoRoomForWeights`` if there was less room than it had seemed.
        """
        with self._lock:
            if (known := self._known(source.name)) is not None:
                return known
        num_bytes = source.num_bytes()
        with self._lock:
            if (known := self._known(source.name)) is not None:
                return known
            self._check_room(source.name, num_bytes)
            future: Future[Weights] = Future()
            future.set_running_or_notify_cancel()
            self._pending[source.name] = _Pending(num_bytes, future)
        # a daemon: a process that is told to end does not wait for a model to be read
        Thread(target=self._read, args=(source, future), name="load", daemon=True).start()
        return future

    def loaded(self) -> Mapping[str, Weights]:
        """All that are in memory as a whole."""
        with self._lock:
            return dict(self._loaded)

    def drop(self, name: str) -> None:
        """Forget these weights; the memory is free once nobody else holds them.

        Raises ``WeightsLoading``.
        """
        with self._lock:
            if name in self._pending:
                raise WeightsLoading(f"{name!r} is being loaded: unload it when that is over")
            self._loaded.pop(name, None)

    def _known(self, name: str) -> "Future[Weights] | None":
        if name in self._pending:
            return self._pending[name].future
        if name not in self._loaded:
            return None
        future: Future[Weights] = Future()  # a new one: a future keeps all who waited for it
        future.set_result(self._loaded[name])
        return future

    def _read(self, source: Source, future: "Future[Weights]") -> None:
        """One model at a time: transformers changes global state of torch while it loads."""
        try:
            with self._reading:
                loaded = source.read()
            weights = Weights(source.name, loaded, _num_bytes(loaded), fingerprint(loaded.path))
        except BaseException as error:  # noqa: BLE001 - whoever waits is told
            with self._lock:
                del self._pending[source.name]
            future.set_exception(_explained(source.name, error))
            return
        with self._lock:
            self._loaded[source.name] = weights
            del self._pending[source.name]
        logger.info("%s is loaded: %d bytes of weights", source.name, weights.num_bytes)
        future.set_result(weights)

    def _check_room(self, name: str, num_bytes: int) -> None:
        reserved = sum(pending.num_bytes for pending in self._pending.values())
        device = torch.device(pick_device(self._device))
        # on their way to a device all weights are in main memory
        places = {device.type: device, "cpu": torch.device("cpu")}
        rooms = [(free_bytes(place), f"in the memory of {place}") for place in places.values()]
        if self._max_bytes is not None:
            used = sum(weights.num_bytes for weights in self._loaded.values())
            rooms.append((self._max_bytes - used, "of SLEB_MAX_WEIGHT_BYTES"))
        free, where = min(rooms)
        if num_bytes > free - reserved:
            raise NoRoomForWeights(
                f"the weights of {name!r} take {num_bytes} bytes, and {max(free - reserved, 0)} "
                f"are free {where}: {self._advice()}"
            )

    def _advice(self) -> str:
        sizes = {name: its.num_bytes for name, its in self._loaded.items()}
        sizes |= {name: its.num_bytes for name, its in self._pending.items()}
        if not sizes:
            return "nothing is loaded that could go, so it needs more memory"
        largest = sorted(sizes.items(), key=lambda item: -item[1])[:_MOST_NAMED]
        named = ", ".join(f"{name} ({num_bytes} bytes)" for name, num_bytes in largest)
        return f"unload another by POST /models/NAME/unload; loaded are {named}"


def _num_bytes(loaded: LoadedModel) -> int:
    return sum({its.data_ptr(): its.nbytes for its in loaded.model.parameters()}.values())


def _explained(name: str, error: BaseException) -> BaseException:
    """The error, or what it means where the device had no room after all."""
    for cause in (error, error.__cause__):
        if cause is not None and is_out_of_memory(cause):
            return NoRoomForWeights(f"{name!r} cannot be loaded now: {shortage(cause)}")
    return error
