"""Sampling of the next token of each sequence in a batch, with its own parameters and generator.

A sequence draws one number per token, and inverts the cumulative distribution in the order of token
ids. So the token depends on its seed and logits only, not on other sequences.
"""

import logging
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from functools import cache, lru_cache

import torch
from llguidance import LLExecutor

from app.engine.grammar import Matcher
from app.engine.sequence import SamplingParams, Sequence
from pruning.cpus import usable_cpus

logger = logging.getLogger(__name__)

_NUCLEUS = 1024  # best tokens, tried first for top-p: sorting all takes as long as a forward


@dataclass(frozen=True)
class Choice:
    """The next token of a sequence, with the model's log-probabilities if requested."""

    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


def new_generator(params: SamplingParams) -> torch.Generator | None:
    """The random generator of a sequence, on the CPU for every device; None for greedy."""
    if params.is_greedy:
        return None
    generator = torch.Generator()
    if params.seed is None:
        generator.seed()
    else:
        generator.manual_seed(params.seed)
    return generator


def next_tokens(logits: torch.Tensor, seqs: Rows[Sequence]) -> list[Choice | None]:
    """Choices for float32 logits ``[rows, vocab]``, None for rows that have none.

    A row has none if it is not finite, if its response format fails, or if its own parameters make
    the sampling fail, which is logged. The other rows keep their choices.
    """
    numbers = [_number(seq.generator) for seq in seqs]  # once, also if rows are sampled again
    try:
        return _choices(logits, seqs, numbers)
    except torch.AcceleratorError:
        raise
    except Exception:
        logger.exception("sampling failed in a batch of %d: each row is sampled alone", len(seqs))
    return [
        _choice_alone(logits[row : row + 1], seq, number)
        for row, (seq, number) in enumerate(zip(seqs, numbers, strict=True))
    ]


def _choice_alone(logits: torch.Tensor, seq: Sequence, number: torch.Tensor) -> Choice | None:
    try:
        [choice] = _choices(logits, [seq], [number])
    except torch.AcceleratorError:
        raise
    except Exception:
        logger.exception("sampling failed for request %s", seq.request.request_id)
        return None
    return choice


def _choices(
    logits: torch.Tensor, seqs: Rows[Sequence], numbers: Rows[torch.Tensor]
) -> list[Choice | None]:
    params = [seq.request.params for seq in seqs]
    adjusted = _adjusted(logits, seqs)
    best, best_ids = adjusted.max(dim=-1)
    is_finite = best.isfinite().tolist()
    token_ids: list[int] = best_ids.tolist()
    drawn = [row for row, one in enumerate(params) if is_finite[row] and not one.is_greedy]
    if drawn:
        probabilities = filtered_probabilities(adjusted[drawn], [params[row] for row in drawn])
        draws = _draw(probabilities, [numbers[row] for row in drawn])
        for row, token_id in zip(drawn, draws, strict=True):
            token_ids[row] = token_id
    choices = [
        Choice(token_id) if is_finite[row] else None for row, token_id in enumerate(token_ids)
    ]
    reported = [row for row, one in enumerate(params) if one.num_logprobs is not None]
    if reported:
        _report(logits, choices, {row: params[row].num_logprobs or 0 for row in reported})
    return choices


def _adjusted(logits: torch.Tensor, seqs: Rows[Sequence]) -> torch.Tensor:
    """Logits after biases, penalties and response formats."""
    adjusted = _biased(logits, seqs)
    adjusted = _without_repetition(adjusted, seqs)
    adjusted = _without_generated(adjusted, seqs)
    return _formatted(adjusted, seqs)


def _biased(logits: torch.Tensor, seqs: Rows[Sequence]) -> torch.Tensor:
    """Logits with the bias of each token added."""
    biases = [
        (row, token_id, bias)
        for row, seq in enumerate(seqs)
        for token_id, bias in seq.request.params.logit_bias
    ]
    if not biases:
        return logits
    rows, token_ids, values = zip(*biases, strict=True)
    where = torch.tensor([rows, token_ids], device=logits.device)
    biased = logits.clone()
    biased[where[0], where[1]] += logits.new_tensor(values)
    return biased


def _without_repetition(logits: torch.Tensor, seqs: Rows[Sequence]) -> torch.Tensor:
    """Logits with the repetition penalty of CTRL (arXiv 1909.05858) on prompt and output tokens."""
    rows = [row for row, seq in enumerate(seqs) if seq.request.params.repetition_penalty != 1]
    if not rows:
        return logits
    penalised = logits.clone()
    for row in rows:
        seen = torch.tensor(seqs[row].tokens, device=logits.device)
        scores = logits[row, seen]
        penalty = seqs[row].request.params.repetition_penalty
        penalised[row, seen] = torch.where(scores < 0, scores * penalty, scores / penalty)
    return penalised


def _without_generated(logits: torch.Tensor, seqs: Rows[Sequence]) -> torch.Tensor:
    """Logits with OpenAI's presence and frequency penalties, on output tokens only."""
    params = [seq.request.params for seq in seqs]
    rows = [
        row
        for row, one in enumerate(params)
        if (one.presence_penalty or one.frequency_penalty) and seqs[row].num_generated
    ]
    if not rows:
        return logits
    where = [(at, token_id) for at, row in enumerate(rows) for token_id in seqs[row].generated]
    at, token_ids = torch.tensor(where, device=logits.device).unbind(dim=-1)
    counts = logits.new_zeros(len(rows), logits.shape[-1])
    counts.index_put_((at, token_ids), counts.new_ones(()), accumulate=True)
    frequency = logits.new_tensor([params[row].frequency_penalty for row in rows])[:, None]
    presence = logits.new_tensor([params[row].presence_penalty for row in rows])[:, None]
    penalised = logits.clone()
    penalised[rows] -= frequency * counts + presence * (counts > 0)
    return penalised


def _formatted(logits: torch.Tensor, seqs: Rows[Sequence]) -> torch.Tensor:
    """Logits of the tokens that each response format allows; the others are -inf."""
    matchers = [(row, seq.matcher) for row, seq in enumerate(seqs) if seq.matcher is not None]
    if not matchers:
        return logits
    rows, of_rows = zip(*matchers, strict=True)
    bounds = upper_bounds(of_rows, logits.shape[-1], logits.device)
    if len(rows) == len(seqs):
        return torch.minimum(logits, bounds, out=bounds)
    formatted = logits.clone()
    formatted[list(rows)] = torch.minimum(logits[list(rows)], bounds)
    return formatted


def upper_bounds(matchers: Rows[Matcher], vocab_size: int, device: torch.device) -> torch.Tensor:
    """Bounds of logits ``[matchers, vocab_size]``: inf for tokens that may follow, else -inf.

    All are computed at once, in threads. No token may follow where a matcher has failed or fails
    now: its own mask would still allow the end of the text.
    """
    masks = torch.zeros(len(matchers), -(-vocab_size // 32), dtype=torch.int32)
    alive = [(one.state, row) for row, one in enumerate(matchers) if not one.state.is_error()]
    if alive:  # an empty list is an error
        _executor().unsafe_compute_mask_ptr(
            alive, masks.data_ptr(), masks.shape[1] * masks.element_size(), len(matchers)
        )
    for state, row in alive:
        if state.is_error():
            masks[row] = 0
    of_bytes = masks.view(torch.uint8).to(device).flatten().int()
    # ten times as fast on a CPU as booleans and masked_fill
    bounds = _bounds_of_bits(device).index_select(0, of_bytes)
    return bounds.view(len(matchers), -1)[:, :vocab_size]


@cache
def _executor() -> LLExecutor:
    return LLExecutor(usable_cpus())


@lru_cache(maxsize=8)
def _bounds_of_bits(device: torch.device) -> torch.Tensor:
    """For each byte, the bounds that its bits mean, from the lowest on ``[256, 8]``."""
    bits = torch.arange(256)[:, None] >> torch.arange(8)
    return torch.where(bits & 1 == 1, torch.inf, -torch.inf).to(device)


def _report(logits: torch.Tensor, choices: list[Choice | None], num_best: dict[int, int]) -> None:
    """Add log-probabilities to the choices of the rows in ``num_best``."""
    logprobs = logits[list(num_best)].log_softmax(dim=-1)
    best = logprobs.topk(min(max(num_best.values()), logprobs.shape[-1]), dim=-1)
    table = zip(num_best.items(), logprobs, best.indices, best.values, strict=True)
    for (row, num), of_row, best_ids, best_values in table:
        if (choice := choices[row]) is not None:
            top = zip(best_ids[:num].tolist(), best_values[:num].tolist(), strict=True)
            choices[row] = Choice(choice.token_id, float(of_row[choice.token_id]), tuple(top))


def filtered_probabilities(logits: torch.Tensor, params: Rows[SamplingParams]) -> torch.Tensor:
    """Probabilities ``[rows, vocab]`` after temperature, top-k, top-p and min-p, in this order."""
    temperatures = logits.new_tensor([one.temperature for one in params])[:, None]
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / temperatures
    if rows := [row for row, one in enumerate(params) if one.top_k]:
        logits[rows] = _keep_top_k(logits[rows], [params[row].top_k for row in rows])
    probabilities = logits.softmax(dim=-1)
    if rows := [row for row, one in enumerate(params) if one.top_p < 1]:
        probabilities[rows] = _keep_top_p(probabilities[rows], [params[row].top_p for row in rows])
    if rows := [row for row, one in enumerate(params) if one.min_p]:
        probabilities[rows] = _keep_min_p(probabilities[rows], [params[row].min_p for row in rows])
    return probabilities


def _keep_top_k(logits: torch.Tensor, top_k: Rows[int]) -> torch.Tensor:
    ranks = torch.tensor(top_k, device=logits.device).clamp(max=logits.shape[-1])[:, None]
    best = logits.topk(int(ranks.max()), dim=-1).values
    return logits.masked_fill(logits < best.gather(-1, ranks - 1), -torch.inf)


def _keep_top_p(probabilities: torch.Tensor, top_p: Rows[float]) -> torch.Tensor:
    """Keep the most probable tokens that together reach ``top_p``, ties included."""
    limits = torch.tensor(top_p, dtype=torch.float64, device=probabilities.device)[:, None]
    num_best = min(_NUCLEUS, probabilities.shape[-1])
    descending = probabilities.topk(num_best, dim=-1).values
    if (descending.double().sum(dim=-1, keepdim=True) < limits).any():
        descending = probabilities.sort(dim=-1, descending=True).values
    better = descending.double().cumsum(dim=-1) - descending
    lowest = descending.masked_fill(better >= limits, torch.inf).amin(dim=-1, keepdim=True)
    return probabilities.masked_fill(probabilities < lowest, 0.0)


def _keep_min_p(probabilities: torch.Tensor, min_p: Rows[float]) -> torch.Tensor:
    """Keep tokens of at least this share of the best probability (arXiv 2407.01082)."""
    shares = probabilities.new_tensor(min_p)[:, None]
    least = shares * probabilities.amax(dim=-1, keepdim=True)
    return probabilities.masked_fill(probabilities < least, 0.0)


def _number(generator: torch.Generator | None) -> torch.Tensor:
    """The next random number of a sequence ``[1]``; no number is drawn for a greedy one."""
    if generator is None:
        return torch.zeros(1)
    return torch.rand(1, generator=generator, dtype=torch.float32)


def _draw(probabilities: torch.Tensor, numbers: Rows[torch.Tensor]) -> list[int]:
    cumulative = probabilities.double().cumsum(dim=-1)  # float32 would lose small ones
    thresholds = torch.cat(list(numbers)).to(cumulative)[:, None] * cumulative[:, -1:]
    token_ids: list[int] = torch.searchsorted(cumulative, thresholds, right=True)[:, 0].tolist()
    return token_ids
