"""Bookkeeping of pages: which are free, in use, shared, or kept for later requests.

A page has the keys and values of ``PAGE_TOKENS`` tokens in all blocks of a variant: a unit of the
pool for each block. So a variant with fewer blocks takes fewer units. Works without torch.
"""

from collections import OrderedDict
from dataclasses import dataclass, field

PAGE_TOKENS = 16


def pages_of(num_tokens: int) -> int:
    """The number of pages that so many tokens need."""
    return -(-num_tokens // PAGE_TOKENS)


class PageAccountBroken(RuntimeError):
    """What the pool has noted about its pages contradicts itself, so it must be reset."""


@dataclass(eq=False, slots=True)
class Page:
    """A page that is in use or kept. Once it has a key, it is full and never written again."""

    units: tuple[int, ...]  # one for each block
    num_users: int = 1
    key: bytes | None = None  # digest of its tokens and all before them; None: not to be reused


@dataclass(eq=False)
class PagePool:
    """Units of one shape, numbered from 1: padding reads and writes unit 0.

    Full pages with a key are kept after their last user, until their units are needed. The one that
    was used least recently goes first. A sequence leaves its last page first, so a page goes after
    those that continue it. Methods that take or leave pages raise ``PageAccountBroken``.
    """

    num_units: int
    num_touched: int = 0  # units that were ever in use: 1 to this number
    is_broken: bool = False  # once ``PageAccountBroken`` was raised, until it is reset
    _free: list[int] = field(default_factory=list)  # used before, the last one is taken first
    _by_key: dict[bytes, Page] = field(default_factory=dict)
    _kept: OrderedDict[bytes, Page] = field(default_factory=OrderedDict)  # without users
    _num_kept_units: int = 0

    @property
    def num_available(self) -> int:
        """Units that are free, or would be without kept pages."""
        return self.num_units - self.num_touched + len(self._free) + self._num_kept_units

    @property
    def num_used(self) -> int:
        """Units of pages with users."""
        return self.num_units - self.num_available

    def allocate(self, num_units: int) -> Page | None:
        """A new page; None if too many units are in use."""
        if num_units > self.num_available:
            return None
        while num_units > self.num_units - self.num_touched + len(self._free):
            self._evict()
        num_again = min(num_units, len(self._free))
        again = self._free[len(self._free) - num_again :]
        del self._free[len(self._free) - num_again :]
        first = self.num_touched + 1
        self.num_touched += num_units - num_again
        return Page((*again, *range(first, self.num_touched + 1)))

    def find(self, key: bytes) -> Page | None:
        """The page of a key, which gets a further user."""
        page = self._by_key.get(key)
        if page is not None:
            if not page.num_users:
                if self._kept.pop(key, None) is None:
                    raise self._broken("a page without users is not kept")
                self._num_kept_units -= len(page.units)
            page.num_users += 1
        return page

    def has(self, key: bytes) -> bool:
        """Whether there is a page of this key."""
        return key in self._by_key

    def is_kept(self, key: bytes) -> bool:
        """Whether the page of this key is there and has no user."""
        return key in self._kept

    def publish(self, page: Page, key: bytes) -> None:
        """Let others find a full page, unless there is one of the same key."""
        if page.key is None and key not in self._by_key:
            page.key = key
            self._by_key[key] = page

    def release(self, page: Page) -> None:
        """Count one user less. A page without a user is kept if it has a key."""
        if page.num_users < 1:
            raise self._broken("a page is left by more sequences than have it")
        page.num_users -= 1
        if page.num_users:
            return
        if page.key is None:
            self._free += reversed(page.units)
        else:
            self._kept[page.key] = page
            self._num_kept_units += len(page.units)

    def forget(self, page: Page) -> None:
        """Let nothing find a page any more."""
        if page.key is not None:
            self._by_key.pop(page.key, None)
            page.key = None

    def reset(self) -> None:
        """Forget all pages. No sequence may have one."""
        self._free = [*range(self.num_touched, 0, -1)]
        self._by_key.clear()
        self._kept.clear()
        self._num_kept_units, self.is_broken = 0, False

    def _broken(self, reason: str) -> PageAccountBroken:
        self.is_broken = True
        return PageAccountBroken(reason)

    def _evict(self) -> None:
        if not self._kept:
            raise self._broken("units are counted as free that no page has left")
        key, page = self._kept.popitem(last=False)
        self._by_key.pop(key, None)
        page.key = None
        self._num_kept_units -= len(page.units)
        self._free += reversed(page.units)
