"""Work of clients is done a little in each turn of the loop, the addresses in turn."""

import asyncio
from collections.abc import Callable
from contextvars import ContextVar

from app.server.fair_queue import FairQueue

request: ContextVar[str] = ContextVar("request", default="none")


def done_in_turns(queue: FairQueue, done: list[str]) -> list[list[str]]:
    """What is done in each turn of the loop, until nothing is."""

    async def watch() -> list[list[str]]:
        turns = []
        while len(done) < 5:
            before = len(done)
            await asyncio.sleep(0)
            turns.append(done[before:])
        return turns

    def noting(name: str) -> Callable[[], None]:
        return lambda: done.append(f"{name} {request.get()}")

    async def run() -> list[list[str]]:
        request.set("of the one who adds")
        for number in range(3):
            queue.add("a", noting(f"a{number}"))
        for number in range(2):
            queue.add("b", noting(f"b{number}"))
        return await watch()

    return asyncio.run(run())


def test_addresses_take_turns_and_no_request_gets_the_context_of_another() -> None:
    turns = done_in_turns(FairQueue(per_turn=2), [])
    assert [turn for turn in turns if turn] == [
        ["a0 none", "b0 none"],
        ["a1 none", "b1 none"],
        ["a2 none"],
    ]
