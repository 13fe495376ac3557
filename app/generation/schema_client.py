"""Asks the process that checks schemas, and starts it when it is first needed or has ended."""

import asyncio
import json
import logging
import os
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

from app.engine.grammar import ResponseFormatRefused
from app.generation import schema_server
from app.generation.output import GenerationFailed

logger = logging.getLogger(__name__)


class SchemaServerEnded(GenerationFailed):
    """The process ended before it answered."""


class TakesLonger(Exception):
    """The schema was not compiled in the time that it was given."""


@dataclass(frozen=True)
class Vocabulary:
    """What ``grammar_tokens`` needs."""

    tokenizer: str  # its tokenizer.json
    vocab_size: int
    eos_token_ids: tuple[int, ...]


class SchemaClient:
    """Bound to the event loop of its first use, and to be closed there."""

    def __init__(self) -> None:
        self._ids = count()
        self._starting = asyncio.Lock()
        self._process: Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def source(self, schema: str, name: str, vocabulary: Vocabulary, cpu_s: float) -> str:
        """The source of the grammar of this schema. ``name`` stands for the vocabulary.

        Raises ``ResponseFormatRefused``, ``TakesLonger`` than ``cpu_s``, or ``SchemaServerEnded``
        if the process ends twice.
        """
        request = {"schema": schema, "tokens": name, "cpu_s": cpu_s}
        try:
            answer = await self._checked(request, vocabulary)
        except SchemaServerEnded:
            logger.warning("the process that checks schemas has ended: starting another one")
            answer = await self._checked(request, vocabulary)
        if "takes_longer" in answer:
            raise TakesLonger
        if "refused" in answer:
            raise ResponseFormatRefused(answer["refused"])
        return str(answer["source"])

    async def prepare(self, name: str, vocabulary: Vocabulary) -> None:
        """Let the process build the table of this vocabulary. Raises ``SchemaServerEnded``."""
        await self._ask({"tokens": name, "tokenizer": asdict(vocabulary)})

    async def _checked(self, request: dict[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
        answer = await self._ask(request)
        if "needs_tokenizer" in answer:
            answer = await self._ask({**request, "tokenizer": asdict(vocabulary)})
        return answer

    async def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        process = await self._started()
        request_id = next(self._ids)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = future
        try:
            assert process.stdin is not None
            process.stdin.write(schema_server.framed({"id": request_id, **request}))
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
                    *(sys.executable, "-m", schema_server.__name__, str(os.getpid())),
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
                length = await process.stdout.readexactly(schema_server.LENGTH_BYTES)
                answer = json.loads(await process.stdout.readexactly(int.from_bytes(length)))
                future = self._waiting.get(answer["id"])
                if future is not None and not future.done():
                    future.set_result(answer)
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(SchemaServerEnded("the process that checks schemas has ended"))

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
