"""A driver that is too old for torch: found by its own file, and said at the start.

The file is written here, and says what drivers write into it: no test machine has a GPU.
"""

from pathlib import Path

import pytest
import torch

from app.settings import check_device
from pruning.config import Settings
from pruning.models import nvidia_driver
from pruning.models.nvidia_driver import driver_version, old_driver, warn_of_old_driver
from pruning.models.store import pick_device

PROPRIETARY = """\
NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue Jul 13 16:14:05 UTC 2021
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)
"""
OPEN = """\
NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65  Release Build  (root@host)
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)
"""


@pytest.fixture
def version_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "version"
    monkeypatch.setattr(nvidia_driver, "VERSION_FILE", path)
    return path


@pytest.mark.parametrize(
    ("text", "version"), [(PROPRIETARY, "470.57.02"), (OPEN, "580.65"), ("", None), (None, None)]
)
def test_the_version_is_read(version_file: Path, text: str | None, version: str | None) -> None:
    if text is not None:
        version_file.write_text(text)
    assert driver_version() == version


@pytest.mark.parametrize(
    ("driver", "cuda", "needed"),
    [
        ("470.57.02", "11.8", None),
        ("470.57.02", "12.6", "525.60.13"),
        ("525.60.13", "12.8", None),  # a minor version is no reason
        ("575.64", "13.0", "580"),
        ("580.65.06", "13.2", None),
        ("470.57.02", "99.0", None),  # not known
        ("470.57.02", None, None),
        (None, "13.0", None),
    ],
)
def test_what_a_build_of_torch_needs(
    driver: str | None, cuda: str | None, needed: str | None
) -> None:
    found = old_driver(driver, cuda)
    assert (None if found is None else found.needed) == needed


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU of this machine can be used")
def test_the_start_of_a_service_says_it_once(
    version_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    version_file.write_text(PROPRIETARY)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    warn_of_old_driver.cache_clear()
    check_device(Settings(device="cpu"))
    assert caplog.messages == []
    check_device(Settings(device="auto"))
    assert pick_device("auto") == "cpu"
    [said] = caplog.messages
    assert "the NVIDIA driver is 470.57.02, but torch was built for CUDA 13.0" in said
    assert "needs driver 580 or newer: the CPU is used; update the driver: torch 2.9" in said


def test_another_torch_is_proposed_where_there_is_one() -> None:
    for driver, word in (("470.57.02", "525.60.13 or newer"), ("535.54", "--torch-backend auto")):
        found = old_driver(driver, "13.0")
        assert found is not None
        assert word in found.advice
