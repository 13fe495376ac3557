"""``sleb bench --engine vllm``, with processes that speak vLLM's routes."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from app.cli.main import app as command_line
from app.models.measured_speedups import MeasuredSpeedups
from app.results.store import ResultStore
from tests.support.api_fixtures import publish_pruned
from tests.support.processes import is_alive
from tests.support.vllm_program import write_program

SMALL = [
    *("--batch-size", "3", "--prompt-tokens", "4", "--new-tokens", "5", "--long-prompt", "9"),
    *("--concurrency", "2", "--requests", "5", "--served-tokens", "3", "--repeats", "2"),
]


@pytest.fixture
def data_dir(tiny_models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "notes").mkdir()
    arguments = f"--test-notes {tmp_path / 'notes'}"
    monkeypatch.setenv("SLEB_DATA_DIR", str(tiny_models_dir.parent))
    monkeypatch.setenv("SLEB_VLLM", str(write_program(tmp_path / "program")))
    monkeypatch.setenv("SLEB_VLLM_ARGS", arguments)
    publish_pruned(tiny_models_dir.parent)
    return tiny_models_dir.parent


def run(*arguments: str, variants: str = "@-3") -> Result:
    command = ["bench", "tiny", "--variants", variants, "--engine", "vllm", *SMALL, *arguments]
    return CliRunner().invoke(command_line, [*command, "--json"])


def test_dense_and_pruned_take_turns_as_servers(data_dir: Path, tmp_path: Path) -> None:
    result = run("--out", str(tmp_path / "out"))
    assert result.exit_code == 0, f"{result.output}{result.exception}"
    found: dict[str, Any] = json.loads(result.stdout)
    notes = tmp_path / "notes"
    arguments = ["--test-notes", str(notes)]
    assert found["engine"] == {"name": "vllm", "version": "0.32.0", "arguments": arguments}
    assert found["prompt_reading"] == "in full"
    tokens = {"generation": 3 * 5, "prompt": 9, "served": 5 * 3}
    for scenario, samples in found["samples"].items():
        assert list(samples) == ["dense", "dense again", "tiny@-3"]
        for runs in samples.values():
            assert [each["num_tokens"] for each in runs] == [tokens[scenario]] * 2
    assert {row["ideal"] for row in found["results"]} == {None}  # half a model is not measured
    assert "'name': 'vllm'" in (tmp_path / "out" / "bench.md").read_text()
    [kept] = ResultStore(data_dir).page(9).results
    assert kept.report["engine"] == found["engine"]
    assert not MeasuredSpeedups(data_dir).of("tiny", 3), "these are times of another engine"
    pids = [int(note.name) for note in notes.iterdir()]
    assert len(pids) == 2
    assert not any(map(is_alive, pids))


@pytest.mark.usefixtures("data_dir")
def test_more_sides_than_servers_are_refused_before_a_start(tmp_path: Path) -> None:
    result = run("--out", str(tmp_path / "out"), variants="@-3,@-2")
    assert "3 models in vLLM, but only 2 run at once" in str(result.exception)
    assert not list((tmp_path / "notes").iterdir())


@pytest.mark.usefixtures("data_dir")
@pytest.mark.parametrize("option", [("--dtype", "float32"), ("--slo", "ttft=1s")])
def test_options_of_the_own_engine_are_refused(tmp_path: Path, option: tuple[str, str]) -> None:
    result = run("--out", str(tmp_path / "out"), *option)
    assert result.exit_code == 2
    assert option[0] in result.output
