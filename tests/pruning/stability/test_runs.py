"""Searches over samples of real text, by a tiny model, as the command runs them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from app.commands.stability import REPORT_FILE, run_stability
from app.results.store import ResultStore
from pruning.checkpoints.publish import CheckpointExists
from pruning.config import WorkerSettings
from pruning.data.corpora import CalibrationError
from pruning.evaluation.perplexity import perplexity
from pruning.models.store import ModelStore
from pruning.search.dense_model import DenseModel, Resources, load_dense_model
from pruning.search.scoring import PlainScorer
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.prune import Metric, PruneSpec
from pruning.stability.runs import Sample, runs, samples, unused_windows
from tests.support.pruning_runs import prune_tiny
from tests.support.recorder import Recorder
from tests.support.tiny_directory import NUM_BLOCKS

SEEDS = [0, 1, 2]
NUM_REMOVE = 2
ONE_SEARCH = 4 + 3


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, CalibrationSpec]:
    found = {}
    for name, word in (("dogs.txt", "dogs"), ("cats.txt", "cats")):
        path = tmp_path / name
        path.write_text("\n".join(f"{number} lazy {word}, {7 * number}" for number in range(300)))
        found[name] = CalibrationSpec(Dataset.FILE, num_samples=4, seqlen=8, path=str(path))
    return {**found, "self": CalibrationSpec(Dataset.SELF, num_samples=4, seqlen=8)}


@pytest.fixture
def spec(texts: dict[str, CalibrationSpec]) -> PruneSpec:
    return PruneSpec("tiny", num_remove=NUM_REMOVE, calibration=texts["dogs.txt"])


@pytest.fixture
def dense(tiny_models_dir: Path, spec: PruneSpec) -> DenseModel:
    path = ModelStore(tiny_models_dir).path(spec.model)
    return load_dense_model(path, spec.resident, Resources(), dtype=spec.dtype)


def windows_of(taken: list[Sample]) -> set[tuple[int, ...]]:
    return {tuple(window) for one in taken for window in one.windows.token_ids.tolist()}


def test_no_run_is_evaluated_on_windows_of_any_sample(
    dense: DenseModel, texts: dict[str, CalibrationSpec]
) -> None:
    taken = samples(texts, SEEDS, dense.model, dense.tokenizer)
    assert [(one.text, one.spec.seed) for one in taken] == [(t, s) for t in texts for s in SEEDS]
    evaluated_on = unused_windows(taken, dense.model, dense.tokenizer)
    assert list(evaluated_on) == list(texts)
    for windows in evaluated_on.values():
        found = [tuple(window) for window in windows.token_ids.tolist()]
        assert len(found) == len(set(found)) >= 4
        assert not set(found) & windows_of(taken)


def test_a_text_that_is_used_up_is_refused(
    dense: DenseModel, texts: dict[str, CalibrationSpec], tmp_path: Path
) -> None:
    (tmp_path / "short.txt").write_text("the quick brown fox " * 8)
    short = replace(texts["dogs.txt"], path=str(tmp_path / "short.txt"), num_samples=1, seqlen=20)
    taken = samples({"short.txt": short}, SEEDS, dense.model, dense.tokenizer)
    with pytest.raises(CalibrationError, match="longer text") as refused:
        unused_windows(taken, dense.model, dense.tokenizer)
    assert refused.value.code == "not_enough_text"


def test_every_run_is_the_search_that_prune_does(
    dense: DenseModel, texts: dict[str, CalibrationSpec], spec: PruneSpec, tiny_models_dir: Path
) -> None:
    taken = samples(texts, SEEDS[:2], dense.model, dense.tokenizer)
    evaluated_on = unused_windows(taken, dense.model, dense.tokenizer)
    recorders = [Recorder() for _ in taken]
    found = list(runs(spec, dense, taken, evaluated_on, recorders.__getitem__))
    assert [(one.text, one.seed) for one in found] == [(one.text, one.spec.seed) for one in taken]
    alone = replace(spec, calibration=replace(texts["dogs.txt"], seed=1), evaluate=False)
    manifest, _ = prune_tiny(tiny_models_dir, alone, "tiny@alone")
    assert found[1].order == manifest.removed_blocks
    assert tuple(removal.loss for removal in found[1].removals) == manifest.quality.losses[1:]
    assert [recorder.evaluations[-1] for recorder in recorders] == [(ONE_SEARCH,) * 2] * 6
    for text, windows in evaluated_on.items():
        oracle = PlainScorer(dense.model, windows.token_ids)
        for step, value in enumerate(found[-1].perplexities[text]):
            gone = found[-1].order[:step]
            keep = tuple(block for block in range(NUM_BLOCKS) if block not in gone)
            assert value == pytest.approx(perplexity(oracle.losses(keep)), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "metric",
    [
        Metric.SLEB,
        *(
            pytest.param(m, marks=pytest.mark.slow)
            for m in (Metric.COSINE, Metric.KL, Metric.ONE_SHOT)
        ),
    ],
)
def test_the_command_leaves_a_report(
    metric: Metric,
    texts: dict[str, CalibrationSpec],
    spec: PruneSpec,
    tiny_models_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "stable"
    settings = WorkerSettings(data_dir=tiny_models_dir.parent, device="cpu")
    spec = replace(spec, metric=metric)
    run_stability(spec, texts, SEEDS[:2], out, settings, as_json=False)
    report = json.loads((out / REPORT_FILE).read_text())
    assert [(one["text"], one["seed"]) for one in report["runs"]] == [
        (text, seed) for text in texts for seed in SEEDS[:2]
    ]
    assert report["depths"][-1]["num_removed"] == NUM_REMOVE
    assert sum(one["num_runs"] for one in report["picked"]) == NUM_REMOVE * len(report["runs"])
    printed = capsys.readouterr()
    assert report["conclusions"][0] in " ".join(printed.out.split())
    assert ", by block" in printed.out
    assert "cats.txt, seed 1: [" in printed.err
    assert (
        f"{6 * (4 + 2 if metric in (Metric.COSINE, Metric.ONE_SHOT) else ONE_SEARCH)} of"
        in printed.err
    )
    with pytest.raises(CheckpointExists, match="choose another"):
        run_stability(spec, texts, SEEDS[:2], out, settings, as_json=False)
    run_stability(spec, texts, SEEDS[:2], tmp_path / "as-json", settings, as_json=True)
    assert json.loads(capsys.readouterr().out)["depths"] == report["depths"]
    kept = ResultStore(settings.data_dir).page(9).results
    assert [result.report["depths"] for result in kept] == [report["depths"]] * 2
    assert kept[0].headline == report["conclusions"][0]
