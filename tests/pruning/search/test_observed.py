"""A search whose windows do not fit into memory at once: what it reports, and how it goes on."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pruning.data.windows import Windows
from pruning.removal import Losses, Removal
from pruning.search import observed
from pruning.search.dense_model import DenseModel, Resources, load_dense_model
from pruning.search.prefixes import Walk
from pruning.search.search import search
from pruning.search.state import SearchState
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.prune import Metric, PruneSpec, Resident, Search
from tests.support.quick import slow_but
from tests.support.recorder import Recorder, Stop
from tests.support.tiny import VOCAB_SIZE

NUM_WINDOWS, SEQLEN = 24, 8
ROOM_FOR_4 = 4 * SEQLEN * 32 * 4 * 14  # windows, streamed or not; float32, 32 wide
SPEC = PruneSpec(
    "tiny", 3, calibration=CalibrationSpec(Dataset.PROSE, num_samples=NUM_WINDOWS, seqlen=SEQLEN)
)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observed, "SECONDS_PER_REPORT", 0.0)


@pytest.fixture
def windows() -> Windows:
    torch.manual_seed(3)
    return Windows(torch.randint(VOCAB_SIZE, (NUM_WINDOWS, SEQLEN)), "drawn")


def dense_model(path: Path, spec: PruneSpec, budget: int | None = ROOM_FOR_4) -> DenseModel:
    resources = Resources(device="cpu", state_budget=budget, batch_tokens=4 * SEQLEN)
    return load_dense_model(path, spec.resident, resources)


def searched(
    dense: DenseModel,
    spec: PruneSpec,
    windows: Windows,
    recorder: Recorder,
    earlier: SearchState | None = None,
) -> list[Removal]:
    return search(spec, dense, windows, recorder, earlier or SearchState())


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """One entry for each window that goes through a block of a trunk or a branch."""
    advance, found = Walk.advance, list[int]()

    def noted(walk: Walk, hidden: torch.Tensor) -> None:
        found.extend([1] * len(hidden))
        advance(walk, hidden)

    monkeypatch.setattr(Walk, "advance", noted)
    return iter([found])


KINDS: dict[str, PruneSpec] = {
    "exact": SPEC,
    "staged": replace(SPEC, search=Search.STAGED),
    "streamed": replace(SPEC, resident=Resident.STREAM),
    "divergence": replace(SPEC, metric=Metric.KL),
    "one shot": replace(SPEC, metric=Metric.ONE_SHOT),
}


@pytest.mark.parametrize("kind", slow_but(KINDS, "staged", "streamed"))
def test_what_it_reports_costs_and_changes_nothing(
    tiny_model_dir: Path, windows: Windows, kind: str, passes: Iterator[list[int]]
) -> None:
    """Against the scorers themselves, asked for whole rounds."""
    spec, [num_passes] = KINDS[kind], list(passes)
    dense, recorder = dense_model(tiny_model_dir, spec), Recorder()
    found = searched(dense, spec, windows, recorder)
    in_parts = len(num_passes)
    num_passes.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(observed.ObservedScorer, "score", whole_rounds)
        expected = searched(dense, spec, windows, Recorder())
    assert found == expected
    assert in_parts == len(num_passes)
    done, total = recorder.evaluations[-1]
    assert done == total
    assert [done for done, _ in recorder.evaluations] == sorted(
        done for done, _ in recorder.evaluations
    )


def whole_rounds(
    scorer: observed.ObservedScorer,
    keep: tuple[int, ...],
    candidates: tuple[int, ...],
    windows: range,
) -> Iterator[tuple[int, Losses]]:
    yield from scorer.scorer.score(keep, candidates, windows)


@pytest.mark.parametrize("num_stops", [3, pytest.param(12, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", slow_but(KINDS, "staged"))
def test_it_goes_on_within_a_round_wherever_it_was_stopped(
    tiny_model_dir: Path, windows: Windows, kind: str, num_stops: int
) -> None:
    spec = KINDS[kind]
    dense = dense_model(tiny_model_dir, spec)
    whole = Recorder()
    expected = searched(dense, spec, windows, whole)
    num_reports = len(whole.evaluations)
    for at in range(1, num_reports, num_reports // num_stops + 1):
        first = StopsAt(at)
        with pytest.raises(Stop):
            searched(dense, spec, windows, first)
        again = Recorder()
        assert searched(dense, spec, windows, again, first.state) == expected
        assert len(again.evaluations) <= num_reports - at + 2  # and nothing is reported twice
        assert again.evaluations[-1][0] == again.evaluations[-1][1]


class StopsAt(Recorder):
    """Stops at a report of that number."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def evaluated(self, done: int, total: int, scored: object) -> None:
        super().evaluated(done, total, scored)  # type: ignore[arg-type]
        if len(self.evaluations) > self.number:
            raise Stop


def test_a_candidate_is_recorded_batch_by_batch(tiny_model_dir: Path, windows: Windows) -> None:
    recorder = Recorder()
    removals = searched(dense_model(tiny_model_dir, SPEC), SPEC, windows, recorder)
    of_first = [each for each in recorder.scored if each.round == "1"]
    sizes = [len(each.losses) for each in of_first]
    assert len(set(sizes)) > 3
    assert sizes == sorted(sizes)  # batch by batch
    for candidate in of_first:
        longest = max(
            (e for e in of_first if e.block == candidate.block), key=lambda e: len(e.losses)
        )
        assert candidate.losses == longest.losses[: len(candidate.losses)]
    assert set(removals[0].scores) == {each.block for each in of_first}


def test_another_batch_size_goes_on_as_well(tiny_model_dir: Path, windows: Windows) -> None:
    first = StopsAt(17)
    with pytest.raises(Stop):
        searched(dense_model(tiny_model_dir, SPEC), SPEC, windows, first)
    state = first.state
    assert any(len(losses) % 3 for losses in state.scored_in("1").values())
    resources = Resources(device="cpu", state_budget=ROOM_FOR_4, batch_tokens=3 * SEQLEN)
    dense = load_dense_model(tiny_model_dir, Resident.MODEL, resources)
    found = searched(dense, SPEC, windows, Recorder(), state)
    expected = searched(dense, SPEC, windows, Recorder())
    assert [removal.block for removal in found] == [removal.block for removal in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-5)


def test_reports_of_parts_wait_for_their_time(
    tiny_model_dir: Path, windows: Windows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search is not slowed down by records: those of whole candidates come at once."""
    monkeypatch.setattr(observed, "SECONDS_PER_REPORT", 3600.0)
    recorder = Recorder()
    removals = searched(dense_model(tiny_model_dir, SPEC), SPEC, windows, recorder)
    complete = [each for each in recorder.scored if len(each.losses) == NUM_WINDOWS]
    assert len(complete) == sum(len(removal.scores) for removal in removals)
    num_candidates = max(len(removal.scores) for removal in removals)
    assert len(recorder.scored) - len(complete) <= num_candidates * len(removals)
