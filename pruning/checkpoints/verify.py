"""Verify before publishing that a checkpoint loads as the model that was measured.

A fresh process loads it, which shares nothing with the model in memory.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pruning.checkpoints.staging import scratch_for
from pruning.checkpoints.verify_expected import Expectation, expectation
from pruning.checkpoints.verify_reload import CheckpointNotPortable, compare
from pruning.config import Verify, offline_environment
from pruning.models.blocks import NO_OWN, Own
from pruning.search.dense_model import DenseModel
from pruning.sleb import Blocks
from pruning.spec.prune import Quantize

POLL_S = 1.0
_LIMIT_S = 600
_BYTES_PER_S = 20e6  # that the slowest disk is taken to give, on top of that


def verify_portable(
    directory: Path,
    dense: DenseModel,
    keep: Blocks,
    own: Own = NO_OWN,
    *,
    quantize: Quantize | None = None,
    how: Verify = Verify.PROCESS,
    device: str = "auto",
    ask: Callable[[], object] = lambda: None,
) -> None:
    """Load the checkpoint that keeps these blocks from ``directory`` and compare it with ``dense``.

    ``own`` are the tensors that its repair has changed, and ``quantize`` is what its weights were
    rounded to. While a process does it, ``ask`` is asked
    once a second, and what it raises ends that. Raises ``CheckpointNotPortable``, which says what
    differs.
    """
    if how is Verify.OFF:
        return
    expected = expectation(dense, keep, device, own, quantize)
    try:
        if how is Verify.INLINE:
            compare(directory, expected)
        else:
            _in_a_fresh_process(directory, expected, ask)
    except CheckpointNotPortable as error:
        raise CheckpointNotPortable(
            f"not published: what was written is not the model that was measured: {error}"
        ) from error


def _in_a_fresh_process(directory: Path, expected: Expectation, ask: Callable[[], object]) -> None:
    with scratch_for(directory) as scratch:  # swept if this process is killed
        file, verdict, log = (scratch / name for name in ("expected", "verdict", "log"))
        expected.save(file)
        command = [sys.executable, "-m", "pruning.checkpoints.verify_reload"]
        arguments = [str(directory), str(file), str(verdict), str(os.getpid())]
        with log.open("wb") as errors:
            process = subprocess.Popen(  # noqa: S603 - our own module, over our own files
                [*command, *arguments],
                env=offline_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        try:
            code = _ended(process, _limit_s(directory), ask)
        finally:
            process.kill()
            process.wait()
        if verdict.is_file():
            raise CheckpointNotPortable(verdict.read_text(encoding="utf-8"))
        if code != 0:
            raise CheckpointNotPortable(_broken_off(code, log))


def _limit_s(directory: Path) -> float:
    num_bytes = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    return _LIMIT_S + num_bytes / _BYTES_PER_S


def _ended(process: "subprocess.Popen[bytes]", limit_s: float, ask: Callable[[], object]) -> int:
    """The exit code. Raises ``CheckpointNotPortable`` at the limit, and what ``ask`` raises."""
    deadline_s = time.monotonic() + limit_s
    while time.monotonic() < deadline_s:
        try:
            return process.wait(timeout=POLL_S)
        except subprocess.TimeoutExpired:
            ask()
    raise CheckpointNotPortable(f"loading it has not ended within {limit_s:.0f} s")


def _broken_off(code: int, log: Path) -> str:
    if code < 0:
        return (
            f"the process that loads it was killed by signal {-code}: if the system did so for "
            f"want of memory, free some, or set SLEB_VERIFY=inline or off"
        )
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"the process that loads it broke off: {said[-1] if said else f'exit code {code}'}"
