"""A stream that has been quiet for a while has a comment, and one that flows has none."""

import asyncio
from collections.abc import Callable, Iterator, Sequence

import pytest

from app.api.generations import KEEP_ALIVE_S, _events
from app.generation.generator import Generation
from app.generation.output import Delta, Output, OutputStream
from tests.support.virtual_time import run


class TimedStream(OutputStream):
    """One output whose texts come at these times, in seconds; the last one ends it."""

    def __init__(self, times_s: Sequence[float]) -> None:
        super().__init__(0, 1)
        self.has_begun = True
        self._times_s = times_s

    def start(self, notify: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        for number, time_s in enumerate(self._times_s):
            loop.call_at(time_s, self._add, number, notify)

    def _add(self, number: int, notify: Callable[[], None]) -> None:
        self._text.append("x")
        if number == len(self._times_s) - 1:
            self._output = object()  # type: ignore[assignment]
        notify()

    async def aclose(self) -> None: ...


class TextFormat:
    """Every delta is its text."""

    def whole(self, outputs: Sequence[Output]) -> None: ...

    def deltas(self, deltas: Sequence[Delta]) -> Iterator[bytes]:
        yield from (delta.text.encode() for delta in deltas)

    def end(self, outputs: Sequence[Output]) -> Iterator[bytes]:
        yield b"end" * len(outputs)


async def stream(times_s: Sequence[float]) -> list[tuple[float, bytes]]:
    """What is sent, each with its time."""
    loop = asyncio.get_running_loop()
    generation = Generation([TimedStream(times_s)])
    events = _events(generation, TextFormat(), "/generate")
    return [(loop.time(), content) async for content in events]


def pings(times_s: Sequence[float]) -> list[float]:
    return [at_s for at_s, content in run(stream(times_s)) if content.startswith(b":")]


@pytest.mark.parametrize("gap_s", [0.01, 1.0, KEEP_ALIVE_S - 0.5])
def test_a_stream_that_flows_has_no_comments(gap_s: float) -> None:
    times_s = [gap_s * number for number in range(1, int(100 / gap_s))]
    assert pings(times_s) == []


def test_each_quiet_time_has_comments_at_its_own_pace() -> None:
    assert pings([1.0, 36.0, 37.0, 53.0, 54.0]) == pytest.approx([16.0, 31.0, 52.0])


def test_every_text_is_sent_at_once() -> None:
    sent = [each for each in run(stream([1.0, 36.0, 37.0])) if not each[1].startswith(b":")]
    assert [text for _, text in sent] == [b"x", b"x", b"x", b"end"]
    assert [at_s for at_s, _ in sent] == pytest.approx([1.0, 36.0, 37.0, 37.0])
