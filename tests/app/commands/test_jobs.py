"""Tables of jobs in a narrow terminal."""

import json
import re
import subprocess
import sys
from typing import Any

import pytest
from rich.console import Console

from app.commands.jobs import JobView, print_job, print_jobs
from app.commands.progress import search_progress
from app.terminal import json_text
from pruning.evaluation.paired_tasks import PairedTask
from pruning.evaluation.task_shares import TaskShares

JOB: dict[str, Any] = {
    "id": "prn-6612fbe3e6f88eee48750",
    "model": "smollm2-135m",
    "status": "cancelling",
    "pause_requested_at": None,
    "priority": 0,
    "phase": "search",
    "progress": {"evaluations_done": 123, "evaluations_total": 189},
    "removed_blocks": [14, 26, 13, 12, 25, 3],
    "losses": [3.1234567890123456, 3.2, 3.3, 3.4, 3.5, 3.6],
    "dense_loss": 2.9876543210987654,
    "created_at": 1.8e9,
    "repair": None,
    "conditions": [
        {
            "type": "Queued",
            "status": "False",
            "last_transition_at": 1.8e9 + 0.123456,
            "reason": "Left",
            "message": "a worker has started the job",
        }
    ],
    "spec": {
        "num_remove": 6,
        "calibration": [
            {"dataset": "prose", "weight": 1.0, "path": None},
            {"dataset": "code", "weight": 2.0, "path": None},
        ],
    },
}


@pytest.fixture(params=[80, 200])
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("COLUMNS", str(request.param))
    columns: int = request.param
    return columns


def test_a_job_is_one_line_with_its_whole_id(
    width: int, capsys: pytest.CaptureFixture[str]
) -> None:
    print_jobs([JOB], has_more=False)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    [line] = [line for line in lines if JOB["id"] in line]
    for shown in ("smollm2-135m", "cancelling", "123 of 189"):
        assert shown in line
    assert ("14 26 13 12 25 3" in line) == (width == 200)
    assert re.search(
        r" \d\d-\d\d \d\d:\d\d" if width == 80 else r"20\d\d-\d\d-\d\d \d\d:\d\d", line
    )


def test_the_tasks_of_a_job_fit_and_begin_with_the_worst(
    width: int, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = (
        PairedTask("arc_challenge", 0.25, 1172, 500, 20, 10, 470),
        PairedTask("gen_brackets", 0.0, 500, 100, 150, 5, 245),
    )
    shares = json.loads(json_text(TaskShares.of(tasks)))
    print_job({**JOB, "tasks": shares})
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    first, second = (line for line in lines if re.search(r"\d ± 0", line))
    assert first.split()[0] == "gen_brackets"
    assert "31 %" in first
    assert second.split()[0] == "arc_challenge"
    assert "on the worst one, gen_brackets." in " ".join(" ".join(lines).split())


def test_a_field_of_many_parts_is_no_python(capsys: pytest.CaptureFixture[str]) -> None:
    print_job(JOB)
    shown = capsys.readouterr().out
    assert not set("{}'[]") & set(shown)
    assert "dataset: code" in shown
    assert re.search(r"weight: 2\s", shown)


def test_numbers_are_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    print_job(JOB, [removal(1, 14, 0.5, 0.1), removal(2, 26, 0.01, 0.02)])
    shown = capsys.readouterr().out
    assert not re.search(r"\d\.\d{5}", shown)
    assert not re.search(r"\b\d{10}\b", shown)
    since = r"2027-01-15 \d\d:\d\d:\d\d"
    assert re.search(
        rf"Queued: no, since {since}: a worker has started the job", " ".join(shown.split())
    )


def test_a_tie_is_named_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_job(JOB, [removal(1, 14, 0.5, 0.1), removal(2, 26, 0.01, 0.02)])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["dense", "2.9877"] in lines
    assert ["14", "3.1235", "0.5000", "±", "0.1000", "7"] in lines
    assert ["26", "3.2000", "0.0100", "±", "0.0200,", "a", "tie", "7"] in lines
    told = " ".join(word for line in lines for word in line)
    assert "ties: 1 of 6 rounds." in told
    assert "more calibration text" in told


def removal(step: int, block: int, margin: float, error: float) -> dict[str, Any]:
    decided = {"step": step, "block": block, "loss": 3.0, "runner_up": 7}
    return {"data": {**decided, "margin": margin, "margin_error": error}}


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        (None, "1.25 predicted, not measured (run sleb bench or sleb compare)"),
        ({"ratio": 1.2, "low": 1.1, "high": 1.3}, "1.25 predicted, 1.20 (1.10 to 1.30) measured"),
        ({"ratio": 1.2, "low": None, "high": None}, "1.25 predicted, 1.20 measured"),
    ],
)
def test_a_published_job_has_its_speed_up(
    measured: dict[str, Any] | None, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    print_job({**JOB, "predicted_speedup": 1.25, "measured_speedup": measured})
    assert words in capsys.readouterr().out


def test_a_job_says_that_no_repair_was_kept(capsys: pytest.CaptureFixture[str]) -> None:
    steps = {"steps_done": 37, "steps_total": 37}
    tried = {**JOB, "pruned_model": "llama@prn-1", "repair": None, "repair_progress": steps}
    print_job(tried)
    assert "none: every repair made the model worse" in capsys.readouterr().out
    print_job({**tried, "repair": {"method": "ridge"}})
    assert "none: every" not in capsys.readouterr().out


def test_what_follows_a_job_does_not_wait_for_torch() -> None:
    code = "import sys, app.commands.jobs; sys.exit(bool({'torch', 'redis'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_watched_job_moves_before_its_first_phase() -> None:
    progress = search_progress(Console(quiet=True))
    with JobView(progress, at_most=False) as view:
        for status in ("queued", "running", "running"):
            view.show(message(status))
        assert [task.description for task in progress.tasks if task.visible] == ["running"]
        view.show({**message("running"), "data": {"status": "running", "phase": "load"}})
        assert [task.description for task in progress.tasks if task.visible] == ["load"]
        view.show(message("succeeded"))
    assert not [task for task in progress.tasks if task.visible]


def message(status: str) -> dict[str, Any]:
    return {"level": "info", "message": "changed", "data": {"status": status}}
