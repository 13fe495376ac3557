"""The next token of every sequence of a batch, each by its own parameters and generator.

A sequence draws one number per token and compares it with probabilities in the order of token
ids. So what it gets depends on its seed and its logits only, never on its neighbours.
"""

from collections.abc import Sequence

import torch

from app.engine.sequence import SamplingParams

_NUCLEUS = 1024  # best tokens to look for top-p among; sorting all takes as long as a forward


def new_generator(params: SamplingParams) -> torch.Generator | None:
    """The source of a sequence's random numbers, on the CPU for every device; None for greedy."""
    if params.is_greedy:
        return None
    generator = torch.Generator()
    if params.seed is None:
        generator.seed()
    else:
        generator.manual_seed(params.seed)
    return generator


def next_tokens(
    logits: torch.Tensor,
    params: Sequence[SamplingParams],
    generators: Sequence[torch.Generator | None],
) -> list[int | None]:
    """Token ids for rows of float32 logits ``[rows, vocab]``; None where they are not finite."""
    best, best_ids = logits.max(dim=-1)
    token_ids: list[int | None] = list(best_ids.tolist())
    drawn: list[int] = []
    for row, is_finite in enumerate(best.isfinite().tolist()):
        if not is_finite:
            token_ids[row] = None
        elif not params[row].is_greedy:
            drawn.append(row)
    if drawn:
        probabilities = filtered_probabilities(logits[drawn], [params[row] for row in drawn])
        draws = _draw(probabilities, [generators[row] for row in drawn])
        for row, token_id in zip(drawn, draws, strict=True):
            token_ids[row] = token_id
    return token_ids


def filtered_probabilities(logits: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """Probabilities ``[rows, vocab]`` after temperature, then top-k, then top-p."""
    temperatures = logits.new_tensor([its.temperature for its in params])[:, None]
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / temperatures
    if rows := [row for row, its in enumerate(params) if its.top_k]:
        logits[rows] = _keep_top_k(logits[rows], [params[row].top_k for row in rows])
    probabilities = logits.softmax(dim=-1)
    if rows := [row for row, its in enumerate(params) if its.top_p < 1]:
        probabilities[rows] = _keep_top_p(probabilities[rows], [params[row].top_p for row in rows])
    return probabilities


def _keep_top_k(logits: torch.Tensor, top_k: Sequence[int]) -> torch.Tensor:
    ranks = torch.tensor(top_k, device=logits.device).clamp(max=logits.shape[-1])[:, None]
    best = logits.topk(int(ranks.max()), dim=-1).values
    return logits.masked_fill(logits < best.gather(-1, ranks - 1), -torch.inf)


def _keep_top_p(probabilities: torch.Tensor, top_p: Sequence[float]) -> torch.Tensor:
    """Zero all but the most probable tokens that together reach ``top_p``, ties included."""
    limits = torch.tensor(top_p, dtype=torch.float64, device=probabilities.device)[:, None]
    num_best = min(_NUCLEUS, probabilities.shape[-1])
    descending = probabilities.topk(num_best, dim=-1).values
    if (descending.double().sum(dim=-1, keepdim=True) < limits).any():
        descending = probabilities.sort(dim=-1, descending=True).values
    better = descending.double().cumsum(dim=-1) - descending
    lowest = descending.masked_fill(better >= limits, torch.inf).amin(dim=-1, keepdim=True)
    return probabilities.masked_fill(probabilities < lowest, 0.0)


def _draw(probabilities: torch.Tensor, generators: Sequence[torch.Generator | None]) -> list[int]:
    cumulative = probabilities.double().cumsum(dim=-1)  # float32 would round small ones away
    numbers = torch.cat([torch.rand(1, generator=generator) for generator in generators])
    thresholds = numbers.to(cumulative)[:, None] * cumulative[:, -1:]
    token_ids: list[int] = torch.searchsorted(cumulative, thresholds, right=True)[:, 0].tolist()
    return token_ids
