"""The doctor's check of vLLM."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.config import ServeSettings
from app.doctor import vllm as doctor_vllm
from app.doctor.finding import Finding, Level
from app.doctor.vllm import servers, vllm
from tests.support.serving import serving
from tests.support.vllm_program import write_program
from tests.support.waiting import wait_until


@pytest.fixture(autouse=True)
def _nothing_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")


def test_it_need_not_be_there() -> None:
    assert vllm(ServeSettings()).level is Level.OK


def test_its_version_is_told(tmp_path: Path) -> None:
    program = write_program(tmp_path / "vllm")
    found = vllm(ServeSettings(engine="vllm", vllm=program))
    assert (found.level, found.said) == (Level.OK, f"{program} is 0.32.0")


PROGRAMS = [
    ("#!/bin/sh\necho 0.8.5\n", "is 0.8.5"),
    ("#!/bin/sh\necho no torch >&2\nexit 1\n", "--version failed: no torch"),
    ("#!/no/such/program\n", "No such file"),
]


@pytest.mark.parametrize(("text", "expected"), PROGRAMS)
def test_what_is_wrong_with_it_is_told(tmp_path: Path, text: str, expected: str) -> None:
    program = tmp_path / "vllm"
    program.write_text(text)
    program.chmod(0o755)
    found = vllm(ServeSettings(vllm=program))
    assert found.level is Level.WRONG
    assert expected in found.said


def test_a_program_that_is_asked_for_and_missing_is_wrong() -> None:
    for settings in (ServeSettings(engine="vllm"), ServeSettings(vllm_models=("m",))):
        found = vllm(settings)
        assert found.level is Level.WRONG
        assert "no program `vllm` is on the PATH" in found.said
    missing = vllm(ServeSettings(vllm=Path("/no/such/vllm")))
    assert "SLEB_VLLM=/no/such/vllm does not exist" in missing.said


@pytest.fixture
def served(data_dir: Path, tmp_path: Path, redis_url: str) -> Iterator[ServeSettings]:
    """Settings of a service that runs, with a program of its own for each model."""
    program = write_program(tmp_path / "program")
    settings = ServeSettings(
        data_dir=data_dir, engine="vllm", vllm=program, vllm_start_s=60.0, drain_s=0, tune="off"
    )
    with serving(settings, redis_url) as (_, url):
        yield settings.model_copy(update={"port": int(url.rpartition(":")[2])})


def test_the_servers_of_a_service_that_runs_are_told(served: ServeSettings) -> None:
    def found() -> list[Finding]:
        return list(servers(served))

    wait_until(lambda: [each.said for each in found()] == ["ready"], "the doctor sees it")
    [ready] = found()
    assert (ready.check, ready.level) == ("vllm of tiny", Level.OK)
    assert not list(servers(served.model_copy(update={"port": 1})))


STATES = [
    ({"state": "starting"}, Level.OK, "starting"),
    (
        {"state": "restarting", "num_restarts": 2, "detail": "vLLM exited with code 137"},
        Level.NOTE,
        "restarting, restarted 2 times: vLLM exited with code 137",
    ),
    ({"state": "failed", "detail": "no kernel"}, Level.WRONG, "failed: no kernel"),
]


@pytest.mark.parametrize(("state", "level", "said"), STATES)
def test_a_server_that_does_not_serve_is_told(
    monkeypatch: pytest.MonkeyPatch, state: dict[str, object], level: Level, said: str
) -> None:
    answer = json.dumps({"status": "ready", "vllm": {"m@-3": state}})
    monkeypatch.setattr(doctor_vllm, "asked", lambda *_: answer)
    [found] = servers(ServeSettings())
    assert (found.level, found.said) == (level, said)
    assert ("m@-3.log" in found.advice) == (level is not Level.OK)


@pytest.mark.parametrize("answer", ["", "no", "[]", '{"vllm": 3}', '{"vllm": {"m": 3}}', None])
def test_what_is_no_service_of_ours_says_nothing(
    monkeypatch: pytest.MonkeyPatch, answer: str | None
) -> None:
    monkeypatch.setattr(doctor_vllm, "asked", lambda *_: answer)
    assert not list(servers(ServeSettings()))
