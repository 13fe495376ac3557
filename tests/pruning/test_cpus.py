"""The CPUs of a process: cgroups of both versions, affinity, and threads that sleep."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from pruning.config import foreign_environment, share_cpus
from pruning.cpus import cpu_quotas, usable_cpus
from pruning.environment import offline_environment

V1 = ("cpu.cfs_quota_us", "cpu.cfs_period_us")


@pytest.mark.parametrize(
    ("own", "files", "quotas"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, [1.5]),
        ("0::/\n", {"cpu.max": "max 100000\n"}, []),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"}, [0.5]),
        ("0::/a/b\n", {"a/b/cpu.max": "300000 100000", "a/cpu.max": "2000 1000"}, [3, 2]),
        (
            "4:memory:/x\n3:cpu,cpuacct:/x\n",
            {f"cpu,cpuacct/x/{V1[0]}": "200000", f"cpu,cpuacct/x/{V1[1]}": "100000"},
            [2],
        ),
        ("3:cpu:/\n", {f"cpu/{V1[0]}": "-1", f"cpu/{V1[1]}": "100000"}, []),
        ("5:cpuset:/\n", {"cpuset/cpu.max": "1000 1000"}, []),
        ("0::/not/mounted\n", {}, []),
    ],
)
def test_quotas_are_those_of_all_cgroups_around(
    tmp_path: Path, own: str, files: Mapping[str, str], quotas: list[float]
) -> None:
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert list(cpu_quotas(tmp_path / "own", tmp_path / "cgroup")) == quotas
    assert list(cpu_quotas(tmp_path / "none", tmp_path / "cgroup")) == []


@pytest.mark.parametrize(
    ("quotas", "cpus"), [([], 8), ([2.9], 2), ([0.4], 1), ([3, 1.5], 1), ([64], 8)]
)
def test_a_part_of_a_cpu_runs_no_thread(
    monkeypatch: pytest.MonkeyPatch, quotas: list[float], cpus: int
) -> None:
    monkeypatch.setattr("pruning.cpus.cpu_quotas", lambda: iter(quotas))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert usable_cpus() == cpus


SET_UP = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from pruning.config import share_cpus
share_cpus()
from pruning.models.store import set_up_torch
import torch
set_up_torch()
print(torch.get_num_threads(), os.environ.get("GOMP_SPINCOUNT"))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="affinity is Linux's")
@pytest.mark.parametrize(
    ("policy", "spin_count"),
    [("", "2000"), pytest.param("active", "None", marks=pytest.mark.slow)],
)
def test_torch_has_a_thread_for_each_cpu_and_what_the_user_set_stays(
    monkeypatch: pytest.MonkeyPatch, policy: str, spin_count: str
) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if policy:
        monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    ran = subprocess.run([sys.executable, "-c", SET_UP], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["1", spin_count]


def test_programs_of_others_spin_as_they_would_without_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")  # so that both are restored
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    share_cpus()
    assert foreign_environment()["GOMP_SPINCOUNT"] == "7", "the user set it"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.delenv("GOMP_SPINCOUNT")
    share_cpus()
    assert "GOMP_SPINCOUNT" in offline_environment()
    assert "GOMP_SPINCOUNT" not in foreign_environment()
