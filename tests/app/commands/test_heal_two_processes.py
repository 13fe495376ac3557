"""``sleb heal`` under torchrun: two processes end as one does, together, and go on together."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.support.deaths import Death, plan_death
from tests.support.healing import HEAL, NAME, Healed
from tests.support.processes import environment

STEP = "pruning.healing.train:Training._step"
OPTIONS = [
    part
    for name, value in asdict(HEAL).items()
    if value is not None and not isinstance(value, bool)
    for part in (f"--{name.replace('_', '-')}", str(value))
]


def heal_by_two(data_dir: Path) -> subprocess.CompletedProcess[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "tests.support.healing_process", "heal", NAME, *OPTIONS, "--json"]
    return subprocess.run(
        [sys.executable, *launch, *command],
        env=environment(data_dir),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_heal_as_one_even_if_one_of_them_is_killed(
    rank: int, healed: Healed, tmp_path: Path
) -> None:
    data_dir = tmp_path / "data"
    shutil.copytree(healed.data_dir, data_dir, ignore=shutil.ignore_patterns("*+*"))
    plan_death(data_dir, f"rank-{rank}", Death(STEP, 17))
    ended = heal_by_two(data_dir)
    assert ended.returncode == 1, ended.stderr
    if rank:  # the other one notices it, unless torchrun stops that first
        noticed = "another process of this healing ended" in ended.stderr
        assert noticed or "The training state is saved" in ended.stderr, ended.stderr
    assert not list(data_dir.glob("checkpoints/*+healed"))
    [state] = data_dir.glob("searches/*/healed.safetensors")
    ended = heal_by_two(data_dir)
    assert ended.returncode == 0, ended.stderr
    assert not state.parent.parent.exists()
    report = json.loads(ended.stdout)
    found: dict[str, Any] = report["healing"]
    assert healed.manifest.healing is not None
    whole = asdict(healed.manifest.healing)
    for which in ("run", "control"):
        assert found[which]["losses"] == pytest.approx(whole[which]["losses"], abs=1e-3)
        held_out = [check["loss"] for check in found[which]["checks"]]
        expected = [check["loss"] for check in whole[which]["checks"]]
        assert held_out == pytest.approx(expected, abs=1e-3)
