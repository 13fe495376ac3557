"""What a search and a repair of 70B, streamed from disk, hold on a card at their peak."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pruning.models import streaming
from pruning.models.blocks import BlockCall
from pruning.models.memory import BATCH_TOKENS
from pruning.models.random_models import SHAPES, random_model
from pruning.models.streaming import StreamedModel
from pruning.repair import ridge
from pruning.repair.record import Method
from pruning.repair.repair import repair_depths
from pruning.search.ray_actors import ActorConfig, Evaluator, ScoringTask
from pruning.search.scoring import SharedPrefixScorer
from tests.simcuda.shapes import GIB
from tests.support.repairs import windows_of
from tests.support.simcuda.device import SimulatedCuda

CARD = 80 * GIB
DEPTH = 80
WINDOWS = torch.zeros(128, 2048, dtype=torch.long)
SHAPE = SHAPES["llama-2-70b"]


class _Unread(StreamedModel):
    """Parts are loaded without reading them, and the next block always before one runs."""

    def _prefetch(
        self, index: int, pool: ThreadPoolExecutor
    ) -> tuple[int, Future[streaming._Fetched]]:
        found = super()._prefetch(index, pool)
        wait([found[1]])
        return found

    def _fetch(self, part: Sequence[str]) -> streaming._Fetched:
        absent = {name: self._absent[name] for name in part}
        weights = {name: torch.empty_like(of, device=self.device) for name, of in absent.items()}
        return streaming._Fetched(weights, None)


@pytest.fixture(autouse=True)
def unread_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: Path, **_options: object) -> SimpleNamespace:
        shape = {**SHAPE, "num_hidden_layers": int(path.name)}
        model = random_model(shape, "bfloat16", device="meta")
        return SimpleNamespace(model=model.requires_grad_(requires_grad=False), tokenizer=None)

    files = SimpleNamespace(are_equal=lambda *_names: False)
    monkeypatch.setattr(streaming, "load", load)
    monkeypatch.setattr(streaming, "WeightFiles", lambda *_args: files)
    monkeypatch.setattr("pruning.search.ray_actors.StreamedModel", _Unread)


def streamed(depth: int = DEPTH) -> StreamedModel:
    return _Unread(Path(str(depth)), device="cuda")


@contextmanager
def walked_once(cuda: SimulatedCuda, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let only the first call of a block with an input of some shape on some card run. All blocks
    have the same shapes, so later calls take as many bytes at once."""
    walk = BlockCall.__call__
    bytes_at_once: dict[tuple[torch.device, torch.Size], int] = {}

    def call(block: BlockCall, hidden: torch.Tensor) -> torch.Tensor:
        of, take = (hidden.device, hidden.shape), partial(torch.empty, dtype=torch.uint8)
        if of in bytes_at_once:
            take(bytes_at_once[of], device=hidden.device)
            return torch.empty_like(hidden)
        card = hidden.device.index
        peak, held = cuda.peak_bytes(card), cuda.allocated_bytes(card)
        cuda.reset_peak(card)
        output = walk(block, hidden)
        bytes_at_once[of] = cuda.peak_bytes(card) - held
        take(max(0, peak - cuda.allocated_bytes(card)), device=hidden.device)  # the earlier peak
        return output

    with monkeypatch.context() as patch:
        patch.setattr(BlockCall, "__call__", call)
        yield


def searched(
    scorer: SharedPrefixScorer, depth: int = DEPTH, share: slice = slice(None)
) -> Mapping[int, object]:
    """A first round, on the first windows that have a sweep of their own."""
    candidates = tuple(range(1, depth - 1))[share]
    first = scorer.parts(range(scorer.num_windows))[0]
    found = dict(scorer.score(tuple(range(depth)), candidates, first))
    assert len(found) == len(candidates)
    assert all(len(losses) == len(first) for losses in found.values())
    return found


def test_blocks_that_are_walked_once_take_the_same_memory(
    dry: SimulatedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks, kernels = [], []
    for is_once in (False, True):
        dry.reset_peak()
        before = dry.num_kernels
        scorer = SharedPrefixScorer(streamed(5), WINDOWS[:5], state_budget=GIB)
        if is_once:
            with walked_once(dry, monkeypatch):
                searched(scorer, 5)
        else:
            searched(scorer, 5)
        peaks.append(dry.peak_bytes())
        kernels.append(dry.num_kernels - before)
    assert peaks[0] == peaks[1]
    assert kernels[1] < kernels[0] / 2


@pytest.mark.slow
@pytest.mark.parametrize("by_divergence", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_streamed_search_of_70b_fits_one_card(
    dry: SimulatedCuda, monkeypatch: pytest.MonkeyPatch, by_divergence: bool
) -> None:
    """At the paper's size, with all candidates."""
    dry.set_memory(CARD)
    model = streamed()
    with walked_once(dry, monkeypatch):
        searched(SharedPrefixScorer(model, WINDOWS, by_divergence=by_divergence))
    assert CARD / 4 < dry.peak_bytes() < CARD
    assert model.peak_bytes < 8 * GIB


@pytest.mark.slow
def test_a_streamed_search_of_70b_fits_each_card_of_two_actors(
    dry: SimulatedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half the candidates each, one at a time as the actors are asked for them."""
    dry.set_memory(CARD)
    keep = tuple(range(DEPTH))
    for index in range(2):
        actor = Evaluator()
        config = ActorConfig(
            Path(str(DEPTH)), "auto", f"cuda:{index}", threads=1, num_gpus=1, num_sharing=1,
            state_budget=None, batch_tokens=BATCH_TOKENS,
        )  # fmt: skip
        dtype = actor.load(config, ScoringTask(WINDOWS, is_streamed=True))
        assert dtype == "torch.bfloat16"
        share = keep[1 + index : -1 : 2]
        with walked_once(dry, monkeypatch):
            found = actor.begin(keep, share, range(len(WINDOWS)), {})
        assert found is not None
        block, losses = found
        assert block == share[0]
        assert 0 < len(losses) < len(WINDOWS)
        assert CARD / 4 < dry.peak_bytes(index) < CARD
    assert dry.peak_bytes(0) > dry.allocated_bytes(0)


@pytest.mark.slow
def test_a_streamed_repair_of_70b_fits_one_card(
    dry: SimulatedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dry device has no values, so every fit is said to leave half of the error."""
    dry.set_memory(CARD)
    error_without = ridge._error_without

    def halved(fold: str, folds: Mapping[str, ridge.Sums], penalty: float) -> float:
        error_without(fold, folds, penalty)
        return 0.5

    monkeypatch.setattr(ridge, "_error_without", halved)
    text = windows_of({"prose": WINDOWS[:2]}, {"prose": WINDOWS[2:3]})
    model, keep = streamed(), (*range(10), *range(11, DEPTH))
    [found] = repair_depths(model, [keep], text, batch_tokens=BATCH_TOKENS)
    assert found.tried[Method.RIDGE].penalties.keys() == {9, 11, 12}
    assert CARD / 4 < dry.peak_bytes() < CARD
    assert model.peak_bytes < 8 * GIB
