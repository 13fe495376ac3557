"""Fair shares between tenants: the one that was served the fewest tokens comes next.

These are the virtual token counters of "Fairness in Serving Large Language Models" (Sheng et al.,
2024).
"""

from collections.abc import Iterable
from operator import itemgetter
from typing import TypeVar

_Item = TypeVar("_Item")
Tenant = str | None  # None: of all requests without one


class FairShares:
    """Tokens that were read and made for each tenant while it had sequences.

    A tenant that comes begins with the lowest count of those that are there. So it comes next, and
    has saved nothing up while it was away.
    """

    def __init__(self) -> None:
        self._num_served: dict[Tenant, int] = {}

    def num_served(self, tenant: Tenant) -> int:
        """The count of a tenant, which comes if it was not there."""
        if tenant not in self._num_served:
            self._num_served[tenant] = min(self._num_served.values(), default=0)
        return self._num_served[tenant]

    def serve(self, tenant: Tenant, num_tokens: int) -> None:
        """Count tokens that a forward reads or makes."""
        self._num_served[tenant] = self.num_served(tenant) + num_tokens

    def in_turn(self, items: Iterable[tuple[Tenant, int, _Item]]) -> list[_Item]:
        """Each time the next item of the tenant that was served least by then.

        An item has its tenant and the tokens that it takes. Those of one tenant keep their order.
        """
        served: dict[Tenant, int] = {}
        turns: list[tuple[int, _Item]] = []
        for tenant, num_tokens, item in items:
            before = served.setdefault(tenant, self.num_served(tenant))
            turns.append((before, item))
            served[tenant] = before + num_tokens
        return [item for _, item in sorted(turns, key=itemgetter(0))]

    def keep_only(self, tenants: Iterable[Tenant]) -> None:
        """Forget the tenants that are not among these."""
        there = set(tenants)
        self._num_served = {
            tenant: num for tenant, num in self._num_served.items() if tenant in there
        }
