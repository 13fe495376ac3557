"""Whole runs by divergence from the dense model."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from math import exp
from pathlib import Path
from typing import Any

import pytest

from pruning.data.calibration import calibrate
from pruning.models.store import ModelStore
from pruning.records import read_record
from pruning.removal import Removal, kept
from pruning.search.dense_model import DenseModel, Resources, load_dense_model
from pruning.search.observed import Observer
from pruning.search.scoring import PlainScorer
from pruning.search.search import plan_of, search
from pruning.search.state import SearchState
from pruning.sleb import sleb
from pruning.spec.calibration import CalibrationMix, CalibrationSpec, Dataset
from pruning.spec.prune import Metric, PruneSpec, Resident, Search
from tests.support.pruning_runs import prune_tiny
from tests.support.quick import slow_but
from tests.support.recorder import Recorder, Stop
from tests.support.tiny_directory import NUM_BLOCKS

Run = Callable[[PruneSpec], list[Removal]]
BY_KL: dict[str, Any] = {"metric": Metric.KL}


@pytest.fixture
def spec(tmp_path: Path) -> PruneSpec:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"{number} lazy dogs, {7 * number} foxes" for number in range(400)))
    calibration = CalibrationSpec(Dataset.FILE, num_samples=24, seqlen=8, path=str(text))
    return PruneSpec("tiny", num_remove=3, calibration=calibration, evaluation=None)


def found(spec: PruneSpec, dense: DenseModel, observer: Observer | None = None) -> list[Removal]:
    windows = calibrate(spec.calibration, dense.model, dense.tokenizer)
    return search(spec, dense, windows, observer or Recorder(), SearchState())


@pytest.mark.parametrize("resident", Resident)
def test_the_order_is_that_of_the_plain_scorer_and_losses_are_losses(
    tiny_models_dir: Path, spec: PruneSpec, resident: Resident
) -> None:
    spec = replace(spec, resident=resident, **BY_KL)
    dense = load_dense_model(tiny_models_dir / "tiny", resident, Resources())
    loaded = ModelStore(tiny_models_dir).load("tiny")
    windows = calibrate(spec.calibration, loaded.model, loaded.tokenizer)
    plain = PlainScorer(loaded.model, windows.token_ids, by_divergence=True)
    expected = list(sleb(plain, NUM_BLOCKS, 3))
    removals = found(spec, dense)
    assert [removal.block for removal in removals] == [removal.block for removal in expected]
    gone: list[int] = []
    for ours, theirs in zip(removals, expected, strict=True):
        gone.append(ours.block)
        losses = plain.losses(kept(NUM_BLOCKS, gone))
        assert ours.loss == pytest.approx(sum(losses) / len(losses), abs=1e-5)
        assert ours.score == pytest.approx(theirs.score, abs=1e-5)
        assert ours.margin == pytest.approx(theirs.margin, abs=1e-5)
        assert ours.dense_loss == pytest.approx(theirs.dense_loss, abs=1e-5)


def test_a_staged_search_finds_the_same_order(tiny_models_dir: Path, spec: PruneSpec) -> None:
    dense = load_dense_model(tiny_models_dir / "tiny", Resident.MODEL, Resources())
    exact = found(replace(spec, **BY_KL), dense)
    staged = found(replace(spec, search=Search.STAGED, **BY_KL), dense)
    assert [removal.block for removal in staged] == [removal.block for removal in exact]
    assert [removal.loss for removal in staged] == pytest.approx(
        [removal.loss for removal in exact], abs=1e-5
    )


@pytest.mark.parametrize(
    "stop_after",  # of rounds of 4, 3 and 2
    slow_but((2, 4, 6, 8), 2),
)
def test_a_stopped_run_resumes_to_the_same_end(
    tiny_models_dir: Path, spec: PruneSpec, stop_after: int
) -> None:
    spec = replace(spec, **BY_KL)
    whole, first, again = Recorder(), Recorder(stop_after=stop_after), Recorder()
    expected, path = prune_tiny(tiny_models_dir, spec, "tiny@whole", whole)
    with pytest.raises(Stop):
        prune_tiny(tiny_models_dir, spec, "tiny@stopped", first)
    resumed, again_path = prune_tiny(tiny_models_dir, spec, "tiny@resumed", again, first.state)
    assert resumed.removed_blocks == expected.removed_blocks
    assert resumed.quality == expected.quality
    removals = [json.loads((each / "removal.json").read_text()) for each in (path, again_path)]
    assert removals[0] == removals[1]


def test_a_ratio_is_about_losses_whatever_decides(tiny_models_dir: Path, spec: PruneSpec) -> None:
    dense = load_dense_model(tiny_models_dir / "tiny", Resident.MODEL, Resources())
    own = replace(
        spec,
        num_remove=4,
        calibration=CalibrationSpec(Dataset.SELF, num_samples=8, seqlen=24),
        **BY_KL,
    )
    removals = found(own, dense)
    ratios = [exp(removal.loss - removal.dense_loss) for removal in removals]
    beyond = next(at for at, ratio in enumerate(ratios) if ratio > max(1, ratios[0]))
    limit = (ratios[beyond] + max(1, *ratios[:beyond])) / 2
    limited = found(replace(own, num_remove=None, max_perplexity_ratio=limit), dense)
    assert limited == removals[:beyond]


@pytest.mark.parametrize("metric", [Metric.SLEB, Metric.KL, Metric.ONE_SHOT])
def test_a_mix_has_the_loss_of_each_domain(
    tiny_models_dir: Path, tmp_path: Path, metric: Metric
) -> None:
    for name, animal in (("dogs.txt", "dogs"), ("cats.txt", "cats")):
        (tmp_path / name).write_text("\n".join(f"{n} lazy {animal}" for n in range(200)))
    dogs, cats = (
        CalibrationSpec(Dataset.FILE, num_samples=9, seqlen=8, path=str(tmp_path / name))
        for name in ("dogs.txt", "cats.txt")
    )
    spec = PruneSpec("tiny", 2, calibration=CalibrationMix((dogs, cats), (2.0, 1.0)), metric=metric)
    dense = load_dense_model(tiny_models_dir / "tiny", Resident.MODEL, Resources())
    windows = calibrate(spec.calibration, dense.model, dense.tokenizer)
    assert windows.domains.count("dogs") == 6
    removals = search(spec, dense, windows, Recorder(), SearchState())
    assert len(removals) == 2
    for removal in removals:
        by_domain = removal.domain_losses
        assert set(by_domain) == {"dogs", "cats"}
        assert removal.loss == pytest.approx(
            (6 * by_domain["dogs"] + 3 * by_domain["cats"]) / 9, abs=1e-6
        )
    dense_losses = removals[0].dense_domain_losses
    assert removals[0].dense_loss == pytest.approx(
        (6 * dense_losses["dogs"] + 3 * dense_losses["cats"]) / 9, abs=1e-6
    )
    assert removals[1].dense_domain_losses == dense_losses
    state = SearchState(plan_of(spec, dense, windows, SearchState()), tuple(removals[:1]))
    resumed = search(spec, dense, windows, Recorder(), state)
    assert resumed[0] is removals[0]
    assert resumed[1].dense_domain_losses == dense_losses
    restored = read_record(Removal, json.loads(json.dumps(asdict(removals[0]))))
    assert restored == removals[0]
    alone = replace(spec, calibration=dogs)
    for removal in found(alone, dense):
        assert (removal.domain_losses, removal.dense_domain_losses) == ({}, {})
