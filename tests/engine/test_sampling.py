import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from app.engine.sampling import filtered_probabilities, new_generator, next_tokens
from app.engine.sequence import SamplingParams

VOCAB = 64


def logits(rows: int = 1, vocab: int = VOCAB, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 3


def draw(scores: torch.Tensor, *params: SamplingParams) -> list[int | None]:
    return next_tokens(scores, params, [new_generator(its) for its in params])


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.7),
        SamplingParams(temperature=1.0, top_k=5),
        SamplingParams(temperature=1.0, top_p=0.8),
        SamplingParams(temperature=1.5, top_k=20, top_p=0.6),
        SamplingParams(temperature=1.0, top_p=1e-6),
        SamplingParams(temperature=1.0, top_k=10 * VOCAB),
    ],
    ids=str,
)
def test_probabilities_are_those_of_the_transformers_warpers(params: SamplingParams) -> None:
    scores = logits(3)
    expected = TemperatureLogitsWarper(params.temperature)(None, scores)
    if params.top_k:
        expected = TopKLogitsWarper(params.top_k)(None, expected)
    if params.top_p < 1:
        expected = TopPLogitsWarper(params.top_p)(None, expected)
    ours = filtered_probabilities(scores, [params] * 3)
    renormalised = ours / ours.sum(dim=-1, keepdim=True)
    torch.testing.assert_close(renormalised, expected.softmax(dim=-1))


def test_top_p_is_right_when_the_nucleus_is_larger_than_usual() -> None:
    scores = logits(2, vocab=5000) / 10
    params = SamplingParams(temperature=1.0, top_p=0.9)
    expected = TopPLogitsWarper(0.9)(None, scores).isfinite().sum(dim=-1)
    assert (filtered_probabilities(scores, [params] * 2) > 0).sum(dim=-1).tolist() == (
        expected.tolist()
    )
    assert expected.min() > 1024


def test_greedy_takes_the_best_and_draws_nothing() -> None:
    scores = logits(4)
    assert draw(scores, *[SamplingParams()] * 4) == scores.argmax(dim=-1).tolist()


def test_rows_that_are_not_finite_have_no_token_and_harm_no_other() -> None:
    scores = logits(5)
    scores[0, 3] = torch.nan
    scores[1, 3] = torch.inf
    scores[2] = -torch.inf
    scores[3, 3] = -torch.inf  # a token that is ruled out is fine
    warm = SamplingParams(temperature=1.0, seed=1)
    token_ids = draw(scores, warm, SamplingParams(), warm, SamplingParams(), warm)
    assert token_ids[:3] == [None, None, None]
    assert None not in token_ids[3:]


def test_a_seed_gives_the_same_tokens_whatever_its_neighbours_do() -> None:
    mine = SamplingParams(temperature=1.0, top_p=0.95, seed=7)
    others = [
        SamplingParams(temperature=2.0, seed=7),
        SamplingParams(),
        SamplingParams(temperature=0.5, top_k=3, seed=9),
    ]
    steps = [logits(4, seed=step) for step in range(20)]
    alone = new_generator(mine)
    crowd = [new_generator(its) for its in (*others, mine)]
    for scores in steps:
        expected = next_tokens(scores[3:], [mine], [alone])
        assert next_tokens(scores, [*others, mine], crowd)[3:] == expected


def test_another_seed_gives_other_tokens_and_no_seed_never_the_same() -> None:
    scores = torch.zeros(1, VOCAB)  # every token as likely as the other

    def tokens(seed: int | None) -> list[list[int | None]]:
        params = SamplingParams(temperature=1.0, seed=seed)
        generator = new_generator(params)
        return [next_tokens(scores, [params], [generator]) for _ in range(20)]

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)
    assert tokens(None) != tokens(None)


def test_tokens_come_as_often_as_they_are_likely() -> None:
    params = SamplingParams(temperature=1.0, seed=0)
    generator = new_generator(params)
    scores = torch.tensor([[0.5, 0.3, 0.0, 0.2]]).log()
    drawn = [next_tokens(scores, [params], [generator])[0] for _ in range(2000)]
    assert [drawn.count(token) / 2000 for token in range(4)] == pytest.approx(
        [0.5, 0.3, 0.0, 0.2], abs=0.04
    )
    assert 2 not in drawn


def test_the_coldest_and_the_narrowest_sampling_is_greedy() -> None:
    scores = logits(2)
    best = scores.argmax(dim=-1).tolist()
    assert draw(scores, *[SamplingParams(temperature=1e-4, seed=3)] * 2) == best
    assert draw(scores, *[SamplingParams(temperature=5.0, top_k=1, seed=3)] * 2) == best
    assert draw(scores, *[SamplingParams(temperature=5.0, top_p=1e-9, seed=3)] * 2) == best
