"""Model weights in memory: each model is read once, and refused if it does not fit.

Variants share the weights of their model, and have the tensors that a repair has changed.
"""

import ctypes
import gc
import logging
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Lock, Thread, get_native_id

import torch

from app.engine.variant import Variant
from app.models.entry import ModelEntry, VariantKey
from pruning.models.memory import free_bytes, is_out_of_memory, shortage
from pruning.models.safetensors_headers import fingerprint
from pruning.models.store import LoadedModel, pick_device

logger = logging.getLogger(__name__)

_MAX_NAMED = 5  # models in an error message
# Of a thread that reads a model from disk, and of one that makes a variant in memory: the first
# has work for many seconds, and must end beside other processes too.
_READING_NICENESS, _MAKING_NICENESS = 10, 19


class NoRoomForWeights(RuntimeError):
    """The weights do not fit beside those that are loaded."""


class WeightsLoading(RuntimeError):
    """The weights are being loaded, and cannot be unloaded before that has finished."""


@dataclass(frozen=True)
class WeightSource:
    """The name of weights, their size in memory, and how to read them."""

    name: str
    num_bytes: Callable[[], int]  # reads headers or a manifest, not the weights
    read: Callable[[], LoadedModel]
    fetch: Callable[[], object] = lambda: None  # what is read may be on another machine


@dataclass(frozen=True, eq=False)
class Weights:
    """Loaded weights, and the variants that were made of them so far."""

    name: str
    loaded: LoadedModel
    tensors: Mapping[int, int]  # the bytes of all parameters by identity; tied ones are one
    fingerprint: str  # of the files when they were read
    variants: dict[VariantKey, Variant] = field(default_factory=dict)

    @property
    def own_bytes(self) -> int:
        """Of the tensors that its variants do not share with it."""
        return sum(variant.own_bytes for variant in self.variants.values())


@dataclass(frozen=True)
class _Pending:
    """Weights that are being read, or wait to be read."""

    num_bytes: int
    future: "Future[Weights]"


class LoadedWeights:
    """Weights by name. Thread-safe; no method waits for a model to be read."""

    def __init__(self, device: str = "auto", max_bytes: int | None = None) -> None:
        self._device = device
        self._max_bytes = max_bytes
        self._lock = Lock()  # guards everything below, and the variants of all weights
        self._reading = Lock()
        self._making = Lock()
        self._making_bytes = 0  # of the variant that is being made
        self._pending: dict[str, _Pending] = {}
        self._loaded: dict[str, Weights] = {}

    def get(self, source: WeightSource) -> "Future[Weights]":
        """The weights of this source, which are read in the background unless they are known.

        Raises ``NoRoomForWeights`` before anything is read. The future cannot be cancelled, and
        raises what ``source.read`` raises, or ``NoRoomForWeights`` if memory ran out after all.
        """
        with self._lock:
            if (known := self._known(source.name)) is not None:
                return known
        num_bytes = source.num_bytes()
        with self._lock:
            if (known := self._known(source.name)) is not None:
                return known
            self._check_room(f"the weights of {source.name!r}", num_bytes)
            future: Future[Weights] = Future()
            future.set_running_or_notify_cancel()
            self._pending[source.name] = _Pending(num_bytes, future)
        # a daemon, so that the process can end while a model is being read
        Thread(target=self._read, args=(source, future), name="load", daemon=True).start()
        return future

    def loaded(self) -> Mapping[str, Weights]:
        """The weights that have been read completely."""
        with self._lock:
            return dict(self._loaded)

    def sizes(self) -> Mapping[str, int]:
        """The bytes of all weights by name. What two of them share counts for the older one."""
        with self._lock:
            return self._sizes()

    def variant(self, weights: Weights, entry: ModelEntry, make: Callable[[], Variant]) -> Variant:
        """The variant of an entry, which is made now unless it is known.

        Raises ``NoRoomForWeights`` before its own tensors are read, and what ``make`` raises.
        """
        key, repair = entry.key, entry.view_repair
        own_bytes = repair.num_bytes if repair else 0
        with self._lock:
            if (known := weights.variants.get(key)) is not None:
                return known
        with self._making:
            with self._lock:
                if (known := weights.variants.get(key)) is not None:
                    return known
                if own_bytes:
                    self._check_room(f"the repaired tensors of {entry.name!r}", own_bytes)
                self._making_bytes = own_bytes
            try:
                variant = _beside_steps(make)
                with self._lock:
                    weights.variants[key] = variant
            finally:
                with self._lock:
                    self._making_bytes = 0
        return variant

    def variants(self) -> list[Variant]:
        """All variants of all weights."""
        with self._lock:
            return [each for weights in self._loaded.values() for each in weights.variants.values()]

    def variants_of(self, name: str) -> list[Variant]:
        """The variants of the weights of this name; none if they are not loaded."""
        with self._lock:
            return list(self._loaded[name].variants.values()) if name in self._loaded else []

    def find(self, name: str, key: VariantKey) -> Variant | None:
        """The variant of this key of the weights of this name, if it was made."""
        with self._lock:
            return self._loaded[name].variants.get(key) if name in self._loaded else None

    def drop_variant(self, name: str, key: VariantKey) -> None:
        """Forget a variant. Its own tensors are free once no request uses them."""
        with self._lock:
            if name in self._loaded:
                self._loaded[name].variants.pop(key, None)

    def drop(self, name: str) -> None:
        """Forget these weights. Their memory is free once no variant uses them.

        Raises ``WeightsLoading``.
        """
        with self._lock:
            if name in self._pending:
                raise WeightsLoading(
                    f"{name!r} is being loaded: unload it when loading has finished"
                )
            self._loaded.pop(name, None)

    def _sizes(self) -> dict[str, int]:
        counted: set[int] = set()
        sizes = {}
        for name, weights in self._loaded.items():
            new = weights.tensors.keys() - counted
            sizes[name] = sum(weights.tensors[weight] for weight in new)
            counted |= new
        return sizes

    def _known(self, name: str) -> "Future[Weights] | None":
        if name in self._pending:
            return self._pending[name].future
        if name not in self._loaded:
            return None
        future: Future[Weights] = Future()  # a new one, as a future keeps its callbacks
        future.set_result(self._loaded[name])
        return future

    def _read(self, source: WeightSource, future: "Future[Weights]") -> None:
        """One model at a time, as transformers changes global state of torch while it loads."""
        _give_way()
        try:
            source.fetch()
            with self._reading:
                loaded = source.read()
            tensors = {id(weight): weight.nbytes for weight in loaded.parameters()}
            weights = Weights(source.name, loaded, tensors, fingerprint(loaded.path))
        except BaseException as error:  # noqa: BLE001 - the future raises it
            with self._lock:
                del self._pending[source.name]
            future.set_exception(explained(source.name, error))
            return
        with self._lock:
            self._loaded[source.name] = weights
            del self._pending[source.name]
            num_bytes = self._sizes()[source.name]
        logger.info("loaded %s: %d bytes of weights", source.name, num_bytes)
        # A model has so many objects that each later collection would stop all steps.
        gc.collect()
        gc.freeze()
        future.set_result(weights)

    def _check_room(self, what: str, num_bytes: int) -> None:
        pending = sum(pending.num_bytes for pending in self._pending.values())
        reserved = pending + self._making_bytes
        device = torch.device(pick_device(self._device))
        # weights pass through main memory on their way to a device
        devices = {device.type: device, "cpu": torch.device("cpu")}
        limits = [(free_bytes(device), f"in the memory of {device}") for device in devices.values()]
        if self._max_bytes is not None:
            owned = sum(each.own_bytes for each in self._loaded.values())
            used = sum(self._sizes().values()) + owned
            limits.append((self._max_bytes - used, "of SLEB_MAX_WEIGHT_BYTES"))
        free, where = min(limits)
        if num_bytes > free - reserved:
            raise NoRoomForWeights(
                f"not enough memory: {what} need {num_bytes} bytes, but only "
                f"{max(free - reserved, 0)} are free {where}; {self._advice()}"
            )

    def _advice(self) -> str:
        owned = {name: each.own_bytes for name, each in self._loaded.items()}
        sizes = {name: num_bytes + owned[name] for name, num_bytes in self._sizes().items()}
        sizes |= {name: pending.num_bytes for name, pending in self._pending.items()}
        if not sizes:
            return "no other model is loaded, so more memory is required"
        largest = sorted(sizes.items(), key=lambda item: -item[1])[:_MAX_NAMED]
        named = ", ".join(f"{name} ({num_bytes} bytes)" for name, num_bytes in largest)
        return f"unload another model with POST /models/NAME/unload; loaded models: {named}"


def explained(name: str, error: BaseException) -> BaseException:
    """The error, as ``NoRoomForWeights`` if the device ran out of memory."""
    for cause in (error, error.__cause__):
        if cause is not None and is_out_of_memory(cause):
            return NoRoomForWeights(f"{name!r} cannot be loaded now: {shortage(cause)}")
    return error


def _beside_steps(make: Callable[[], Variant]) -> Variant:
    """Make a variant in a thread of its own, of low priority and on one core.

    Steps run on all cores and wait for the slowest of them. The calling thread could not get its
    priority back.
    """
    future: Future[Variant] = Future()

    def run() -> None:
        _give_way(_MAKING_NICENESS)
        _take_one_core()
        try:
            future.set_result(make())
        except BaseException as error:  # noqa: BLE001 - the future raises it
            future.set_exception(error)

    Thread(target=run, name="load", daemon=True).start()
    return future.result()


def _give_way(niceness: int = _READING_NICENESS) -> None:
    """Give this thread, and no other, a low priority."""
    with suppress(OSError, AttributeError):  # of a system that has it for processes only
        os.setpriority(os.PRIO_PROCESS, get_native_id(), niceness)


def _take_one_core() -> None:
    """Let operations of this thread run on it alone: torch's own setting is for all threads."""
    torch.get_num_threads()  # which gives a new thread the setting of all
    with suppress(OSError, AttributeError):  # of a torch with another OpenMP
        ctypes.CDLL(None).omp_set_num_threads(1)
