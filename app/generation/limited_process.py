"""A process of this service that does the work of foreign files within limits of time and memory.

It is started when it is first asked, or has ended, and asked by messages.
"""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from itertools import count
from types import ModuleType
from typing import Any

from app.generation.frames import LENGTH_BYTES, framed
from app.generation.output import GenerationFailed


class ProcessEnded(GenerationFailed):
    """The process ended before it answered."""


class LimitedProcess:
    """Runs a module. Bound to the event loop of its first use, and to be closed there."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._ids = count()
        self._starting = asyncio.Lock()
        self._process: Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def start(self) -> None:
        """Have it import what it needs before it is asked."""
        await self._started()

    async def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer. Raises ``ProcessEnded``."""
        process = await self._started()
        request_id = next(self._ids)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = future
        try:
            assert process.stdin is not None
            process.stdin.write(framed({"id": request_id, **request}))
            with suppress(ConnectionError):  # the reader tells the end
                await process.stdin.drain()
            return await future
        finally:
            del self._waiting[request_id]

    async def _started(self) -> Process:
        async with self._starting:
            if self._process is None or self._reading is None or self._reading.done():
                await self._end()
                self._process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", self._module.__name__, str(os.getpid())),
                    stdin=PIPE,
                    stdout=PIPE,
                    start_new_session=True,  # Ctrl-C is for the service, which ends it
                )
                self._reading = asyncio.create_task(self._read(self._process))
            return self._process

    async def _read(self, process: Process) -> None:
        assert process.stdout is not None
        with suppress(asyncio.IncompleteReadError):
            while True:
                length = await process.stdout.readexactly(LENGTH_BYTES)
                answer = json.loads(await process.stdout.readexactly(int.from_bytes(length)))
                future = self._waiting.get(answer["id"])
                if future is not None and not future.done():
                    future.set_result(answer)
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(
                    ProcessEnded(f"the process of {self._module.__name__} has ended")
                )

    async def _end(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
            self._process = None
        if self._reading is not None:
            await self._reading  # to the end of the output
            self._reading = None

    async def aclose(self) -> None:
        async with self._starting:
            await self._end()
