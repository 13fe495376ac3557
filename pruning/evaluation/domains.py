"""Measure the prefixes of a removal order, raw and repaired, on each domain of held-out text."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, pairwise

from pruning.data.windows import Windows
from pruning.evaluation.enough import UntilKnown
from pruning.evaluation.estimate import Kinds
from pruning.evaluation.pruned_losses import Part, PrunedModel, losses_of_parts
from pruning.evaluation.quality import DomainQuality, Measured, Shares, perplexity_of
from pruning.models.blocks import Own, num_blocks
from pruning.removal import Losses, kept
from pruning.search.dense_model import DenseModel
from pruning.sleb import Blocks

_Wanted = Mapping[str, Mapping[int, int]]  # windows in all, by domain and position of the model


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
    repaired = [PrunedModel(raw[number].keep, tensors) for number, tensors in own.items()]
    models = [*raw, *repaired]
    served = {depth: depth for depth in range(len(raw))}
    served |= {depth: len(raw) + at for at, depth in enumerate(own)}
    losses: dict[str, list[list[float]]] = {name: [[] for _ in models] for name in windows}
    available = {name: len(part.token_ids) for name, part in windows.items()}
    wanted: _Wanted = {
        name: dict.fromkeys(range(len(models)), enough.at_first(number) if enough else number)
        for name, number in available.items()
    }
    while True:
        _measure(dense, models, windows, wanted, losses)
        measured = tuple(
            _domain(name, windows[name], of_domain, tuple(own), len(raw))
            for name, of_domain in losses.items()
        )
        sizes = enough.next_sizes(measured, available) if enough else {}
        if not sizes:
            return measured
        wanted = {
            name: {0: max(of.values()), **{served[depth]: size for depth, size in of.items()}}
            for name, of in sizes.items()
        }


def _measure(
    dense: DenseModel,
    models: Sequence[PrunedModel],
    windows: Mapping[str, Windows],
    wanted: _Wanted,
    losses: Mapping[str, list[list[float]]],
) -> None:
    """Extend the ``losses`` of models to the first ``wanted`` windows of each domain."""
    parts = [
        (name, Part(windows[name].token_ids[begin:end], which))
        for name, sizes in wanted.items()
        for begin, end, which in _segments([len(of_model) for of_model in losses[name]], sizes)
    ]
    by_part = losses_of_parts(dense, models, [part for _, part in parts])
    for (name, part), of_part in zip(parts, by_part, strict=True):
        for at, more in zip(part.models, of_part, strict=True):
            losses[name][at].extend(more)


def _segments(
    measured: Sequence[int], wanted: Mapping[int, int]
) -> Iterator[tuple[int, int, Sequence[int]]]:
    """Ranges of windows, in order, each with the positions of the models that lack its windows."""
    spans = {at: (measured[at], size) for at, size in wanted.items() if size > measured[at]}
    for begin, end in pairwise(sorted({*chain.from_iterable(spans.values())})):
        which = [at for at, (first, last) in spans.items() if first <= begin and end <= last]
        if which:
            yield begin, end, which


def with_healed(
    dense: DenseModel,
    windows: Mapping[str, Windows],
    domains: Sequence[DomainQuality],
    healed: Mapping[int, PrunedModel],
    control: PrunedModel | None,
) -> tuple[DomainQuality, ...]:
    """The ``domains``, with the healed models and their control on the same ``windows``.

    Those models are by number of removed blocks.
    """
    whole = PrunedModel(dense.every_block)
    models = [whole, *healed.values(), *([control] if control else [])]
    parts = [Part(windows[each.domain].token_ids, range(len(models))) for each in domains]
    return tuple(
        _healed(domain, tuple(healed), losses, windows[domain.domain].kinds)
        for domain, losses in zip(domains, losses_of_parts(dense, models, parts), strict=True)
    )


def _healed(
    domain: DomainQuality, depths: Blocks, losses: Sequence[Losses], kinds: Kinds
) -> DomainQuality:
    """``losses`` are of the dense model, of each of these depths, and of the control if any."""
    dense, *others = losses
    measured = [Measured.against(dense, of_model, kinds=kinds) for of_model in others]
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


def _domain(
    name: str,
    windows: Windows,
    losses: Sequence[Losses],
    repaired_depths: Sequence[int],
    num_raw: int,
) -> DomainQuality:
    """``losses`` are of the dense model, of each depth, and of the repaired ones, on the first of
    the ``windows``.

    The deepest one as it is served is the control of those with fewer windows.
    """
    dense, *depths = losses[:num_raw]
    repaired = dict(zip(repaired_depths, losses[num_raw:], strict=True))
    control = repaired.get(num_raw - 1, losses[num_raw - 1])
    measured = {
        number: Measured.against(dense, of_model, control, windows.kinds)
        for number, of_model in repaired.items()
    }
    used = windows.first(len(dense))
    return DomainQuality(
        domain=name,
        source=used.source,
        num_windows=len(dense),
        seqlen=used.token_ids.shape[1],
        digest=used.digest,
        dense=Measured.of_dense(dense),
        raw=tuple(Measured.against(dense, of_model, control, windows.kinds) for of_model in depths),
        repaired=tuple(measured.get(number) for number in range(1, num_raw)) if measured else (),
    )
