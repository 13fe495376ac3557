"""A healing that SIGKILL meets at random moments ends as one that nothing met, to the last byte."""

import json
import os
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from random import Random
from threading import Timer
from typing import Any

import pytest

from pruning.checkpoints.store import MANIFEST, verify
from pruning.models.names import healed_name
from tests.support.healing import HEAL, NAME, Healed, heal_tiny
from tests.support.recorder import Recorder

NUM_KILLS = 10
OF_THE_CLOCK = {"created_at", "seconds"}


def without_times(record: Any) -> Any:
    """A manifest without what differs between any two runs, such as the digest of its card."""
    if isinstance(record, list):
        return [without_times(each) for each in record]
    if isinstance(record, dict):
        kept = {name: part for name, part in record.items() if name not in OF_THE_CLOCK}
        return {name: without_times(part) for name, part in kept.items() if name != "README.md"}
    return record


def contents(checkpoint: Path) -> dict[str, object]:
    """Every file but the card, which has the seconds of the training."""
    verify(checkpoint)
    files = {path for path in checkpoint.rglob("*") if path.is_file()}
    found: dict[str, object] = {
        str(path.relative_to(checkpoint)): path.read_bytes()
        for path in files
        if path.name not in (MANIFEST, "README.md")
    }
    return {**found, MANIFEST: without_times(json.loads((checkpoint / MANIFEST).read_text()))}


def heal(data_dir: Path) -> None:
    heal_tiny(data_dir, HEAL, healed_name(NAME), Recorder())


def is_killed(data_dir: Path, after_s: float) -> bool:
    """Heal in a process of its own, and whether it was killed before its end."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            heal(data_dir)
            code = 0
        finally:
            os._exit(code)
    killing = Timer(after_s, partial(os.kill, child, signal.SIGKILL))
    killing.start()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    killing.cancel()
    assert code in (0, -signal.SIGKILL)
    return code != 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_healing_that_is_killed_at_random_moments_publishes_the_same(
    healed: Healed, tmp_path: Path
) -> None:
    data_dir = tmp_path / "data"
    shutil.copytree(healed.data_dir, data_dir, ignore=shutil.ignore_patterns("*+*"))
    target, whole = data_dir / "checkpoints" / healed_name(NAME), contents(healed.target)
    began_s = time.monotonic()
    heal(data_dir)
    whole_s, num_killed, moments = time.monotonic() - began_s, 0, Random(time.time_ns())
    while num_killed < NUM_KILLS:
        assert contents(target) == whole
        shutil.rmtree(target)
        while is_killed(data_dir, moments.uniform(0, whole_s)):
            num_killed += 1
            assert not target.exists() or contents(target) == whole
    assert contents(target) == whole
    assert not (data_dir / "searches").exists()
