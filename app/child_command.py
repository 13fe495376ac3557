"""How this process starts a command of ``sleb`` that ends with it."""

import asyncio
import json
import os
import sys
from asyncio import StreamReader
from asyncio.subprocess import PIPE
from collections.abc import Callable, Sequence
from typing import Any

from pruning.config import Settings, child_environment


class CommandFailed(RuntimeError):
    """The process ended with an error. The message is the last line that it wrote."""


def command_of(name: str) -> Sequence[str]:
    """The command line, to which arguments can be added."""
    code = "from app.__main__ import run_child; run_child()"
    return sys.executable, "-c", code, str(os.getpid()), name


async def json_of(
    name: str,
    arguments: Sequence[str],
    settings: Settings,
    say: Callable[[str], object] = lambda _step: None,
) -> dict[str, Any]:
    """What the command prints as JSON. Calls ``say`` with each line of its standard error.

    The process ends if this is cancelled. Raises ``CommandFailed``.
    """
    process = await asyncio.create_subprocess_exec(
        *command_of(name),
        *arguments,
        stdout=PIPE,
        stderr=PIPE,
        env=child_environment(settings),
        start_new_session=True,  # Ctrl-C is for the service, which ends it
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        output, last = await asyncio.gather(process.stdout.read(), _said(process.stderr, say))
        if await process.wait():
            raise CommandFailed(last)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    found: dict[str, Any] = json.loads(output)
    return found


async def _said(lines: StreamReader, say: Callable[[str], object]) -> str:
    """The last line that says something."""
    last = ""
    async for line in lines:
        if text := line.decode(errors="replace").strip():
            last = text
            say(text)
    return last
