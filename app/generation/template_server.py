"""A process that renders chat templates, each template in a fork with limits of time and memory.

A fork is kept for the next messages, so that a template is compiled once. One that exceeds its
limits is ended by the kernel, and the messages behind it are rendered by another.
"""

import json
import os
import signal
import sys
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from app.generation.forking_server import ForkingServer, serve
from pruning.process import fork_and_do, limit_memory, limit_time, took_longer

MAX_CPU_S = 3.0  # of one prompt
DEADLINE_S = 30.0  # of the same, on a busy machine
MEMORY_BYTES = 2**29  # beside what the process has
_MAX_RENDERERS = 8
_MAX_REASON_CHARS = 1000


@dataclass
class _Renderer:
    """The fork of a template. It renders the first of what waits."""

    template: str
    pid: int
    pipe: Connection
    waiting: deque[dict[str, Any]] = field(default_factory=deque)


class TemplateServer(ForkingServer[_Renderer]):
    def __init__(self, requests: Connection, answers: Connection) -> None:
        super().__init__(requests, answers)
        self._renderers: dict[str, _Renderer] = {}  # by template, the last used at the end

    def take(self, request: dict[str, Any]) -> None:
        template = request["chat_template"]
        renderer = self._renderers.pop(template, None) or self._fork(template)
        self._renderers[template] = renderer
        renderer.waiting.append(request)
        if len(renderer.waiting) == 1:
            self._send(renderer)
        idle = [each for each in self._renderers.values() if not each.waiting]
        for each in idle[: max(0, len(self._renderers) - _MAX_RENDERERS)]:
            self._end(each)

    def _send(self, renderer: _Renderer) -> None:
        with suppress(OSError):  # of a fork that has ended, as its pipe will say
            renderer.pipe.send_bytes(json.dumps(renderer.waiting[0]).encode())

    def _fork(self, template: str) -> _Renderer:
        own, of_fork = Pipe()

        def render() -> None:
            own.close()
            limit_memory(MEMORY_BYTES)
            _render_all(of_fork)

        renderer = _Renderer(template, fork_and_do(render), own)
        of_fork.close()
        self.watch(own, renderer)
        return renderer

    def receive(self, fork: _Renderer) -> None:
        try:
            answer: dict[str, Any] = json.loads(fork.pipe.recv_bytes())
        except (EOFError, OSError):
            answer = {"refused": _ended(self._end(fork))}
            if fork.waiting:
                self.answer(fork.waiting.popleft()["id"], answer)
            if fork.waiting:
                again = self._renderers[fork.template] = self._fork(fork.template)
                again.waiting = fork.waiting
                self._send(again)
            return
        self.answer(fork.waiting.popleft()["id"], answer)
        if fork.waiting:
            self._send(fork)

    def _end(self, renderer: _Renderer) -> int:
        """End the fork, and return its status."""
        self._renderers.pop(renderer.template, None)
        self.forget(renderer.pipe)
        renderer.pipe.close()
        os.kill(renderer.pid, signal.SIGKILL)  # one that is idle; others keep their status
        return os.waitpid(renderer.pid, 0)[1]


def _render_all(pipe: Connection) -> None:
    while True:
        request = json.loads(pipe.recv_bytes())
        limit_time(MAX_CPU_S, DEADLINE_S)
        answer = json.dumps(_rendered(request)).encode()
        limit_time(0, 0)
        pipe.send_bytes(answer)


def _rendered(request: dict[str, Any]) -> dict[str, str]:
    try:
        rendered: Any = render_jinja_template(
            conversations=[request["messages"]],
            tools=request["tools"],
            chat_template=request["chat_template"],
            **{**request["special_tokens"], **request["arguments"]},
        )
    except MemoryError:
        return {"refused": _TOO_LARGE}
    except Exception as error:  # noqa: BLE001 - a template raises whatever its expressions do
        return {"refused": str(error)[:_MAX_REASON_CHARS] or type(error).__name__}
    [text], _ = rendered
    return {"text": text}


_TOO_LARGE = f"it takes more than {MEMORY_BYTES // 2**20} MB of memory"


def _ended(status: int) -> str:
    """Why a fork has given no answer."""
    return f"it takes more than {MAX_CPU_S:g} s" if took_longer(status) else _TOO_LARGE


if __name__ == "__main__":
    serve(TemplateServer, *sys.argv[1:])
