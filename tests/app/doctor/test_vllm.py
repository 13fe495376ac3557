"""The doctor's check of vLLM."""

from pathlib import Path

import pytest

from app.config import ServeSettings
from app.doctor.finding import Level
from app.doctor.vllm import vllm
from tests.support.vllm_program import write_program


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
        assert "no program `vllm` on the PATH" in found.said
    missing = vllm(ServeSettings(vllm=Path("/no/such/vllm")))
    assert "SLEB_VLLM=/no/such/vllm does not exist" in missing.said
