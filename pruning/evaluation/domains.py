"""Measure the prefixes of a removal order, raw and repaired, on each domain of held-out text."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import torch

from pruning.data.windows import Windows
from pruning.evaluation.pruned_losses import PrunedModel, pruned_losses
from pruning.evaluation.quality import DomainQuality, Measured, perplexity_of
from pruning.models.blocks import Own, num_blocks
from pruning.removal import Losses, kept
from pruning.search.dense_model import DenseModel
from pruning.sleb import Blocks


def measure_domains(
    dense: DenseModel, windows: Mapping[str, Windows], removed: Blocks, own: Mapping[int, Own]
) -> tuple[DomainQuality, ...]:
    """The quality after each removal, on the ``windows`` of each domain, all of one length.

    ``own`` are the own tensors of each repaired depth, by its number of removed blocks.
    """
    total = num_blocks(dense.model)
    raw = [PrunedModel(kept(total, removed[:number])) for number in range(len(removed) + 1)]
    repaired = [PrunedModel(raw[number].keep, tensors) for number, tensors in own.items()]
    token_ids = torch.cat([part.token_ids for part in windows.values()])
    losses = pruned_losses(dense, [*raw, *repaired], token_ids)
    return tuple(
        _domain(
            name, windows[name], found[: len(raw)], dict(zip(own, found[len(raw) :], strict=True))
        )
        for name, found in _by_domain(windows, losses)
    )


def with_healed(
    dense: DenseModel,
    windows: Mapping[str, Windows],
    domains: Sequence[DomainQuality],
    healed: PrunedModel,
    control: PrunedModel | None,
) -> tuple[DomainQuality, ...]:
    """The ``domains``, with the healed model and its control on the same ``windows``."""
    whole = PrunedModel(tuple(range(num_blocks(dense.model))))
    models = [whole, healed, *([control] if control else [])]
    token_ids = torch.cat([part.token_ids for part in windows.values()])
    found = dict(_by_domain(windows, pruned_losses(dense, models, token_ids)))
    return tuple(_healed(domain, *found[domain.domain]) for domain in domains)


def _healed(
    domain: DomainQuality, dense: Losses, healed: Losses, control: Losses | None = None
) -> DomainQuality:
    return replace(
        domain,
        healed=Measured.against(dense, healed),
        control=None if control is None else Measured.against(dense, control),
    )


def perplexity_curve(
    domains: Sequence[DomainQuality], of_depth: Callable[[DomainQuality, int], Measured]
) -> tuple[float, ...]:
    """The perplexity after 0, 1, 2 ... removals, on all windows of these domains.

    ``of_depth`` says of which model: ``DomainQuality.served_after`` or ``raw_after``.
    """
    num_windows = sum(domain.num_windows for domain in domains)
    return tuple(
        perplexity_of(
            sum(domain.num_windows * of_depth(domain, number).loss for domain in domains)
            / num_windows
        )
        for number in range(len(domains[0].raw) + 1)
    )


def _by_domain(
    windows: Mapping[str, Windows], losses: Sequence[Losses]
) -> Iterator[tuple[str, list[Losses]]]:
    """The losses of every model on the windows of each domain."""
    ends = [0]
    for part in windows.values():
        ends.append(ends[-1] + len(part.token_ids))
    for name, (begin, end) in zip(windows, pairwise(ends), strict=True):
        yield name, [found[begin:end] for found in losses]


def _domain(
    name: str, windows: Windows, raw: Sequence[Losses], repaired: Mapping[int, Losses]
) -> DomainQuality:
    """``raw`` are losses of the dense model and of each depth, ``repaired`` those of some."""
    num_windows, seqlen = windows.token_ids.shape
    dense, *depths = raw
    measured = {number: Measured.against(dense, found) for number, found in repaired.items()}
    return DomainQuality(
        domain=name,
        source=windows.source,
        num_windows=num_windows,
        seqlen=seqlen,
        digest=windows.digest,
        dense=Measured.of_dense(dense),
        raw=tuple(Measured.against(dense, found) for found in depths),
        repaired=tuple(measured.get(number) for number in range(1, len(raw))) if measured else (),
    )
