"""Searches to a target, staged and streamed, tested in whole runs."""

from dataclasses import replace
from math import exp
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pruning.checkpoints.store import CheckpointStore
from pruning.models.block_bytes import removals_for_bytes
from pruning.models.block_times import BlockTimes
from pruning.models.blocks import block_list
from pruning.models.store import load, num_parameters
from pruning.spec import TargetUnreachable
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.prune import PruneSpec, Repair, Resident, Search
from tests.support.pruning_runs import prune_tiny
from tests.support.recorder import Recorder, Stop
from tests.support.tiny_directory import NUM_BLOCKS

WEIGHTS = "model.safetensors"
# Text of the model itself: on other text, a random model may improve when blocks are removed.
OWN_WORDS = PruneSpec(
    "tiny",
    num_remove=4,
    calibration=CalibrationSpec(Dataset.SELF, num_samples=8, seqlen=24),
    evaluate=False,
    repair=Repair.NONE,
)


@pytest.fixture
def spec(tmp_path: Path) -> PruneSpec:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"{number} lazy dogs, {7 * number} foxes" for number in range(400)))
    calibration = CalibrationSpec(Dataset.FILE, num_samples=24, seqlen=8, path=str(text))
    return PruneSpec(
        "tiny", num_remove=3, calibration=calibration, evaluate=False, repair=Repair.NONE
    )


def test_a_perplexity_ratio_is_not_passed_and_nothing_behind_it_is_removed(
    tiny_models_dir: Path,
) -> None:
    whole, _ = prune_tiny(tiny_models_dir, OWN_WORDS, "tiny@whole")
    losses = whole.quality.losses
    ratios = [exp(loss - losses[0]) for loss in losses[1:]]
    first_beyond = next(step for step, ratio in enumerate(ratios) if ratio > max(1, ratios[0]))
    limit = (ratios[first_beyond] + max(1, *ratios[:first_beyond])) / 2
    target = replace(OWN_WORDS, num_remove=None, max_perplexity_ratio=limit)
    recorder = Recorder()
    found, _ = prune_tiny(tiny_models_dir, target, "tiny@limited", recorder)
    assert found.removed_blocks == whole.removed_blocks[:first_beyond]
    assert found.quality.losses == losses[: first_beyond + 1]
    assert len(recorder.removals) == first_beyond
    assert {total for _, total in recorder.evaluations} == {4 + 3 + 2 + 1}


def test_a_ratio_that_the_first_removal_passes_publishes_nothing(tiny_models_dir: Path) -> None:
    whole, _ = prune_tiny(tiny_models_dir, OWN_WORDS, "tiny@whole")
    ratio = exp(whole.quality.losses[1] - whole.quality.losses[0])
    assert ratio > 1
    target = replace(OWN_WORDS, num_remove=None, max_perplexity_ratio=(1 + ratio) / 2)
    with pytest.raises(TargetUnreachable, match="by the first removal") as refused:
        prune_tiny(tiny_models_dir, target, "tiny@none")
    assert refused.value.param == "max_perplexity_ratio"
    assert CheckpointStore(tiny_models_dir.parent / "checkpoints").names() == ["tiny@whole"]


def test_a_speedup_becomes_a_number_of_blocks_from_measured_times(
    tiny_models_dir: Path, spec: PruneSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 1 + 6 + 1 equal parts, the removal of two is a speed-up of 8/6."""
    times = BlockTimes(embedding_s=1e-3, block_s=1e-3, head_s=1e-3)
    monkeypatch.setattr("pruning.search.dense_model.measure_times", lambda _model: times)
    target = replace(spec, num_remove=None, target_speedup=1.3)
    recorder = Recorder()
    found, _ = prune_tiny(tiny_models_dir, target, "tiny@fast", recorder)
    assert len(found.removed_blocks) == 2
    assert found.spec["target_speedup"] == 1.3
    assert recorder.evaluations[-1] == (4 + 3, 4 + 3)
    too_much = replace(target, target_speedup=2.5)
    with pytest.raises(TargetUnreachable, match="cannot be reached"):
        prune_tiny(tiny_models_dir, too_much, "tiny@too-fast")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_a_number_of_bytes_is_met_by_the_published_weights(
    dtype: str, tiny_models_dir: Path, spec: PruneSpec
) -> None:
    dense = load(tiny_models_dir / "tiny").model
    item_bytes = 4 if dtype == "auto" else 2
    of_block = item_bytes * sum(each.numel() for each in block_list(dense)[1].parameters())
    total = item_bytes * num_parameters(dense)
    for limit, num_removed in ((total - of_block, 1), (total - of_block - 1, 2)):
        target = replace(spec, num_remove=None, target_bytes=limit, save_dtype=dtype)
        found, path = prune_tiny(tiny_models_dir, target, f"tiny@small-{dtype}-{num_removed}")
        assert len(found.removed_blocks) == num_removed
        tensors = load_file(path / "model.safetensors").values()
        assert sum(each.nbytes for each in tensors) <= limit
        assert found.spec["target_bytes"] == limit
    for limit, message in ((total, "needs no removal"), (of_block, "cannot be reached")):
        with pytest.raises(TargetUnreachable, match=message):
            prune_tiny(tiny_models_dir, replace(target, target_bytes=limit), "tiny@not")


def test_blocks_of_different_sizes_meet_a_number_of_bytes_whichever_go() -> None:
    assert removals_for_bytes(100, 120, [30, 10, 15], 3) == 2
    assert removals_for_bytes(110, 120, [30, 10, 15], 3) == 1
    with pytest.raises(TargetUnreachable, match="may still have 95 bytes"):
        removals_for_bytes(90, 120, [30, 10, 15], 2)


def test_a_speedup_that_was_measured_once_holds_for_the_rest_of_the_search(
    tiny_models_dir: Path, spec: PruneSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_head = BlockTimes(embedding_s=1e-3, block_s=1e-3, head_s=5e-3)
    monkeypatch.setattr("pruning.search.dense_model.measure_times", lambda _model: slow_head)
    target = replace(spec, num_remove=None, target_speedup=1.3)
    first, again = Recorder(stop_after=5), Recorder()
    with pytest.raises(Stop):
        prune_tiny(tiny_models_dir, target, "tiny@stopped", first)
    faster = BlockTimes(embedding_s=0, block_s=1e-3, head_s=0)
    monkeypatch.setattr("pruning.search.dense_model.measure_times", lambda _model: faster)
    prune_tiny(tiny_models_dir, target, "tiny@resumed", again, first.state)
    assert again.plans == first.plans
    assert first.plans[0].num_remove == 3


def test_a_speedup_is_really_measured(tiny_models_dir: Path, spec: PruneSpec) -> None:
    target = replace(spec, num_remove=None, target_speedup=1.01)
    found, _ = prune_tiny(tiny_models_dir, target, "tiny@measured")
    assert 1 <= len(found.removed_blocks) < NUM_BLOCKS - 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [{"search": Search.STAGED}, {"resident": Resident.STREAM}], ids=["staged", "stream"]
)
def test_every_way_to_search_publishes_the_same_weights(
    how: dict[str, Search | Resident], tiny_models_dir: Path, spec: PruneSpec
) -> None:
    spec = replace(spec, evaluate=True)
    exact, exact_path = prune_tiny(tiny_models_dir, spec, "tiny@exact")
    other = PruneSpec.from_dict({**spec.to_dict(), **how})
    found, path = prune_tiny(tiny_models_dir, other, "tiny@other")
    assert found.removed_blocks == exact.removed_blocks
    assert found.quality.losses == pytest.approx(exact.quality.losses, abs=1e-5)
    assert found.quality.perplexities == pytest.approx(exact.quality.perplexities, rel=1e-4)
    assert found.num_parameters == exact.num_parameters
    assert (path / WEIGHTS).read_bytes() == (exact_path / WEIGHTS).read_bytes()
    assert (path / "config.json").read_bytes() == (exact_path / "config.json").read_bytes()


def test_the_record_of_a_race_says_who_saw_how_much(tiny_models_dir: Path, spec: PruneSpec) -> None:
    recorder = Recorder()
    prune_tiny(tiny_models_dir, replace(spec, search=Search.STAGED), "tiny@staged", recorder)
    for removal in recorder.removals:
        assert removal.num_windows[removal.block] == 24
        assert set(removal.num_windows.values()) <= {8, 16, 24}
        assert removal.margin_error is not None
    done = [done for done, _ in recorder.evaluations]
    assert done == sorted(done)  # one that drops out counts as a whole at the end of its round
    assert done[-1] == recorder.evaluations[-1][1]
