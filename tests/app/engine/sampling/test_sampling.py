import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from app.engine.sampling.sampling import (
    Choice,
    _adjusted,
    _filtered,
    _of_adjustments,
    _of_filters,
    choose,
    new_generator,
)
from app.engine.scheduling.sequence import Request, SamplingParams, Sequence
from app.engine.transfer import upload_all
from tests.support.engine_requests import variant

VOCAB = 64


def logits(rows: int = 1, vocab: int = VOCAB, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 3


def sequence(params: SamplingParams, tokens: tuple[int, ...] = (5, 6, 7)) -> Sequence:
    return Sequence(Request("a", variant(), tokens, params), new_generator(params))


def tokens_of(scores: torch.Tensor, *seqs: Sequence) -> list[int | None]:
    choices = choose(scores, seqs).read()
    return [None if choice is None else choice.token_id for choice in choices]


def adjusted(scores: torch.Tensor, seqs: list[Sequence]) -> torch.Tensor:
    return _adjusted(scores, seqs, upload_all(_of_adjustments(seqs), scores.device))


def filtered_probabilities(scores: torch.Tensor, params: list[SamplingParams]) -> torch.Tensor:
    numbers = upload_all(_of_filters(params), scores.device)
    return _filtered(scores, numbers, max(one.top_k for one in params))


def draw(scores: torch.Tensor, *params: SamplingParams) -> list[int | None]:
    return tokens_of(scores, *map(sequence, params))


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.7),
        SamplingParams(temperature=1.0, top_k=5),
        SamplingParams(temperature=1.0, top_p=0.8),
        SamplingParams(temperature=1.5, top_k=20, top_p=0.6),
        SamplingParams(temperature=1.0, top_p=1e-6),
        SamplingParams(temperature=1.0, top_k=10 * VOCAB),
        SamplingParams(temperature=0.8, min_p=0.1),
        SamplingParams(temperature=1.5, top_k=30, top_p=0.9, min_p=0.05),
        SamplingParams(temperature=1.0, min_p=1.0),
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
    if params.min_p:
        expected = MinPLogitsWarper(params.min_p)(None, expected)  # type: ignore[arg-type]  # unread
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
    alone = sequence(mine)
    crowd = [sequence(each) for each in (*others, mine)]
    for scores in steps:
        assert tokens_of(scores, *crowd)[3:] == tokens_of(scores[3:], alone)


def test_another_seed_gives_other_tokens_and_no_seed_never_the_same() -> None:
    scores = torch.zeros(1, VOCAB)  # every token as likely as the other

    def tokens(seed: int | None) -> list[list[int | None]]:
        seq = sequence(SamplingParams(temperature=1.0, seed=seed))
        return [tokens_of(scores, seq) for _ in range(20)]

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)
    assert tokens(None) != tokens(None)


def test_tokens_come_as_often_as_they_are_likely() -> None:
    seq = sequence(SamplingParams(temperature=1.0, seed=0))
    scores = torch.tensor([[0.5, 0.3, 0.0, 0.2]]).log()
    drawn = [tokens_of(scores, seq)[0] for _ in range(2000)]
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
    assert draw(scores, *[SamplingParams(temperature=5.0, min_p=1.0, seed=3)] * 2) == best


@pytest.mark.parametrize("penalty", [0.1, 0.7, 1.3, 2.0])
def test_a_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    context = (3, 9, 9, 60)
    processor = RepetitionPenaltyLogitsProcessor(penalty)
    params = SamplingParams(repetition_penalty=penalty)
    for seed in range(20):
        scores = logits(2, seed=seed)
        before = scores.clone()
        penalised = processor(torch.tensor([context]), scores[:1].clone())
        seqs = sequence(params, context), sequence(SamplingParams(), context)
        assert tokens_of(scores, *seqs) == [
            int(penalised.argmax()),
            int(scores[1].argmax()),
        ]
        assert torch.equal(scores, before), "the caller's logits are not ours to change"


def test_a_repetition_penalty_counts_what_was_generated() -> None:
    scores = torch.tensor([[0.0, 1.0, 1.1, 1.2]])
    seq = sequence(SamplingParams(repetition_penalty=2.0), (0,))
    found = []
    for _ in range(3):
        [token_id] = tokens_of(scores, seq)
        assert token_id is not None
        seq.tokens.append(token_id)
        found.append(token_id)
    assert found == [3, 2, 1]


def test_a_sampled_row_is_penalised_too() -> None:
    params = SamplingParams(temperature=1.0, top_k=1, repetition_penalty=2.0, seed=0)
    assert tokens_of(torch.tensor([[0.0, 1.0, 1.5]]), sequence(params, (2,))) == [1]


def grown(params: SamplingParams, generated: tuple[int, ...]) -> Sequence:
    seq = sequence(params)
    seq.tokens += generated
    return seq


def test_a_bias_is_that_of_transformers() -> None:
    bias = {3: -100.0, 5: 4.25, 60: 1.5, 63: 100.0}
    processor = SequenceBiasLogitsProcessor([[[token_id], one] for token_id, one in bias.items()])
    scores = logits(3)
    biased, plain = SamplingParams(logit_bias=tuple(bias.items())), SamplingParams()
    expected = processor(torch.tensor([[1]]), scores[1:2].clone())
    found = adjusted(scores, [sequence(plain), sequence(biased), sequence(plain)])
    assert torch.equal(found, torch.cat([scores[:1], expected, scores[2:]]))
    assert tokens_of(scores[1:2], sequence(biased)) == [63]


def test_presence_and_frequency_penalties_are_as_they_are_defined() -> None:
    """Of the output alone: the prompt has tokens 5, 6 and 7."""
    outputs = [(), (9, 9, 5), (9,), (1, 2, 1, 1), (8,)]
    penalties = [(0.5, 0.25), (0.5, 0.25), (-2.0, 0.0), (0.0, 1.75), (0.0, 0.0)]
    seqs = [
        grown(SamplingParams(presence_penalty=presence, frequency_penalty=frequency), output)
        for (presence, frequency), output in zip(penalties, outputs, strict=True)
    ]
    scores = logits(len(seqs))
    expected = scores.clone()
    for row, ((presence, frequency), output) in enumerate(zip(penalties, outputs, strict=True)):
        for token_id in set(output):
            expected[row, token_id] -= output.count(token_id) * frequency + presence
    before = scores.clone()
    torch.testing.assert_close(adjusted(scores, seqs), expected, rtol=0, atol=1e-6)
    assert torch.equal(scores, before), "the caller's logits are not ours to change"


def test_adjustments_come_in_the_order_of_vllm() -> None:
    params = SamplingParams(
        logit_bias=((5, 4.0),), repetition_penalty=2.0, presence_penalty=1.0, frequency_penalty=0.5
    )
    scores = torch.full((1, 8), 2.0)
    found = adjusted(scores, [grown(params, (5, 5))])
    assert found[0].tolist() == [2, 2, 2, 2, 2, (2 + 4) / 2 - 1 - 2 * 0.5, 2 / 2, 2 / 2]


def test_log_probabilities_are_the_models_own() -> None:
    scores = logits(4)
    expected = scores.log_softmax(dim=-1)
    seqs = [
        sequence(SamplingParams(num_logprobs=3)),
        sequence(SamplingParams()),
        sequence(SamplingParams(temperature=9.0, seed=1, num_logprobs=0)),
        sequence(SamplingParams(repetition_penalty=2.0, num_logprobs=20), tuple(range(VOCAB))),
    ]
    choices = choose(scores, seqs).read()
    for row, num in ((0, 3), (2, 0), (3, 20)):
        choice = choices[row]
        assert choice is not None
        assert choice.logprob == pytest.approx(float(expected[row, choice.token_id]))
        best = expected[row].topk(num)
        assert [token_id for token_id, _ in choice.top_logprobs] == best.indices.tolist()
        assert [each for _, each in choice.top_logprobs] == pytest.approx(best.values.tolist())
    assert choices[1] == Choice(int(scores[1].argmax()))


def test_there_are_no_more_log_probabilities_than_tokens_and_none_of_what_is_not_finite() -> None:
    seqs = [sequence(SamplingParams(num_logprobs=20), (0,)) for _ in range(2)]
    chosen, none = choose(torch.tensor([[1.0, 2.0, 0.0], [torch.nan, 1.0, 0.0]]), seqs).read()
    assert chosen is not None
    assert [token_id for token_id, _ in chosen.top_logprobs] == [1, 0, 2]
    assert none is None


def test_draws_do_not_depend_on_the_default_dtype() -> None:
    """Which transformers changes, for all threads, while it loads a model."""
    scores = logits(8, vocab=4096)
    params = [SamplingParams(temperature=5.0, seed=seed) for seed in range(8)]
    expected = draw(scores, *params)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert draw(scores, *params) == expected
    finally:
        torch.set_default_dtype(torch.float32)
