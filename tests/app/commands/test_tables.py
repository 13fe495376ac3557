"""``sleb models``: a column of perplexities has one text, which is named."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from app.cli.main import app as command_line
from app.commands.prune import print_run
from app.models.measured_speedups import Measurand, MeasuredSpeedup, MeasuredSpeedups
from pruning.checkpoints.store import MANIFEST
from pruning.evaluation.quality import DomainQuality
from pruning.models.block_times import BlockTimes
from pruning.repair.record import DepthRepair, Method
from tests.support.api_fixtures import publish_pruned
from tests.support.pruning_runs import RUN, domain_of, removals_of_run

PROSE = domain_of("prose", ((3.5, 4.6, 5.5), (4.0, 5.1, 6.0)), (None, (3.6, 4.6, 5.6)))
OTHER = replace(PROSE, source="other prose", digest="another digest")


@pytest.fixture
def data_dir(tiny_models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLEB_DATA_DIR", str(tiny_models_dir.parent))
    return tiny_models_dir.parent


def publish(data_dir: Path, job: str, domains: list[DomainQuality]) -> None:
    manifest = publish_pruned(data_dir, 2, job)
    file = data_dir / "checkpoints" / manifest.name / MANIFEST
    changed = json.loads(file.read_text())
    changed["quality"]["domains"] = [asdict(domain) for domain in domains]
    file.write_text(json.dumps(changed))


def shown(*words: str) -> str:
    runner = CliRunner(env={"COLUMNS": "200"})
    return runner.invoke(command_line, ["models", *words], catch_exceptions=False).stdout


def test_a_narrow_terminal_gets_lines_with_whole_names(data_dir: Path) -> None:
    publish(data_dir, "prn-6612fbe3e6f88eee48750", [PROSE])
    runner = CliRunner(env={"COLUMNS": "80"})
    told = runner.invoke(command_line, ["models"], catch_exceptions=False).stdout
    table = told.partition("prose: perplexity")[0]
    assert max(map(len, table.splitlines())) <= 80
    line = next(line for line in table.splitlines() if line.startswith("tiny@prn-"))
    assert line.startswith("tiny@prn-6612fbe3e6f88eee48750: 4 blocks, removed ")


def test_a_model_on_another_server_has_no_wrong_number_of_blocks(data_dir: Path) -> None:
    publish(data_dir, "prn-6612fbe3e6f88eee48750", [PROSE])
    declared = '[[models]]\nname = "far"\nbase_url = "http://localhost:8001/v1"\n'
    (data_dir / "external.toml").write_text(declared)
    told = CliRunner(env={"COLUMNS": "80"}).invoke(command_line, ["models"]).stdout
    assert "far: on another server\n" in told
    assert cells(shown(), "far")[1] == ""


@pytest.mark.parametrize("is_staged", [False, True])
def test_the_table_of_a_run_fits_into_80_columns(
    is_staged: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    repair = (DepthRepair(1, Method.NONE, 0, {}), DepthRepair(2, Method.RIDGE, 8, {}))
    run = replace(RUN, repair=repair, block_times=BlockTimes(0.1, 1.0, 0.5))
    print_run(run, removals_of_run(is_staged=is_staged), Path("out"), speedups={}, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    end = next(at for at, line in enumerate(lines) if line.startswith(("loss: ", "perplexity: ")))
    assert max(map(len, lines[:end])) <= 80
    [heading] = [line for line in lines[:end] if "margin" in line]
    assert "in full" not in heading  # not even of a staged search
    assert heading.split()[-4:] == ["dense", "speed-up", "repair", "margin"]
    last = [line for line in lines[:end] if line.strip()][-1]
    assert "1.43 ridge 0.5000" in " ".join(last.split())
    assert ("loss" in heading) == any(line.startswith("loss: ") for line in lines[end:])
    assert "…" not in "".join(lines[:end])


def cells(table: str, name: str) -> list[str]:
    [line] = [line for line in table.splitlines() if line.startswith(f"│ {name} ")]
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_each_text_has_a_column_and_is_named(data_dir: Path) -> None:
    publish(data_dir, "prn-1", [PROSE])
    publish(data_dir, "prn-2", [OTHER])
    table = shown()
    headings = [word.strip() for word in table.splitlines()[1].strip("┃").split("┃")]
    named = [
        re.search(rf"^(prose.*): perplexity on {one}", table, re.MULTILINE)
        for one in (PROSE.text, OTHER.text)
    ]
    columns = [headings.index(found.group(1)) for found in named if found]
    assert len(set(columns)) == 2
    repaired = PROSE.served_after(2)
    cell = f"{repaired.perplexity:.2f} ({PROSE.ratio(repaired).value:.2f}×)"
    first, second = (cells(table, f"tiny@prn-{job}") for job in (1, 2))
    assert [first[column] for column in columns] == [cell, ""]
    assert [second[column] for column in columns] == ["", cell]
    dense = cells(table, "tiny")
    assert sorted(dense[column] for column in columns) == ["", f"{PROSE.dense.perplexity:.2f}"]


def test_a_checkpoint_without_domains_names_its_text(data_dir: Path) -> None:
    publish(data_dir, "prn-1", [])
    [model] = [one for one in listed() if one["id"] == "tiny@prn-1"]
    table = shown()
    assert f"perplexity: perplexity on {model['evaluated_on']}" in table
    assert any(
        cell.startswith(f"{model['perplexity']:.2f} (") for cell in cells(table, model["id"])
    )
    assert model["domains"] == []


def test_a_measured_speed_up_is_beside_the_predicted_one(data_dir: Path) -> None:
    publish(data_dir, "prn-1", [PROSE])
    predicted, words = cells(shown(), "tiny@-1")[4:6]
    assert (1 < float(predicted) < 2, words) == (True, "not measured")
    assert cells(shown(), "tiny")[4:6] == ["", ""]
    measured = MeasuredSpeedup(1.21, 1.15, 1.27, "served", 1.8e9)
    MeasuredSpeedups(data_dir).record("tiny", {Measurand(1): measured})
    MeasuredSpeedups(data_dir).record(
        "tiny", {Measurand(2): replace(measured, ratio=1.5, low=None, high=None)}
    )
    assert cells(shown(), "tiny@-1")[5] == "1.21 (1.15 to 1.27)"
    assert cells(shown(), "tiny@prn-1")[5] == "1.50"
    known = {one["id"]: one["measured_speedup"] for one in listed()}
    assert known["tiny@-1"] == asdict(measured)
    assert known["tiny"] is None
    narrow = CliRunner(env={"COLUMNS": "80"}).invoke(command_line, ["models"]).stdout
    assert f"  speed-up: predicted {predicted}, measured 1.21 (1.15 to 1.27)\n" in narrow


def test_without_a_readable_file_no_speed_up_is_measured(data_dir: Path) -> None:
    publish(data_dir, "prn-1", [PROSE])
    (data_dir / "speedups.json").write_text("{")
    assert cells(shown(), "tiny@-1")[5] == "not measured"


def listed() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(shown("--json"))
    return found


def test_the_json_has_the_intervals(data_dir: Path) -> None:
    publish(data_dir, "prn-1", [PROSE])
    models = {model["id"]: model for model in listed()}
    [domain] = models["tiny@-1"]["domains"]
    assert domain["ratio"] == asdict(PROSE.ratio(PROSE.raw[0]))
    assert (domain["text"], domain["digest"]) == (PROSE.text, PROSE.digest)


def test_without_models_there_is_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLEB_DATA_DIR", str(tmp_path))
    assert shown().startswith("no models in")
