"""The windows that a healing is trained on, in an order that depends on numbers alone."""

import random
from collections.abc import Iterator, Mapping

import torch


def sample_of(held_out: Mapping[str, torch.Tensor], num_tokens: int) -> Mapping[str, torch.Tensor]:
    """At most so many tokens of windows ``[num_windows, seqlen]``, but a window of each domain: the
    same share of all domains, spread evenly over each."""
    total = sum(map(len, held_out.values()))
    most = num_tokens // max(windows.shape[1] for windows in held_out.values())
    if total <= most:
        return held_out
    sample = {}
    for domain, windows in held_out.items():
        number, wanted = len(windows), max(1, len(windows) * most // total)
        sample[domain] = windows[[at * number // wanted for at in range(wanted)]]
    return sample


class Order:
    """An endless order of the training windows.

    Domains take turns, whatever their sizes. Each domain is shuffled anew in every pass over it. So
    the next window depends on the seed and on how many came before, and on nothing else.
    """

    def __init__(self, train: Mapping[str, torch.Tensor], seed: int) -> None:
        self._domains = list(train.values())
        self._seed = seed
        self._shuffled: dict[int, tuple[int, list[int]]] = {}  # of each domain: pass and order

    def windows(self, start: int, number: int) -> torch.Tensor:
        """The windows ``[number, seqlen]`` from the number ``start`` on."""
        return torch.stack(list(self._windows(start, number)))

    def _windows(self, start: int, number: int) -> Iterator[torch.Tensor]:
        for at in range(start, start + number):
            within, which = divmod(at, len(self._domains))
            domain = self._domains[which]
            nth_pass, place = divmod(within, len(domain))
            yield domain[self._order(which, nth_pass)[place]]

    def _order(self, which: int, nth_pass: int) -> list[int]:
        known = self._shuffled.get(which)
        if known is None or known[0] != nth_pass:
            places = range(len(self._domains[which]))
            rng = random.Random(f"{self._seed} {which} {nth_pass}")  # noqa: S311 - not a secret
            order = rng.sample(places, len(places))
            known = self._shuffled[which] = (nth_pass, order)
        return known[1]
