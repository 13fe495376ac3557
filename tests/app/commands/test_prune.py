"""The output of ``sleb prune`` during the search and at the end."""

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

from app.commands.progress import SearchBar, search_progress
from app.commands.prune import print_run, run_prune
from app.config import ServeSettings
from app.models.add import ModelNotAdded
from app.models.measured_speedups import Measurand, MeasuredSpeedup, MeasuredSpeedups
from pruning.checkpoints.publish import CheckpointExists, DiskFull
from pruning.checkpoints.store import MANIFEST, read_manifest
from pruning.checkpoints.trajectory_plot import PLOT_FILE
from pruning.config import WorkerSettings
from pruning.jobs.estimate import DiskTooSmall
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.prune import PruneSpec, Repair
from tests.support.pruning_runs import RUN, manifest_of, removals_of_run


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def progress(clock: Clock) -> Progress:
    """A display that is never started, so that only the test renders it."""
    return search_progress(Console(file=StringIO(), width=120, get_time=clock))


def shown(progress: Progress) -> str:
    """The text on the terminal at this moment, without the bar."""
    console = Console(file=StringIO(), width=120)
    console.print(progress.get_renderable())
    assert isinstance(console.file, StringIO)
    lines = console.file.getvalue().splitlines()
    return "\n".join(
        " ".join(word for word in line.split() if word[0] not in "━╸╺") for line in lines
    )


def test_the_bar_has_exact_counts_and_an_eta_from_the_third_count(
    progress: Progress, clock: Clock
) -> None:
    bar = SearchBar(progress)
    bar.phase("load")
    assert shown(progress) == "load 0:00:00"
    clock.now_s = 100
    bar.phase("search")
    bar.evaluated(0, 189)
    assert shown(progress) == "search 0 of 189 0.0% 0:00:00 ETA -:--:--"
    clock.now_s = 160
    bar.evaluated(1, 189)
    assert shown(progress) == "search 1 of 189 0.5% 0:01:00 ETA -:--:--"
    clock.now_s = 280
    bar.evaluated(3, 189)
    assert shown(progress) == "search 3 of 189 1.5% 0:03:00 ETA 3:06:00"
    clock.now_s = 290  # a minute for each: ten seconds on, it is ten seconds less
    assert shown(progress) == "search 3 of 189 1.5% 0:03:10 ETA 3:05:50"
    clock.now_s = 400
    bar.evaluated(103, 189)
    assert shown(progress) == "search 103 of 189 54.4% 0:05:00 ETA 0:04:10"


def test_the_eta_of_a_resumed_search_counts_what_this_run_did(
    progress: Progress, clock: Clock
) -> None:
    bar = SearchBar(progress)
    bar.phase("search")
    bar.evaluated(100, 120)
    shown(progress)
    clock.now_s = 10
    bar.evaluated(110, 120)
    assert shown(progress) == "search 110 of 120 91.6% 0:00:10 ETA 0:00:10"


def test_the_eta_does_not_count_the_time_before_the_search(
    progress: Progress, clock: Clock
) -> None:
    task = progress.add_task("queued", total=None)
    clock.now_s = 50
    progress.update(task, description="search", completed=0, total=10)
    shown(progress)
    clock.now_s = 60
    progress.update(task, completed=5)
    assert shown(progress) == "search 5 of 10 50.0% 0:01:00 ETA 0:00:10"


def test_a_hundred_percent_is_shown_at_the_end_only(progress: Progress) -> None:
    bar = SearchBar(progress)
    bar.phase("search")
    bar.evaluated(49_999, 50_000)
    assert "99.9%" in shown(progress)
    bar.evaluated(50_000, 50_000)
    assert "50000 of 50000 100.0%" in shown(progress)


def test_a_search_that_is_broken_off_stays_where_it_was(progress: Progress) -> None:
    bar = SearchBar(progress)
    bar.phase("search")
    bar.evaluated(7, 10)
    bar.end()
    assert "search 7 of 10 70.0%" in shown(progress)


def test_a_search_that_ends_early_is_done_all_the_same(progress: Progress, clock: Clock) -> None:
    bar = SearchBar(progress, at_most=True)
    bar.phase("search")
    bar.evaluated(7, 10)
    assert "search 7 of at most 10 70.0%" in shown(progress)
    clock.now_s = 5
    bar.phase("evaluate")
    clock.now_s = 8
    assert shown(progress).splitlines() == ["search 7 of 7 100.0% 0:00:05", "evaluate 0:00:03"]
    bar.end()
    assert shown(progress) == "search 7 of 7 100.0% 0:00:05"


def test_the_repair_counts_its_steps_and_does_not_end_early(
    progress: Progress, clock: Clock
) -> None:
    bar = SearchBar(progress, at_most=True)
    bar.phase("search")
    bar.evaluated(7, 10)
    bar.phase("repair")
    bar.repairing(0, 8)
    shown(progress)
    clock.now_s = 10
    bar.repairing(4, 8)
    assert shown(progress).splitlines()[-1] == "repair 4 of 8 50.0% 0:00:10 ETA 0:00:10"
    bar.end()
    assert "repair 4 of 8" in shown(progress)


def test_every_removal_gets_a_line_and_is_kept(progress: Progress) -> None:
    bar = SearchBar(progress)
    bar.phase("search")
    removals = removals_of_run(is_staged=False)
    for removal in removals:
        bar.removed(removal)
    assert bar.removals == removals
    assert isinstance(progress.console.file, StringIO)
    lines = progress.console.file.getvalue().splitlines()
    assert (
        lines[0]
        == "  removed block 3: loss 4.2500 (dense 4.0000), margin 0.1000 ± 0.0577 over block 1, "
        "a tie"
    )
    assert (
        lines[1]
        == "  removed block 1: loss 5.0000 (dense 4.0000), margin 0.5000 ± 0.0000 over block 2"
    )


def test_the_table_says_what_was_lost_and_where_things_lie(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    path = Path("/somewhere/[out]")
    print_run(RUN, removals_of_run(is_staged=True), path, speedups={}, as_json=False)
    printed = capsys.readouterr().out
    for words in ("blocks", "0.1000 ± 0.0577", "2 of 4", "125.00", "10.0% fewer"):
        assert words in printed
    assert f"plot: {path / PLOT_FILE}" in printed
    assert printed.endswith(f"sleb eval '{path}'\n")
    assert "some text, 4 windows" in printed
    assert "ties: 1 of 2 rounds." in printed


def test_json_has_the_same_rows(capsys: pytest.CaptureFixture[str]) -> None:
    print_run(RUN, removals_of_run(is_staged=True), Path("/out"), speedups={}, as_json=True)
    report = json.loads(capsys.readouterr().out)
    assert report["removed_blocks"] == [3, 1]
    assert report["plot"] == f"/out/{PLOT_FILE}"
    dense, first, _ = report["trajectory"]
    assert (dense["block"], dense["ratio"]) == (None, 1.0)
    assert (first["block"], first["num_full"], first["num_candidates"]) == (3, 2, 4)


def test_the_legend_has_what_bench_has_measured(
    settings: WorkerSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = MeasuredSpeedup(1.21, 1.15, 1.27, "served", 1.8e9)
    MeasuredSpeedups(settings.data_dir).record("tiny", {Measurand(2): measured})
    run_prune(SPEC, tmp_path / "out", settings, as_json=False)
    told = " ".join(capsys.readouterr().out.split())
    assert "`sleb bench`: 1.21 (1.15 to 1.27) with 2 removed. Not measured yet: 1 removed." in told


def test_a_bracket_in_a_name_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    manifest = manifest_of(6, (3,), (4.0, 4.1), parent="a[/b]c")
    print_run(manifest, (), Path("/out"), speedups={}, as_json=False)
    assert "a[/b]c" in capsys.readouterr().out


def test_a_run_leaves_what_it_shows_in_the_checkpoint(
    tiny_models_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calibration = CalibrationSpec(Dataset.SELF, num_samples=4, seqlen=12)
    spec = PruneSpec("tiny", max_perplexity_ratio=1e6, calibration=calibration)
    settings = WorkerSettings(data_dir=tiny_models_dir.parent, threads=1, device="cpu")
    run_prune(spec, tmp_path / "out", settings, as_json=True)
    told = capsys.readouterr()
    report = json.loads(told.out)
    removed = report["removed_blocks"]
    assert [row["block"] for row in report["trajectory"]] == [None, *removed]
    assert report["trajectory"][1]["margin"] >= 0
    assert Path(report["plot"]).read_bytes().startswith(b"\x89PNG")
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"]({PLOT_FILE})" in card
    for block, loss in zip(removed, report["quality"]["losses"][1:], strict=True):
        assert f"| {block} | {loss:.4f} |" in card
    assert "removed block" in told.err
    assert "100.0%" in told.err


SPEC = PruneSpec(
    "tiny",
    num_remove=2,
    calibration=CalibrationSpec(Dataset.SELF, num_samples=2, seqlen=12),
    repair=Repair.NONE,
)


@pytest.fixture
def settings(tiny_models_dir: Path) -> WorkerSettings:
    return WorkerSettings(data_dir=tiny_models_dir.parent, threads=1, device="cpu")


class Interrupted(Exception):
    """As Ctrl-C, at a moment that the test chooses."""


def interrupt_after(monkeypatch: pytest.MonkeyPatch, num_evaluations: int) -> None:
    """The run ends after so many evaluations, once."""
    real, counts = SearchBar.evaluated, []

    def evaluated(self: SearchBar, *args: Any) -> None:
        real(self, *args)
        counts.append(1)
        if len(counts) == num_evaluations:
            raise Interrupted

    monkeypatch.setattr(SearchBar, "evaluated", evaluated)


def test_an_interrupted_search_goes_on_and_leaves_nothing(
    settings: WorkerSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "place" / "out"
    with monkeypatch.context() as patch:
        interrupt_after(patch, 7)  # the first call has no evaluation: it begins the search
        with pytest.raises(Interrupted):
            run_prune(SPEC, out, settings, as_json=True)
    assert "run the same command to continue" in capsys.readouterr().err
    assert not (tmp_path / "place").exists() or not any((tmp_path / "place").iterdir())
    run_prune(SPEC, out, settings, as_json=True)
    told = capsys.readouterr()
    assert "resuming an interrupted search after 6 evaluations" in told.err
    resumed = json.loads(told.out)
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert not (settings.data_dir / "searches").exists()
    run_prune(SPEC, tmp_path / "whole", settings, as_json=True)
    whole = json.loads(capsys.readouterr().out)
    for field in ("removed_blocks", "quality"):
        assert resumed[field] == whole[field]
    assert [row["margin"] for row in resumed["trajectory"]] == [
        row["margin"] for row in whole["trajectory"]
    ]


def test_an_order_that_cannot_be_published_is_kept(
    settings: WorkerSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("pruning.checkpoints.publish.free_bytes_at", lambda _path: 1)
        with pytest.raises(DiskFull):
            run_prune(SPEC, tmp_path / "out", settings, as_json=True)
    capsys.readouterr()
    run_prune(SPEC, tmp_path / "elsewhere", settings, as_json=True)
    told = capsys.readouterr()
    assert "after 7 evaluations" in told.err
    assert len(json.loads(told.out)["removed_blocks"]) == 2


def test_a_full_disk_is_noticed_before_the_search(
    settings: WorkerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.commands.prune.free_bytes_at", lambda _path: 1000)
    with pytest.raises(DiskTooSmall, match=f"1000 are free on the disk of {tmp_path}"):
        run_prune(SPEC, tmp_path / "out", settings, as_json=True)
    assert not (settings.data_dir / "searches").exists()


def test_a_target_speedup_is_told_with_what_it_predicts(
    settings: WorkerSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = replace(SPEC, num_remove=None, target_speedup=1.01)
    out = tmp_path / "out"
    run_prune(spec, out, settings, as_json=True)
    told = capsys.readouterr()
    manifest = read_manifest(out)
    predicted = manifest.predicted_speedup(len(manifest.removed_blocks))
    assert predicted is not None
    assert predicted >= 1.01
    assert f"blocks: {predicted:.2f}×" in " ".join(told.err.split())
    rows = json.loads(told.out)["trajectory"]
    assert rows[0]["speedup"] == 1
    assert rows[-1]["speedup"] == pytest.approx(predicted)
    assert f"Target: 1.01, predicted: {predicted:.2f}." in (out / "README.md").read_text().replace(
        "\n", " "
    )


def test_only_a_checkpoint_is_overwritten(settings: WorkerSettings, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_prune(SPEC, out, settings, as_json=True)
    with pytest.raises(CheckpointExists, match="choose another --out, or use --overwrite"):
        run_prune(SPEC, out, settings, as_json=True)
    deeper = replace(SPEC, num_remove=3)
    run_prune(deeper, out, settings, overwrite=True, as_json=True)
    assert len(read_manifest(out).removed_blocks) == 3
    assert {path.name for path in tmp_path.iterdir()} - {"models"} == {"out"}
    (out / MANIFEST).unlink()
    with pytest.raises(CheckpointExists, match="not a checkpoint"):
        run_prune(SPEC, out, settings, overwrite=True, as_json=True)


def test_a_model_of_the_hub_is_added_first(
    settings: WorkerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def add(repo_id: str, given: ServeSettings, **_: object) -> Path:
        asked.append((repo_id, given.models_dir))
        return (settings.models_dir / "tiny").rename(settings.models_dir / "fetched")

    monkeypatch.setattr("app.models.add.add_model", add)
    run_prune(replace(SPEC, model="org/fetched"), tmp_path / "out", settings, as_json=True)
    assert asked == [("org/fetched", settings.models_dir)]
    assert read_manifest(tmp_path / "out").parent == "fetched"
    with pytest.raises(ModelNotAdded, match="added from another source"):
        run_prune(replace(SPEC, model="other/fetched"), tmp_path / "2", settings, as_json=True)
