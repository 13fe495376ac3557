"""What ``torch.cuda`` has in place of its functions while the device is simulated.

There is one stream in effect, since the host runs each kernel before it launches the next.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any, Protocol, Self

import torch

NAME = "Simulated GPU"


class Card(Protocol):
    """The part of the device that is needed here."""

    current: int

    @property
    def is_capturing(self) -> bool: ...
    def wait(self, op: str) -> None: ...
    def begin_capture(self) -> None: ...
    def end_capture(self) -> int: ...
    def replay(self, graph: int) -> None: ...
    def drop(self, graph: int) -> None: ...
    def total_bytes(self, index: int = 0) -> int: ...
    def allocated_bytes(self, index: int = 0) -> int: ...
    def peak_bytes(self, index: int = 0) -> int: ...
    def reset_peak(self, index: int = 0) -> None: ...


def stand_ins(card: Card) -> Mapping[str, Any]:
    """By name, what takes the place of members of ``torch.cuda``."""
    return {
        **_devices(card),
        **_memory(card),
        **_streams(card),
        **_graphs(card),
        "manual_seed": lambda _seed: None,  # kernels draw from the generator of the host
        "manual_seed_all": lambda _seed: None,
        "get_rng_state": lambda _device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, _device=None: torch.set_rng_state(state),
    }


def _index(card: Card, device: Any) -> int:
    if device is None:
        return card.current
    if isinstance(device, int):
        return device if device >= 0 else card.current
    found = torch.device(device).index
    return card.current if found is None else found


def _devices(card: Card) -> Mapping[str, Any]:
    class DeviceContext:
        def __init__(self, device: Any) -> None:
            self._wanted, self._before = _index(card, device), card.current

        def __enter__(self) -> None:
            self._before, card.current = card.current, self._wanted

        def __exit__(self, *_raised: object) -> None:
            card.current = self._before

    def set_device(device: Any) -> None:
        card.current = _index(card, device)

    def properties(device: Any = None) -> Any:
        index = _index(card, device)
        return SimpleNamespace(
            name=NAME, total_memory=card.total_bytes(index), uuid=f"simulated-{index}",
            major=9, minor=0, multi_processor_count=132,
        )  # fmt: skip

    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "init": lambda: None,
        "device_count": lambda: 2,
        "current_device": lambda: card.current,
        "set_device": set_device,
        "device": DeviceContext,
        "get_device_name": lambda _device=None: NAME,
        "get_device_capability": lambda _device=None: (9, 0),
        "get_device_properties": properties,
        "is_bf16_supported": lambda *_args, **_kwargs: True,
    }


def _memory(card: Card) -> Mapping[str, Any]:
    def info(device: Any = None) -> tuple[int, int]:
        index = _index(card, device)
        return card.total_bytes(index) - card.allocated_bytes(index), card.total_bytes(index)

    def allocated(device: Any = None) -> int:
        return card.allocated_bytes(_index(card, device))

    return {
        "mem_get_info": info,
        "memory_allocated": allocated,
        "memory_reserved": allocated,
        "max_memory_allocated": lambda device=None: card.peak_bytes(_index(card, device)),
        "reset_peak_memory_stats": lambda device=None: card.reset_peak(_index(card, device)),
        "empty_cache": lambda: None,
    }


def _events(card: Card) -> type[Any]:
    class Event:
        def __init__(self, **_flags: bool) -> None:
            self._recorded_s = 0.0

        def record(self, _stream: object = None) -> None:
            self._recorded_s = time.perf_counter()

        def synchronize(self) -> None:
            card.wait("event")

        def query(self) -> bool:
            return True

        def wait(self, _stream: object = None) -> None: ...

        def elapsed_time(self, end: Self) -> float:
            return (end._recorded_s - self._recorded_s) * 1000

    return Event


def _streams(card: Card) -> Mapping[str, Any]:
    event_class = _events(card)

    class Stream:
        def __init__(self, *_args: object, **_kwargs: object) -> None: ...

        def wait_stream(self, _stream: object) -> None: ...

        def wait_event(self, _event: object) -> None: ...

        def record_event(self, event: Any = None) -> Any:
            event = event or event_class()
            event.record()
            return event

        def synchronize(self) -> None:
            card.wait("stream")

    usual = Stream()
    return {
        "Event": event_class,
        "Stream": Stream,
        "current_stream": lambda _device=None: usual,
        "default_stream": lambda _device=None: usual,
        "stream": lambda _stream: contextlib.nullcontext(),
        "synchronize": lambda _device=None: card.wait("device"),
    }


def _graphs(card: Card) -> Mapping[str, Any]:
    class CUDAGraph:
        def __init__(self) -> None:
            self._number = 0

        def pool(self) -> tuple[int, int]:
            return (0, 1)

        def replay(self) -> None:
            card.replay(self._number)

        def __del__(self) -> None:
            card.drop(self._number)

    @contextlib.contextmanager
    def graph(captured: CUDAGraph, **_options: object) -> Iterator[None]:
        card.begin_capture()
        try:
            yield
        finally:
            captured._number = card.end_capture()

    return {
        "CUDAGraph": CUDAGraph,
        "graph": graph,
        "graph_pool_handle": lambda: (0, 1),
        "is_current_stream_capturing": lambda: card.is_capturing,
    }
