"""Who evaluates which candidate: loads evened out, and states used where they are."""

from collections.abc import Callable, Mapping, Sequence

Cost = Callable[[int, int], int]  # of a block at a place, in block passes


def deal(
    candidates: Sequence[int], places: Sequence[int], homes: Mapping[int, int], cost: Cost
) -> dict[int, list[int]]:
    """Each place's share, in the order of ``candidates``.

    ``homes`` has the place that knows a block's states. A block goes home, unless the busiest place
    hands it to the idlest to be done sooner; one without a home goes where there is least to do.
    """
    shares: dict[int, set[int]] = {place: set() for place in places}

    def load(place: int) -> int:
        return sum(cost(block, place) for block in shares[place])

    homeless = []
    for block in candidates:
        if (home := homes.get(block)) in shares and home is not None:
            shares[home].add(block)
        else:
            homeless.append(block)
    for block in sorted(homeless, key=lambda block: cost(block, places[0]), reverse=True):
        shares[min(places, key=load)].add(block)
    while True:
        busiest, idlest = max(places, key=load), min(places, key=load)
        moves = {
            block: max(load(busiest) - cost(block, busiest), load(idlest) + cost(block, idlest))
            for block in shares[busiest]
        }
        best = min(moves, key=moves.__getitem__, default=None)
        if best is None or moves[best] >= load(busiest):
            return {place: [b for b in candidates if b in shares[place]] for place in places}
        shares[busiest].remove(best)
        shares[idlest].add(best)
