"""Measure the prefixes of a removal order, raw and repaired, on each domain of held-out text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from pruning.data.windows import Windows
from pruning.evaluation.enough import UntilKnown
from pruning.evaluation.estimate import Strata
from pruning.evaluation.pruned_losses import PrunedModel, losses_of_parts
from pruning.evaluation.quality import DomainQuality, Measured, Shares, perplexity_of
from pruning.models.blocks import Own, num_blocks
from pruning.removal import Losses, kept
from pruning.search.dense_model import DenseModel
from pruning.sleb import Blocks


def measure_domains(
    dense: DenseModel,
    windows: Mapping[str, Windows],
    removed: Blocks,
    own: Mapping[int, Own],
    enough: UntilKnown | None = None,
) -> tuple[DomainQuality, ...]:
    """The quality after each removal, on the first ``windows`` of each domain, until ``enough``.

    None takes all of them at once. ``own`` are the own tensors of each repaired depth, by its
    number of removed blocks.
    """
    total = num_blocks(dense.model)
    raw = [PrunedModel(kept(total, removed[:number])) for number in range(len(removed) + 1)]
    models = [*raw, *(PrunedModel(raw[number].keep, tensors) for number, tensors in own.items())]
    losses: dict[str, list[list[float]]] = {name: [[] for _ in models] for name in windows}
    available = {name: len(part.token_ids) for name, part in windows.items()}
    sizes: Mapping[str, int] = available
    if enough is not None:
        sizes = {name: enough.at_first(number) for name, number in available.items()}
    while sizes:
        _measure(dense, models, windows, sizes, losses)
        measured = tuple(
            domain_quality(name, windows[name], of_domain, tuple(own), len(raw))
            for name, of_domain in losses.items()
        )
        sizes = enough.next_sizes(measured, available) if enough else {}
    return measured


def _measure(
    dense: DenseModel,
    models: Sequence[PrunedModel],
    windows: Mapping[str, Windows],
    sizes: Mapping[str, int],
    losses: Mapping[str, list[list[float]]],
) -> None:
    """Extend the ``losses`` of all models to the first windows of each domain, as ``sizes`` say."""
    parts = [windows[name].token_ids[len(losses[name][0]) : size] for name, size in sizes.items()]
    for name, of_part in zip(sizes, losses_of_parts(dense, models, parts), strict=True):
        for of_model, more in zip(losses[name], of_part, strict=True):
            of_model.extend(more)


def with_healed(
    dense: DenseModel,
    windows: Mapping[str, Windows],
    domains: Sequence[DomainQuality],
    healed: Mapping[int, PrunedModel],
    control: PrunedModel | None,
    observe: Callable[[int, int], object] = lambda _done, _total: None,
) -> tuple[DomainQuality, ...]:
    """The ``domains``, with the healed models and their control on the same ``windows``.

    Those models are by number of removed blocks. ``observe`` is that of ``losses_of_parts``.
    """
    whole = PrunedModel(dense.every_block)
    models = [whole, *healed.values(), *([control] if control else [])]
    parts = [windows[each.domain].token_ids for each in domains]
    measured = losses_of_parts(dense, models, parts, observe)
    return tuple(
        _healed(domain, tuple(healed), losses, _strata(windows[domain.domain]))
        for domain, losses in zip(domains, measured, strict=True)
    )


def _healed(
    domain: DomainQuality, depths: Blocks, losses: Sequence[Losses], strata: Strata
) -> DomainQuality:
    """``losses`` are of the dense model, of each of these depths, and of the control if any."""
    dense, *others = losses
    measured = [Measured.against(dense, of_model, strata) for of_model in others]
    by_depth = dict(zip(depths, measured, strict=False))  # the control follows
    return replace(
        domain,
        healed=tuple(by_depth.get(number) for number in range(1, len(domain.raw) + 1)),
        control=measured[len(depths)] if len(measured) > len(depths) else None,
    )


def perplexity_curve(
    domains: Sequence[DomainQuality],
    of_depth: Callable[[DomainQuality, int], Measured],
    shares: Shares | None = None,
) -> tuple[float, ...]:
    """The perplexity after 0, 1, 2 ... removals, of a text that has these shares of the domains.

    ``of_depth`` says of which model: ``DomainQuality.served_after`` or ``raw_after``. Without
    ``shares``, every window counts the same.
    """
    shares = shares or {domain.domain: domain.num_windows for domain in domains}
    total = sum(shares[domain.domain] for domain in domains)
    return tuple(
        perplexity_of(
            sum(shares[domain.domain] * of_depth(domain, number).loss for domain in domains) / total
        )
        for number in range(len(domains[0].raw) + 1)
    )


def domain_quality(
    name: str,
    windows: Windows,
    losses: Sequence[Losses],
    repaired_depths: Sequence[int] = (),
    num_raw: int = 2,
) -> DomainQuality:
    """The quality on the first ``windows`` of a domain, as many as there are losses of a model.

    The first ``num_raw`` of the ``losses`` are of the dense model and after 1, 2 ... removals, the
    others of ``repaired_depths``.
    """
    dense, *depths = losses[:num_raw]
    used = windows.first(len(dense))
    strata = _strata(used)
    measured = {
        number: Measured.against(dense, of_model, strata)
        for number, of_model in zip(repaired_depths, losses[num_raw:], strict=True)
    }
    return DomainQuality(
        domain=name,
        source=used.source,
        num_windows=len(dense),
        seqlen=used.token_ids.shape[1],
        digest=used.digest,
        dense=Measured.of_dense(dense, strata),
        raw=tuple(Measured.against(dense, of_model, strata) for of_model in depths),
        repaired=tuple(measured.get(number) for number in range(1, num_raw)) if measured else (),
    )


def _strata(windows: Windows) -> Strata:
    return Strata(windows.kinds, windows.documents)
