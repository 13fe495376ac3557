"""A process that checks schemas, each in a fork of its own with limits of time and memory.

It imports neither torch nor transformers, so it starts soon and forks are cheap.
"""

import json
import os
import sys
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from llguidance import LLTokenizer

from app.engine.grammar import (
    Grammar,
    ResponseFormatRefused,
    grammar_source,
    grammar_tokens,
    schema_refused,
)
from app.generation.forking_server import ForkingServer, serve
from pruning.process import fork_and_do, limit_memory, limit_time, lower_priority, took_longer

DEADLINE_S = 20.0  # of one schema, on a busy machine
MEMORY_BYTES = 2**29  # beside what the process has
_MAX_TOKENIZERS = 4
_NICENESS = 5


@dataclass(frozen=True)
class _Job:
    """A schema in a fork, whose answer comes through a pipe."""

    request_id: int
    pid: int
    pipe: Connection


class SchemaServer(ForkingServer[_Job]):
    def __init__(self, requests: Connection, answers: Connection) -> None:
        super().__init__(requests, answers)
        self._tokens: OrderedDict[str, LLTokenizer] = OrderedDict()

    def take(self, request: dict[str, Any]) -> None:
        request_id, name = request["id"], request["tokens"]
        if "tokenizer" in request:
            try:
                self._tokens[name] = grammar_tokens(**request["tokenizer"])
            except ResponseFormatRefused as error:
                self.answer(request_id, {"refused": str(error)})
                return
            if len(self._tokens) > _MAX_TOKENIZERS:
                self._tokens.popitem(last=False)
        if name not in self._tokens:
            self.answer(request_id, {"needs_tokenizer": True})
            return
        if "wanted" not in request:
            self.answer(request_id, {})
            return
        self._tokens.move_to_end(name)
        self._fork(request_id, request, self._tokens[name])

    def _fork(self, request_id: int, request: dict[str, Any], tokens: LLTokenizer) -> None:
        own, of_fork = Pipe(duplex=False)

        def check() -> None:
            _limit(request["cpu_s"])
            found = _checked(request["wanted"], tokens)
            of_fork.send_bytes(json.dumps(found).encode())

        pid = fork_and_do(check)
        of_fork.close()
        self.watch(own, _Job(request_id, pid, own))

    def receive(self, fork: _Job) -> None:
        self.forget(fork.pipe)
        answer = b""
        with fork.pipe, suppress(EOFError, OSError):  # of a fork that has ended before
            answer = fork.pipe.recv_bytes()
        _, status = os.waitpid(fork.pid, 0)
        self.answer(fork.request_id, _ended(status) if status else json.loads(answer))


def _checked(wanted: Sequence[str], tokens: LLTokenizer) -> dict[str, str]:
    try:
        source = grammar_source(*wanted)
        Grammar(source, tokens).try_out()
    except ResponseFormatRefused as error:
        return {"refused": str(error)}
    return {"source": source}


def _limit(cpu_s: float) -> None:
    limit_memory(MEMORY_BYTES)
    limit_time(cpu_s, DEADLINE_S)


def _ended(status: int) -> dict[str, Any]:
    """The answer for a fork that has given none."""
    if took_longer(status):
        return {"takes_longer": True}
    reason = f"compiling it takes more than {MEMORY_BYTES // 2**20} MB of memory"
    return {"refused": str(schema_refused(reason))}


def main(parent: str) -> None:
    lower_priority(_NICENESS)
    serve(SchemaServer, parent)


if __name__ == "__main__":
    main(*sys.argv[1:])
