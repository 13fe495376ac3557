"""``sleb doctor`` on machines with and without problems."""

import json
import os
import resource
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from prometheus_client import CollectorRegistry, Gauge, start_http_server
from rich.console import Console
from typer.testing import CliRunner

from app.auth.keys import KeyFile, Scope
from app.cli.main import app as command_line
from app.config import ServeSettings
from app.doctor.doctor import diagnose
from app.doctor.finding import Level, fine, print_findings, wrong
from app.doctor.gpu import Gpus, device, gpus, room_bytes
from app.doctor.machine import (
    compiled,
    disk,
    extras,
    kernels,
    memory,
    open_files,
    packages,
    port,
    products,
    writable,
)
from app.engine.autotuning import Choice
from app.engine.kernels.compiled.block import float32_block
from app.engine.kernels.compiled.openmp import ParallelFunction
from tests.support.compilable import count
from tests.support.compiled import counted
from tests.support.processes import free_port
from tests.support.serving import local_api

SOMEBODY = 65534  # who may nothing


@pytest.fixture
def data_dir(monkeypatch: pytest.MonkeyPatch, tiny_models_dir: Path) -> Path:
    data_dir = tiny_models_dir.parent
    monkeypatch.setenv("SLEB_DATA_DIR", str(data_dir))
    monkeypatch.setenv("SLEB_PORT", str(free_port()))
    return data_dir


@contextmanager
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@contextmanager
def without_rights() -> Iterator[None]:
    """Run as a user that file permissions apply to, which they do not to root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(SOMEBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_machine_that_is_well(data_dir: Path) -> None:
    result = CliRunner().invoke(command_line, ["doctor", "--json"])
    report = json.loads(result.stdout)
    assert not [each for each in report["findings"] if each["level"] == "wrong"]
    assert (result.exit_code, report["healthy"]) == (0, True)
    checks = {each["check"] for each in report["findings"]}
    assert checks >= {"packages", "settings", "device", "memory", "disk", "job store", "clock"}
    assert checks >= {"persistence", "model tiny", "open files", f"directory {data_dir.name}"}


@pytest.mark.usefixtures("data_dir")
def test_each_finding_is_printed_before_the_next_check(capsys: pytest.CaptureFixture[str]) -> None:
    steps: list[str] = []

    def said_before(what: str) -> None:
        steps.append(what)
        if what == "keys":
            assert "device" in capsys.readouterr().out

    assert print_findings(diagnose(said_before), Console(highlight=False), as_json=False)
    assert {"job store", "models", "ports and limits"} <= {*steps}


def test_everything_that_is_wrong_is_in_the_table_with_what_to_do(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data_dir / "models" / "tiny" / "config.json").write_text("{")
    with listening() as taken:
        monkeypatch.setenv("SLEB_PORT", str(taken))
        monkeypatch.setenv("SLEB_REDIS_URL", f"redis://127.0.0.1:{free_port()}")
        monkeypatch.setenv("COLUMNS", "300")
        result = CliRunner().invoke(command_line, ["doctor"])
    assert result.exit_code == 1
    assert "problems found: 3" in result.stdout
    for word in ("model tiny", "cannot listen", "is unavailable", "change SLEB_PORT"):
        assert word in result.stdout


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("SLEB_PROT", "1", "did you mean SLEB_PORT"),
        ("SLEB_THREADS", "x", "threads"),
        ("SLEB_DEVICE", "mps", "(SLEB_DEVICE): 'mps' is not supported: set it to auto, cpu"),
        ("SLEB_SHADOW_DIRECTION", "@-6", "SLEB_SHADOW_SHARE"),
        ("SLEB_SECRETS_DIR", "/nowhere", "cannot read SLEB_SECRETS_DIR"),
    ],
)
def test_settings_that_cannot_be_are_a_finding(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, word: str
) -> None:
    monkeypatch.setenv(name, value)
    result = CliRunner().invoke(command_line, ["doctor", "--json"])
    assert result.exit_code == 1
    [found] = [each for each in json.loads(result.stdout)["findings"] if each["level"] == "wrong"]
    assert found["check"] == "settings"
    assert word in found["said"]


def test_an_open_door_is_told_until_there_is_a_key(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked() -> tuple[str, str]:
        result = CliRunner().invoke(command_line, ["doctor", "--json"])
        found = {each["check"]: each for each in json.loads(result.stdout)["findings"]}["keys"]
        return found["level"], found["said"]

    assert asked()[0] == "ok"
    monkeypatch.setenv("SLEB_HOST", "0.0.0.0")  # noqa: S104 - nothing listens
    level, said = asked()
    assert level == "wrong"
    assert "sleb keys create" in said
    monkeypatch.setenv("SLEB_INSECURE", "true")
    assert asked()[0] == "note"
    KeyFile(data_dir / "keys.json").create("a", [Scope.JOBS])
    assert asked() == ("ok", "required; 1 configured")
    (data_dir / "keys.json").write_text("{")
    assert asked()[0] == "wrong"


def test_a_port_that_is_taken_or_not_of_this_machine_is_told() -> None:
    assert port("SLEB_PORT", "127.0.0.1", 0, "x").level is Level.OK
    assert port("SLEB_PORT", "127.0.0.1", free_port(), "x").level is Level.OK
    assert port("SLEB_PORT", "192.0.2.1", free_port(), "x").level is Level.WRONG
    with listening() as taken:
        found = port("SLEB_PORT", "127.0.0.1", taken, "x")
    assert found.level is Level.WRONG
    assert "SLEB_PORT" in found.advice


def test_a_port_that_a_service_of_ours_has_is_well() -> None:
    registry = CollectorRegistry()
    Gauge("sleb_ready", "1", registry=registry)
    server, thread = start_http_server(0, "127.0.0.1", registry)
    try:
        number = server.server_port
        assert port("SLEB_PORT", "127.0.0.1", number, "sleb_ready").level is Level.OK
        assert port("SLEB_PORT", "127.0.0.1", number, "sleb_worker_up").level is Level.WRONG
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_api_has_the_metric_that_it_is_known_by(tmp_path: Path, redis_url: str) -> None:
    with local_api(ServeSettings(data_dir=tmp_path, drain_s=0), redis_url) as client:
        assert "sleb_ready" in client.get("/metrics").text


def test_a_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    assert writable(tmp_path / "new").level is Level.OK
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").touch()
    assert writable(tmp_path / "file").level is Level.WRONG
    tmp_path.chmod(0o555)
    with without_rights():
        found = writable(tmp_path)
    tmp_path.chmod(0o755)
    assert found.level is Level.WRONG
    assert "SLEB_DATA_DIR" in found.advice


def test_a_disk_without_room_for_the_largest_model_is_told(tmp_path: Path) -> None:
    assert disk(tmp_path / "not" / "there", 0).level is Level.OK
    assert disk(tmp_path, 10**18).level is Level.WRONG


@pytest.mark.parametrize(
    ("preloaded", "room", "level"),
    [
        (["a", "b"], 30, Level.OK),
        (["a", "b"], 29, Level.NOTE),
        (["a"], 20, Level.OK),
        ([], 19, Level.WRONG),
        (["gone"], 20, Level.OK),
    ],
)
def test_models_that_do_not_fit_are_told(preloaded: list[str], room: int, level: Level) -> None:
    found = memory({"a": 10, "b": 20}, preloaded, room)
    assert found.level is level
    assert ("b:" in found.said) == (level is Level.WRONG)


def test_packages_that_do_not_fit_are_told() -> None:
    assert packages().level is Level.OK
    assert packages(['absent-package; extra == "x"']).level is Level.OK
    for wanted, word in (("torch>=99", "expected >=99"), ("absent-package", "not installed")):
        found = packages([wanted])
        assert found.level is Level.WRONG
        assert word in found.said


def test_extras_that_settings_ask_for_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert extras({"s3": "SLEB_X"})[0].level is Level.OK
    monkeypatch.setitem(sys.modules, "s3fs", None)
    installed, absent = extras({})
    assert (installed.level, absent.level) == (Level.OK, Level.OK)
    assert "s3" not in installed.said
    assert "s3, for stores in S3" in absent.said.splitlines()
    [found] = extras({"s3": "SLEB_X"})
    assert found.level is Level.WRONG
    assert "SLEB_X is set, but extra s3 is not installed" in found.said
    assert found.advice.startswith("pip install 'sleb-serve[s3]'")


def test_too_few_open_files_are_told() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (500, hard))
    try:
        assert open_files(320).level is Level.WRONG
        assert open_files(100).level is Level.OK
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert open_files(320, 576).level is Level.OK
    assert open_files(320, -1).level is Level.OK
    found = open_files(320, 575)
    assert found.level is Level.WRONG
    assert "ulimit -n 576" in found.advice


NEW_DRIVER = Gpus((80 * 10**9,), "13.0", "12.8", 1)
OLD_DRIVER = Gpus(torch_cuda="13.0", driver="470.57.02")


@pytest.mark.parametrize(
    ("wanted", "found", "level", "word"),
    [
        ("auto", Gpus(), Level.OK, "CPU"),
        ("auto", NEW_DRIVER, Level.OK, "1 of 1"),
        ("cpu", Gpus((1,), "11.0", "12.8", 0), Level.OK, "CPU"),
        ("cuda:0", NEW_DRIVER, Level.OK, "1 of 1"),
        ("cuda:1", NEW_DRIVER, Level.WRONG, "sees only 1"),
        ("cuda", Gpus(), Level.WRONG, "sees only 0"),
        ("auto", Gpus((1,), "13.0", None, 0), Level.WRONG, "built without CUDA"),
        ("auto", Gpus((1,), "12.4", "13.0", 0), Level.WRONG, "CUDA 12.4, but torch was built"),
        ("auto", Gpus((1,), "12.4", "12.8", 0), Level.WRONG, "torch cannot use any of them"),
        ("auto", OLD_DRIVER, Level.WRONG, "CUDA 13.0, which needs driver 580 or newer"),
        ("cuda:1", OLD_DRIVER, Level.WRONG, "the NVIDIA driver is 470.57.02"),
        ("cpu", OLD_DRIVER, Level.OK, "CPU"),
        ("auto", Gpus((1,), "13.0", "12.8", 0), Level.WRONG, "torch cannot use any of them"),
    ],
)
def test_a_device_that_cannot_be_had_is_told(
    wanted: str, found: Gpus, level: Level, word: str
) -> None:
    said = device(wanted, found)
    assert said.level is level
    assert word in said.said
    assert bool(said.advice) == (level is Level.WRONG)


def test_gpus_that_are_hidden_or_not_tested_are_told() -> None:
    hidden = device("auto", replace(NEW_DRIVER, total_bytes=(), num_usable=0, num_installed=2))
    assert hidden.level is Level.NOTE
    assert "CUDA_VISIBLE_DEVICES hides all of 2 GPUs" in hidden.said
    of_amd = device("cuda:1", Gpus(num_usable=2, torch_rocm="6.4"))
    assert of_amd.level is Level.NOTE
    assert of_amd.said == "2 of 2 GPUs are usable, with torch for ROCm 6.4"


def test_the_room_is_that_of_the_device() -> None:
    assert room_bytes("auto", NEW_DRIVER) == 80 * 10**9
    assert 0 < room_bytes("cpu", NEW_DRIVER) == room_bytes("auto", Gpus())
    assert device("auto", gpus()).said


def test_the_faster_type_of_products_is_told() -> None:
    assert "dtype float32" in products("float32").said
    assert "dtype float32" not in products("bfloat16").said


def test_chosen_kernels_are_told_with_what_they_gain() -> None:
    assert kernels({}).level is Level.OK
    choice = Choice("products", {"fused attention": 3e-4, "products": 2e-4})
    found = kernels({"a token each 64x3 bfloat16": choice, "a prompt": choice})
    gain = "products, 1.50 × as fast as fused attention"
    assert found.said.splitlines() == [
        f"a token each 64x3 bfloat16: {gain}",
        f"a prompt: {gain}",
    ]


def test_compiled_blocks_are_told_by_the_types_that_are_kept(
    kept_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {
        torch.float32: ParallelFunction(float32_block),
        torch.bfloat16: ParallelFunction(count),
    }
    monkeypatch.setattr("app.doctor.machine.BLOCKS", whole)
    assert "none yet" in compiled("on", kept_in).said
    counted(whole[torch.bfloat16])
    assert compiled("on", kept_in).said == "compiled for bfloat16"
    assert "SLEB_TUNE is off" in compiled("off", kept_in).said
    monkeypatch.setattr("app.doctor.machine.has_openmp", lambda: False)
    assert compiled("on", kept_in).level is Level.NOTE


def test_findings_have_a_line_each_in_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    choice = Choice("fused attention", {"fused attention": 2e-4, "products": 3e-4})
    choices = {f"a token each {n}x3x3x64x64 bfloat16": choice for n in (1, 4)}
    findings = [fine("settings", "valid"), kernels(choices), wrong("disk", "[/b] full", "free it")]
    console = Console(highlight=False)
    assert not print_findings(findings, console, as_json=False, is_verbose=True)
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "ok     settings: valid",
        "ok     kernels:",
        "       - a token each 1x3x3x64x64 bfloat16: fused attention, 1.50 × as fast as",
        "       products",
        "       - a token each 4x3x3x64x64 bfloat16: fused attention, 1.50 × as fast as",
        "       products",
        "wrong  disk: [/b] full",
        "       fix: free it",
        "problems found: 1",
    ]
    assert not print_findings(findings, console, as_json=False)
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "ok     settings: valid",
        "wrong  disk: [/b] full",
        "       fix: free it",
        "problems found: 1; --verbose shows 1 detail",
    ]
