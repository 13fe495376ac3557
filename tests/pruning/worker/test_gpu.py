"""The memory of GPUs: as the driver has it, and nothing where it has none.

The driver is the one thing here that stands in for something else: no test machine has a GPU.
"""

from types import SimpleNamespace

import pynvml
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from pruning.worker.gpu import GpuMemoryCollector, gpu_memory
from tests.support.exposition import Scrape

USED = {0: 3 * 2**30, 1: 5, 2: 7}  # 2: a MIG device
UUIDS = {0: "GPU-8932f937-d72c", 1: "GPU-89aa01b2-1c3d"}
TOTAL = 80 * 2**30


def handle_of_mig(uuid: str) -> int:
    if uuid == "MIG-c6d4f1ef":
        return 2
    raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two devices; what is returned says whether the library was opened and closed."""
    calls: list[str] = []
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: calls.append("init"))
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: calls.append("shutdown"))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: len(UUIDS))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda device: device)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUUID", UUIDS.get)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", handle_of_mig)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(
        pynvml,
        "nvmlDeviceGetMemoryInfo",
        lambda device: SimpleNamespace(used=USED[device], total=TOTAL),
    )
    return calls


def scraped() -> Scrape:
    registry = CollectorRegistry()
    registry.register(GpuMemoryCollector())
    return Scrape(generate_latest(registry).decode())


def test_every_device_is_told(driver: list[str]) -> None:
    assert gpu_memory() == [(USED[0], TOTAL), (USED[1], TOTAL)]
    assert driver == ["init", "shutdown"]
    scrape = scraped()
    assert scrape.value("sleb_gpu_memory_used_bytes", device="0") == USED[0]
    assert scrape.value("sleb_gpu_memory_total_bytes", device="1") == TOTAL


@pytest.mark.parametrize("function", ["nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetMemoryInfo"])
def test_without_an_answer_there_are_none(
    driver: list[str], monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    def fail(*_: object) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_UNKNOWN)

    monkeypatch.setattr(pynvml, function, fail)
    assert gpu_memory() == []
    assert driver.count("init") == driver.count("shutdown")
    assert scraped().names == set()


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize(
    ("visible", "shown"),
    [
        ("1", [1]),
        ("1, 0", [1, 0]),
        ("GPU-89a,GPU-8932f937-d72c", [1, 0]),
        ("MIG-c6d4f1ef", [2]),
        ("0,-1,1", [0]),  # as CUDA does it
        ("0,7,1", [0]),
        ("GPU-89", []),  # of two
        ("MIG-unknown,0", []),
        ("", []),
        ("0,,1", [0]),
    ],
)
def test_they_are_those_that_cuda_shows(
    monkeypatch: pytest.MonkeyPatch, visible: str, shown: list[int]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [used for used, _ in gpu_memory()] == [USED[each] for each in shown]
