"""One ``vllm serve``: started by a keeper, ready once it has generated a token.

It listens on a Unix socket in a folder that only this user can enter, and needs a key.
"""

import asyncio
import os
import re
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2

from app.vllm import keeper

MIN_VERSION = (0, 20)
_POLL_S = 0.2
_STOP_S = keeper.GRACE_S + 5
_LOG_TAIL_BYTES = 65_536
_MAX_REASON_CHARS = 400
_ERROR = re.compile(r"\b([A-Za-z_.]*(?:Error|Exception|error): .+)")
# a warning may name an error that it fears
_HARMLESS = re.compile(r"\b(?:INFO|WARNING) \d\d-\d\d ")
_SEQUEL = "Engine core initialization failed"  # of another error, which is above it


class VllmStartFailed(RuntimeError):
    """vLLM did not generate a token. Nothing of it is left."""


@dataclass(frozen=True)
class Launch:
    """What to start, the socket that it listens on, and its log."""

    command: Sequence[str]
    environment: Mapping[str, str]
    model: str  # its name there
    key: str
    socket: Path  # in a folder of its own, which the keeper removes
    log: Path
    start_s: float  # until the first token


@dataclass(frozen=True)
class Facts:
    """What a server says of itself."""

    version: str
    max_model_len: int


@dataclass(frozen=True, eq=False)
class VllmProcess:
    """A running server. It ends with this process, however this one ends."""

    process: asyncio.subprocess.Process
    folder: Path
    facts: Facts

    @classmethod
    async def start(cls, launch: Launch) -> "VllmProcess":
        """Raises ``VllmStartFailed``."""
        process, folder = await _spawn(launch), launch.socket.parent
        try:
            return cls(process, folder, await _first_token(process, launch))
        except BaseException:
            await _stop(process, folder)
            raise

    async def stop(self) -> None:
        await _stop(self.process, self.folder)


async def _spawn(launch: Launch) -> asyncio.subprocess.Process:
    folder = launch.socket.parent
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    launch.log.parent.mkdir(parents=True, exist_ok=True)
    if launch.log.exists():
        launch.log.replace(launch.log.with_suffix(".log.1"))
    command = [sys.executable, "-m", keeper.__name__, str(folder), *launch.command]
    with launch.log.open("wb") as log:
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=dict(launch.environment),
            start_new_session=True,
        )


async def _stop(process: asyncio.subprocess.Process, folder: Path) -> None:
    """The keeper ends everything when its standard input is closed, unless it was killed."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), _STOP_S)
    except TimeoutError:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    keeper.end_orphans(folder)


async def _first_token(process: asyncio.subprocess.Process, launch: Launch) -> Facts:
    answer = asyncio.create_task(_facts(launch))
    end = asyncio.create_task(process.wait())
    try:
        await asyncio.wait(
            {answer, end}, timeout=launch.start_s, return_when=asyncio.FIRST_COMPLETED
        )
        if answer.done():
            return _checked(answer.result())
        if end.done():
            raise VllmStartFailed(
                f"vLLM exited with code {end.result()} before it generated a token: "
                f"{_reason(launch.log)} (log: {launch.log})"
            )
        raise VllmStartFailed(
            f"vLLM generated no token within {launch.start_s:g} s and was stopped: see its "
            f"log {launch.log}, or raise SLEB_VLLM_START_S"
        )
    finally:
        answer.cancel()
        end.cancel()
        await asyncio.wait({answer, end})


async def _facts(launch: Launch) -> Facts:
    """Ask until there is an answer. Raises ``VllmStartFailed`` for one that is wrong."""
    transport = httpx2.AsyncHTTPTransport(uds=str(launch.socket))
    headers = {"Authorization": f"Bearer {launch.key}"}
    async with httpx2.AsyncClient(
        transport=transport, base_url="http://vllm", headers=headers, timeout=launch.start_s
    ) as client:
        body = {"model": launch.model, "prompt": [0], "max_tokens": 1, "ignore_eos": True}
        while True:
            try:
                token = await client.post("/v1/completions", json=body)
                models, version = await client.get("/v1/models"), await client.get("/version")
            except httpx2.TransportError:
                await asyncio.sleep(_POLL_S)
                continue
            return _parsed(token, models, version)


def _parsed(token: httpx2.Response, models: httpx2.Response, version: httpx2.Response) -> Facts:
    try:
        usage = token.json()["usage"]
        [model] = models.json()["data"]
        if usage["completion_tokens"] == 1:
            return Facts(str(version.json()["version"]), int(model["max_model_len"]))
    except (ValueError, LookupError, TypeError):
        pass
    said = token.text[:_MAX_REASON_CHARS]
    raise VllmStartFailed(f"vLLM started, but generated no token: {token.status_code} {said}")


def _checked(facts: Facts) -> Facts:
    """Raises ``VllmStartFailed`` for a version that lacks what requests ask for."""
    if not is_new_enough(facts.version):
        least = ".".join(map(str, MIN_VERSION))
        raise VllmStartFailed(
            f"vLLM {facts.version} is too old, expected {least} or newer: upgrade it, or "
            "set SLEB_VLLM to a newer one"
        )
    return facts


def is_new_enough(version: str) -> bool:
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return numbers is not None and (int(numbers[1]), int(numbers[2])) >= MIN_VERSION


def _reason(log: Path) -> str:
    """The error in the log that the others follow from, or its last line."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
        lines = file.read().decode(errors="replace").split("\n")
    failures = (line for line in lines if not _HARMLESS.search(line))
    errors = [match[1] for line in failures if (match := _ERROR.search(line))]
    causes = [error for error in errors if _SEQUEL not in error]
    last = next((line for line in reversed(lines) if line.strip()), "its log is empty")
    return (causes or errors or [last])[-1].strip()[:_MAX_REASON_CHARS]
