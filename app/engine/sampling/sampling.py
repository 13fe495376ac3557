"""Sampling of the next token of each sequence in a batch, with its own parameters and generator.

A sequence draws one number per token, and inverts the cumulative distribution in the order of token
ids. So the token depends on its seed and logits only, not on other sequences.
"""

import logging
from collections.abc import Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import chain

import torch
from llguidance import LLExecutor

from app.engine.grammar import Matcher
from app.engine.scheduling.sequence import SamplingParams, Sequence
from app.engine.transfer import Download, Numbers, sent, upload_all
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


@dataclass(frozen=True)
class _Results:
    """What a device computes of the rows of a batch."""

    token_ids: torch.Tensor
    num_best: Mapping[int, int]  # by row: the tokens whose log-probabilities are reported
    download: Download  # whether each row is finite, the token ids, and the reports

    def read(self) -> list[Choice | None]:
        is_finite, ids, *reported = self.download.read()
        choices = [Choice(each) if is_finite[row] else None for row, each in enumerate(ids)]
        for row, logprob, best_ids, values in zip(self.num_best, *reported, strict=True):
            if is_finite[row]:
                num = self.num_best[row]
                top = zip(best_ids[:num], values[:num], strict=True)
                choices[row] = Choice(ids[row], logprob, tuple(top))
        return choices


@dataclass(frozen=True)
class Chosen:
    """Choices for the rows of a batch, which a GPU may still compute."""

    logits: torch.Tensor
    seqs: Rows[Sequence]
    numbers: Rows[float]
    results: _Results | None  # None if the rows cannot be sampled together

    @property
    def token_ids(self) -> torch.Tensor | None:
        """``[rows]``, on the device. Of a row without a choice, any token. None if there are none
        before the choices are read."""
        return None if self.results is None else self.results.token_ids

    def read(self) -> list[Choice | None]:
        """The choices, once they are there. None for rows that have none: a row that is not finite,
        or whose response format or own parameters make the sampling fail, which is logged.
        """
        if self.results is not None:
            return self.results.read()
        rows = enumerate(zip(self.seqs, self.numbers, strict=True))
        return [_choice_alone(self.logits[row : row + 1], *of) for row, of in rows]


def choose(logits: torch.Tensor, seqs: Rows[Sequence]) -> Chosen:
    """Choose the next tokens by float32 logits ``[rows, vocab]``, which must stay as they are only
    until this returns, unless there are no ``token_ids`` then.
    """
    numbers = [_number(seq.generator) for seq in seqs]  # once, also if rows are sampled again
    try:
        return Chosen(logits, seqs, numbers, _results(logits, seqs, numbers))
    except torch.AcceleratorError:
        raise
    except Exception:
        logger.exception(
            "sampling failed in a batch of %d: sampling each row separately", len(seqs)
        )
    return Chosen(logits, seqs, numbers, None)


def _choice_alone(logits: torch.Tensor, seq: Sequence, number: float) -> Choice | None:
    try:
        [choice] = _results(logits, [seq], [number]).read()
    except torch.AcceleratorError:
        raise
    except Exception:
        logger.exception("sampling failed for request %s", seq.request.request_id)
        return None
    return choice


def _results(logits: torch.Tensor, seqs: Rows[Sequence], numbers: Rows[float]) -> _Results:
    """All that depends on the requests goes to the device at once, and all results come back at
    once: a step waits for the device only there."""
    params = [seq.request.params for seq in seqs]
    drawn = [row for row, one in enumerate(params) if not one.is_greedy]
    num_best = {
        row: one.num_logprobs for row, one in enumerate(params) if one.num_logprobs is not None
    }
    lists = _of_adjustments(seqs)
    if num_best:
        lists["reported"] = Numbers([*num_best])
    if drawn:
        lists |= _of_filters([params[row] for row in drawn])
        lists["drawn"] = Numbers(drawn)
        lists["numbers"] = Numbers([numbers[row] for row in drawn], torch.float64)
    on_device = upload_all(lists, logits.device)
    adjusted = _adjusted(logits, seqs, on_device)
    best, token_ids = adjusted.max(dim=-1)
    if drawn:
        chosen = _rows(adjusted, on_device["drawn"])
        most = max(one.top_k for one in params)  # tokens that top-k keeps of a row
        draws = _draw(_filtered(chosen, on_device, most), on_device["numbers"])
        all_drawn = len(drawn) == len(seqs)
        token_ids = draws if all_drawn else token_ids.index_copy(0, on_device["drawn"], draws)
    reports = _reports(logits, token_ids, on_device["reported"], num_best) if num_best else ()
    return _Results(token_ids, num_best, Download(best.isfinite(), token_ids, *reports))


def _rows(logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return logits if len(rows) == len(logits) else logits.index_select(0, rows)


def _of_adjustments(seqs: Rows[Sequence]) -> dict[str, Numbers]:
    """The numbers that ``_adjusted`` needs on the device, by name."""
    adjustments = _of_biases(seqs) | _of_repetition(seqs) | _of_generated(seqs)
    if formatted := [row for row, seq in enumerate(seqs) if seq.matcher is not None]:
        adjustments["formatted"] = Numbers(formatted)
    return adjustments


def _adjusted(
    logits: torch.Tensor, seqs: Rows[Sequence], numbers: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """Logits after biases, penalties and response formats."""
    adjusted = _biased(logits, numbers)
    adjusted = _without_repetition(adjusted, numbers)
    adjusted = _without_generated(adjusted, numbers)
    return _formatted(adjusted, seqs, numbers)


def _of_biases(seqs: Rows[Sequence]) -> dict[str, Numbers]:
    biases = [
        (row, token_id, bias)
        for row, seq in enumerate(seqs)
        for token_id, bias in seq.request.params.logit_bias
    ]
    if not biases:
        return {}
    rows, token_ids, values = zip(*biases, strict=True)
    return {
        "biased rows": Numbers(rows),
        "biased tokens": Numbers(token_ids),
        "biases": Numbers(values, torch.float32),
    }


def _biased(logits: torch.Tensor, numbers: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Logits with the bias of each token added."""
    if "biases" not in numbers:
        return logits
    biased = logits.clone()
    biased[numbers["biased rows"], numbers["biased tokens"]] += numbers["biases"]
    return biased


def _of_repetition(seqs: Rows[Sequence]) -> dict[str, Numbers]:
    rows = [row for row, seq in enumerate(seqs) if seq.request.params.repetition_penalty != 1]
    if not rows:
        return {}
    penalties = [seqs[row].request.params.repetition_penalty for row in rows]
    return {
        "repeating rows": Numbers(rows),
        "penalties": Numbers(penalties, torch.float32),
        "num seen": Numbers([len(seqs[row].tokens) for row in rows]),
        "seen": Numbers([*chain(*(seqs[row].tokens for row in rows))]),
    }


def _without_repetition(logits: torch.Tensor, numbers: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Logits with the repetition penalty of CTRL (arXiv 1909.05858) on prompt and output tokens."""
    if "seen" not in numbers:
        return logits
    owners = _owners(numbers["num seen"], numbers["seen"])
    seen = numbers["repeating rows"][owners], numbers["seen"]
    penalties = numbers["penalties"][owners]
    scores, penalised = logits[seen], logits.clone()
    penalised[seen] = torch.where(scores < 0, scores * penalties, scores / penalties)
    return penalised


def _owners(lengths: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """To which of the lists, of these lengths, each of the values belongs."""
    return torch.repeat_interleave(lengths, output_size=len(values))


def _of_generated(seqs: Rows[Sequence]) -> dict[str, Numbers]:
    params = [seq.request.params for seq in seqs]
    rows = [
        row
        for row, one in enumerate(params)
        if (one.presence_penalty or one.frequency_penalty) and seqs[row].num_generated
    ]
    if not rows:
        return {}
    generated = [seqs[row].generated for row in rows]
    return {
        "generating rows": Numbers(rows),
        "frequency": Numbers([params[row].frequency_penalty for row in rows], torch.float32),
        "presence": Numbers([params[row].presence_penalty for row in rows], torch.float32),
        "num generated": Numbers([*map(len, generated)]),
        "generated": Numbers([*chain(*generated)]),
    }


def _without_generated(logits: torch.Tensor, numbers: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Logits with OpenAI's presence and frequency penalties, on output tokens only."""
    if "generated" not in numbers:
        return logits
    rows, generated = numbers["generating rows"], numbers["generated"]
    counts = logits.new_zeros(len(rows), logits.shape[-1])
    where = _owners(numbers["num generated"], generated), generated
    counts.index_put_(where, counts.new_ones(()), accumulate=True)
    frequency, presence = numbers["frequency"][:, None], numbers["presence"][:, None]
    penalised = logits.clone()
    penalised[rows] -= frequency * counts + presence * (counts > 0)
    return penalised


def _formatted(
    logits: torch.Tensor, seqs: Rows[Sequence], numbers: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """Logits of the tokens that each response format allows; the others are -inf."""
    matchers = [seq.matcher for seq in seqs if seq.matcher is not None]
    if not matchers:
        return logits
    bounds = upper_bounds(matchers, logits.shape[-1], logits.device)
    if len(matchers) == len(seqs):
        return torch.minimum(logits, bounds, out=bounds)
    formatted, rows = logits.clone(), numbers["formatted"]
    formatted[rows] = torch.minimum(logits[rows], bounds)
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
    of_bytes = sent(masks.view(torch.uint8), device).flatten().int()
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


def _reports(
    logits: torch.Tensor, token_ids: torch.Tensor, rows: torch.Tensor, num_best: Mapping[int, int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of these rows, the log-probability of the chosen token, and the best tokens with theirs."""
    logprobs = _rows(logits, rows).log_softmax(dim=-1)
    best = logprobs.topk(min(max(num_best.values()), logprobs.shape[-1]), dim=-1)
    chosen = logprobs.gather(1, _rows(token_ids, rows)[:, None])[:, 0]
    return chosen, best.indices, best.values


def _of_filters(params: Rows[SamplingParams]) -> dict[str, Numbers]:
    """The numbers that ``_filtered`` needs on the device, by name."""
    filters = {"temperature": Numbers([one.temperature for one in params], torch.float32)}
    for name, off, of_params, dtype in (
        ("top-k", 0, [one.top_k for one in params], torch.long),
        ("top-p", 1, [one.top_p for one in params], torch.float64),
        ("min-p", 0, [one.min_p for one in params], torch.float32),
    ):
        limits = {row: limit for row, limit in enumerate(of_params) if limit != off}
        filters[f"{name} rows"] = Numbers([*limits])
        filters[name] = Numbers([*limits.values()], dtype)
    return filters


def _filtered(logits: torch.Tensor, numbers: Mapping[str, torch.Tensor], most: int) -> torch.Tensor:
    """Probabilities after the filters, of which top-k keeps at most ``most`` tokens."""
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / numbers["temperature"][:, None]
    if "top-k" in numbers:
        rows = numbers["top-k rows"]
        logits[rows] = _keep_top_k(logits[rows], numbers["top-k"][:, None], most)
    probabilities = logits.softmax(dim=-1)
    for name, keep in (("top-p", _keep_top_p), ("min-p", _keep_min_p)):
        if name in numbers:
            rows = numbers[f"{name} rows"]
            probabilities[rows] = keep(probabilities[rows], numbers[name][:, None])
    return probabilities


def _keep_top_k(logits: torch.Tensor, top_k: torch.Tensor, most: int) -> torch.Tensor:
    vocab_size = logits.shape[-1]
    best = logits.topk(min(most, vocab_size), dim=-1).values
    kept = best.gather(-1, top_k.clamp(max=vocab_size) - 1)
    return logits.masked_fill(logits < kept, -torch.inf)


def _keep_top_p(probabilities: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    """Keep the most probable tokens that together reach the limits, ties included."""
    descending = _descending(probabilities, limits)
    better = descending.double().cumsum(dim=-1) - descending
    lowest = descending.masked_fill(better >= limits, torch.inf).amin(dim=-1, keepdim=True)
    return probabilities.masked_fill(probabilities < lowest, 0.0)


def _descending(probabilities: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    """The best probabilities, as many as reach the limits. A GPU sorts all of them, since the host
    would wait to know whether a few reach the limits."""
    if probabilities.device.type == "cpu":
        best = probabilities.topk(min(_NUCLEUS, probabilities.shape[-1]), dim=-1).values
        if not (best.double().sum(dim=-1, keepdim=True) < limits).any():
            return best
    return probabilities.sort(dim=-1, descending=True).values


def _keep_min_p(probabilities: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Keep tokens of at least this share of the best probability (arXiv 2407.01082)."""
    least = shares * probabilities.amax(dim=-1, keepdim=True)
    return probabilities.masked_fill(probabilities < least, 0.0)


def _number(generator: torch.Generator | None) -> float:
    """The next random number of a sequence; no number is drawn for a greedy one."""
    if generator is None:
        return 0.0
    return torch.rand(1, generator=generator, dtype=torch.float32).item()


def _draw(probabilities: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """A token for each row. Of a row without probabilities, which is not finite, any one."""
    cumulative = probabilities.double().cumsum(dim=-1)  # float32 would lose small ones
    thresholds = numbers[:, None] * cumulative[:, -1:]
    drawn = torch.searchsorted(cumulative, thresholds, right=True)[:, 0]
    return drawn.clamp_(max=probabilities.shape[-1] - 1)
