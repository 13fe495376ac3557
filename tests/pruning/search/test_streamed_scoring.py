"""The scorer of a streamed model against the plain scorer of the model in memory."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.models.architectures import ARCHITECTURES
from pruning.models.blocks import block_list
from pruning.models.memory import StateBudgetTooSmall
from pruning.models.streaming import StreamedModel
from pruning.removal import NonFiniteLoss
from pruning.search.scoring import PlainScorer, SharedPrefixScorer
from pruning.sleb import sleb
from tests.support.scoring import HIDDEN_SIZE, assert_equal, windows
from tests.support.tiny import NUM_BLOCKS, tiny_model
from tests.support.tiny_checkpoints import write_checkpoint

Streamed = Callable[[str], StreamedModel]
Hook = Callable[[torch.nn.Module, object, torch.Tensor], torch.Tensor | None]


@pytest.fixture(scope="session")
def streamed(tmp_path_factory: pytest.TempPathFactory) -> Streamed:
    """The tiny model of a family, from disk."""

    @cache
    def from_disk(family: str) -> StreamedModel:
        path = tmp_path_factory.mktemp(family)
        write_checkpoint(path, family)
        return StreamedModel(path)

    return from_disk


def one_sweep_bytes(seqlen: int) -> int:
    return seqlen * HIDDEN_SIZE * 4 * (2 * NUM_BLOCKS + 1)


@contextmanager
def hooked(blocks: Iterable[torch.nn.Module], hook: Hook) -> Iterator[None]:
    handles = [block.register_forward_hook(hook) for block in blocks]
    yield
    for handle in handles:
        handle.remove()


@settings(max_examples=10)
@given(
    family=st.sampled_from(sorted(ARCHITECTURES)),
    shape=st.tuples(st.integers(1, 4), st.integers(2, 9)),
    batch_tokens=st.integers(1, 60),
    barriers=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    resume_after=st.integers(0, 5),
    budget=st.floats(1, 12),
)
def test_streamed_blocks_give_the_plain_losses_and_order(
    streamed: Streamed,
    family: str,
    shape: tuple[int, int],
    batch_tokens: int,
    barriers: tuple[int, int],
    resume_after: int,
    budget: float,
) -> None:
    """For any family, protected blocks, resume point, batch size and byte budget."""
    token_ids, num_remove = windows(*shape), NUM_BLOCKS - max(1, sum(barriers))
    search = partial(sleb, protect_first=barriers[0], protect_last=barriers[1])
    plain = list(search(PlainScorer(tiny_model(family), token_ids), NUM_BLOCKS, num_remove))
    removed = [removal.block for removal in plain[:resume_after]]
    state_budget = int(budget * one_sweep_bytes(shape[1]))
    scorer = SharedPrefixScorer(
        streamed(family), token_ids, state_budget=state_budget, batch_tokens=batch_tokens
    )
    found = list(search(scorer, NUM_BLOCKS, num_remove, removed=removed))
    assert_equal(found, plain[len(removed) :])


@settings(max_examples=8)
@given(st.data())
def test_no_call_leaves_a_wrong_state_behind(streamed: Streamed, data: st.DataObject) -> None:
    """Arbitrary rounds, unfinished or failing ones, and changing budgets."""
    token_ids, model = windows(3, 6), streamed("llama")
    scorer, plain = (
        SharedPrefixScorer(model, token_ids),
        PlainScorer(tiny_model("llama"), token_ids),
    )

    def fail(*_: object) -> None:
        raise ArithmeticError

    keeps = st.sets(st.integers(0, NUM_BLOCKS - 1), min_size=2).map(
        lambda keep: tuple(sorted(keep))
    )
    for _ in range(data.draw(st.integers(1, 5))):
        if data.draw(st.booleans()):
            scorer.set_state_budget(int(data.draw(st.floats(1, 12)) * one_sweep_bytes(6)))
        keep = data.draw(keeps)
        candidates = tuple(data.draw(st.permutations(keep)))
        failing = data.draw(st.sets(st.integers(0, NUM_BLOCKS - 1), max_size=1))
        with hooked([block_list(model.model)[block] for block in failing], fail):
            try:
                list(scorer.score_round(keep, candidates))
            except ArithmeticError:
                assert failing
        assert all(parameter.is_meta for parameter in model.model.parameters())
        taken = data.draw(st.integers(0, len(candidates)))
        found = dict(islice(scorer.score_round(keep, candidates), taken))
        for block, losses in plain.score_round(keep, candidates[:taken]):
            assert found[block] == pytest.approx(losses, abs=1e-5)
        assert scorer.losses(keep) == pytest.approx(plain.losses(keep), abs=1e-5)


@pytest.mark.parametrize("budget", [1, 100])
def test_a_block_that_gives_no_number_ends_the_search_and_leaves_nothing_behind(
    streamed: Streamed, budget: int
) -> None:
    token_ids, model = windows(3, 6), streamed("llama")
    scorer = SharedPrefixScorer(model, token_ids, state_budget=budget * one_sweep_bytes(6))

    def spoil(_block: torch.nn.Module, _inputs: object, hidden: torch.Tensor) -> torch.Tensor:
        return hidden * math.nan

    with (
        hooked([block_list(model.model)[3]], spoil),
        pytest.raises(NonFiniteLoss, match="step 1"),
    ):
        next(sleb(scorer, NUM_BLOCKS, 1))
    plain = list(sleb(PlainScorer(tiny_model("llama"), token_ids), NUM_BLOCKS, 3))
    assert_equal(list(sleb(scorer, NUM_BLOCKS, 3)), plain)


@pytest.mark.parametrize("budget", [2, 3, 100])
def test_some_of_the_windows_are_scored_between_boundaries(streamed: Streamed, budget: int) -> None:
    token_ids, keep = windows(5, 6), (0, 1, 2, 4, 5)
    plain = dict(PlainScorer(tiny_model("llama"), token_ids).score_round(keep, (1, 4)))
    state_budget = budget * one_sweep_bytes(6)
    scorer = SharedPrefixScorer(
        streamed("llama"), token_ids, state_budget=state_budget, boundaries=(2, 3)
    )
    for part in (range(2), range(2, 3), range(3), range(2, 5), range(5)):
        found = dict(scorer.score(keep, (4, 1), part))
        for block in (1, 4):
            expected = [plain[block][window] for window in part]
            assert found[block] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match="boundaries"):
        list(scorer.score(keep, (1,), range(4)))


def test_a_budget_below_one_window_is_refused(streamed: Streamed) -> None:
    too_small = one_sweep_bytes(9) - 1
    with pytest.raises(StateBudgetTooSmall, match=f"one window of 9 tokens need {too_small + 1}"):
        SharedPrefixScorer(streamed("llama"), windows(), state_budget=too_small)


class _Recorded(StreamedModel):
    visits: Sequence[int] = ()

    def blocks(self, indices: Iterable[int]) -> Iterator[int]:  # type: ignore[override]
        self.visits = list(indices)
        yield from super().blocks(self.visits)


def test_every_block_that_a_round_needs_visits_once_and_runs_once(streamed: Streamed) -> None:
    model = _Recorded(streamed("llama").path)
    scorer, ran = SharedPrefixScorer(model, windows(4, 6)), list[int]()
    blocks = list(block_list(model.model))

    def note(block: torch.nn.Module, _inputs: object, _hidden: torch.Tensor) -> None:
        ran.append(blocks.index(block))

    with hooked(blocks, note):
        scorer.losses(tuple(range(NUM_BLOCKS)))
        assert ran == model.visits == [0, 1, 2, 3, 4, 5]
        ran.clear()
        list(scorer.score_round((0, 1, 2, 3, 4, 5), (1, 2, 3, 4)))
        assert ran == model.visits == [2, 3, 4, 5], "the trunk is known from the dense losses"
        ran.clear()
        list(scorer.score_round((0, 1, 2, 3, 5), (1, 2, 3)))
        assert ran == model.visits == [5], "branches resume behind the block that went"


def test_a_search_holds_no_more_than_two_blocks_or_one_end(streamed: Streamed) -> None:
    model, whole = StreamedModel(streamed("llama").path), tiny_model("llama")
    list(sleb(SharedPrefixScorer(model, windows()), NUM_BLOCKS, 3))

    def num_bytes(*modules: torch.nn.Module) -> int:
        return sum(p.nbytes for module in modules for p in module.parameters())

    ends = whole.get_input_embeddings(), whole.get_output_embeddings()
    two_blocks, norm_bytes = num_bytes(*block_list(whole)[:2]), 4 * HIDDEN_SIZE
    assert model.peak_bytes == max(two_blocks, num_bytes(ends[0]), num_bytes(ends[1]) + norm_bytes)
