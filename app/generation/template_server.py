"""A process that renders chat templates, each template in a fork with limits of time and memory.

A fork is kept for the next messages, so that a template is compiled once. One that exceeds its
limits is ended by the kernel, and the messages behind it are rendered by another.
"""

import json
import os
import selectors
import signal
import sys
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from pruning.process import (
    be_killed_first,
    end_with_parent,
    limit_memory,
    limit_time,
    took_longer,
)

MAX_CPU_S = 3.0  # of one prompt
DEADLINE_S = 30.0  # of the same, on a busy machine
MEMORY_BYTES = 2**29  # beside what the process has
_MAX_RENDERERS = 8


@dataclass
class _Renderer:
    """The fork of a template. It renders the first of what waits."""

    template: str
    pid: int
    pipe: Connection
    waiting: deque[dict[str, Any]] = field(default_factory=deque)


class TemplateServer:
    """Answers until its requests end."""

    def __init__(self, requests: Connection, answers: Connection) -> None:
        self._requests = requests
        self._answers = answers
        self._renderers: dict[str, _Renderer] = {}  # by template, the last used at the end
        self._selector = selectors.DefaultSelector()

    def run(self) -> None:
        self._selector.register(self._requests, selectors.EVENT_READ)
        with suppress(EOFError):
            while True:
                for key, _ in self._selector.select():
                    if isinstance(key.data, _Renderer):
                        self._receive(key.data)
                    else:
                        self._take(json.loads(self._requests.recv_bytes()))

    def _take(self, request: dict[str, Any]) -> None:
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
        parent = os.getpid()
        pid = os.fork()
        if pid:
            of_fork.close()
            renderer = _Renderer(template, pid, own)
            self._selector.register(own, selectors.EVENT_READ, renderer)
            return renderer
        try:
            own.close()
            end_with_parent(parent, signal.SIGKILL)
            limit_memory(MEMORY_BYTES)
            _render_all(of_fork)
        finally:
            os._exit(1)  # never back to the loop of the parent

    def _receive(self, renderer: _Renderer) -> None:
        try:
            answer: dict[str, Any] = json.loads(renderer.pipe.recv_bytes())
        except (EOFError, OSError):
            answer = {"refused": _ended(self._end(renderer))}
            if renderer.waiting:
                self._answer(renderer.waiting.popleft(), answer)
            if renderer.waiting:
                again = self._renderers[renderer.template] = self._fork(renderer.template)
                again.waiting = renderer.waiting
                self._send(again)
            return
        self._answer(renderer.waiting.popleft(), answer)
        if renderer.waiting:
            self._send(renderer)

    def _answer(self, request: dict[str, Any], answer: dict[str, Any]) -> None:
        self._answers.send_bytes(json.dumps({"id": request["id"], **answer}).encode())

    def _end(self, renderer: _Renderer) -> int:
        """End the fork, and return its status."""
        self._renderers.pop(renderer.template, None)
        self._selector.unregister(renderer.pipe)
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
            add_generation_prompt=True,
            **request["special_tokens"],
        )
    except MemoryError:
        return {"refused": _TOO_LARGE}
    except Exception as error:  # noqa: BLE001 - a template raises whatever its expressions do
        return {"refused": str(error) or type(error).__name__}
    [text], _ = rendered
    return {"text": text}


_TOO_LARGE = f"it takes more than {MEMORY_BYTES // 2**20} MB of memory"


def _ended(status: int) -> str:
    """Why a fork has given no answer."""
    return f"it takes more than {MAX_CPU_S:g} s" if took_longer(status) else _TOO_LARGE


def main(parent: str) -> None:
    end_with_parent(int(parent), signal.SIGKILL)
    be_killed_first()
    requests = Connection(sys.stdin.fileno(), writable=False)
    TemplateServer(requests, Connection(sys.stdout.fileno(), readable=False)).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
