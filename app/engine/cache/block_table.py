"""The pages of one sequence, in the order of its tokens."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import blake2b
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from app.engine.cache.pages import PAGE_TOKENS, Page, PageAccountBroken, PagePool, pages_of

logger = logging.getLogger(__name__)

_DIGEST_BYTES = 16


def next_key(key: bytes, token_ids: Sequence[int]) -> bytes:
    """The key of a full page with these tokens, behind the pages up to ``key``."""
    numbers = np.array(token_ids, np.int64).tobytes()
    return blake2b(numbers, digest_size=_DIGEST_BYTES, key=key).digest()


class BlockTable:
    """Where the tokens of a sequence are.

    ``root`` is the key in front of its first page, with all that keys and values depend on beside
    the tokens. Without it, its pages are not kept for others. With ``can_find``, it takes pages
    of others. Where the account of the pool contradicts its pages, it ``is_broken``.
    """

    def __init__(
        self,
        pool: PagePool,
        num_blocks: int,
        root: bytes | None = None,
        *,
        can_find: bool = True,
    ) -> None:
        self.can_find = can_find and root is not None
        self.pool = pool
        self.num_blocks = num_blocks
        self.is_broken = False
        self.pages: list[Page] = []
        self._units = np.zeros((0, num_blocks), np.int64)
        self._root = root
        self._keys: list[bytes] = []  # of the first full pages

    @property
    def units(self) -> NDArray[np.int64]:
        """``[pages, blocks]``."""
        return self._units[: len(self.pages)]

    @property
    def num_tokens(self) -> int:
        """The tokens that its pages have room for."""
        return len(self.pages) * PAGE_TOKENS

    def num_missing(self, num_tokens: int) -> int:
        """The units that so many tokens need beyond those of the pages it has."""
        return max(0, pages_of(num_tokens) - len(self.pages)) * self.num_blocks

    def grow(self, num_tokens: int) -> bool:
        """Make room for so many tokens. Returns whether there was; pages that it got it keeps."""
        while len(self.pages) * PAGE_TOKENS < num_tokens:
            page = self._changed(partial(self.pool.allocate, self.num_blocks))
            if page is None:
                return False
            self._append(page)
        return True

    def keys(self, tokens: Sequence[int], num_pages: int) -> list[bytes]:
        """The keys of the first pages, which these tokens fill."""
        if self._root is None:
            return []
        for index in range(len(self._keys), num_pages):
            before = self._keys[-1] if self._keys else self._root
            start = index * PAGE_TOKENS
            self._keys.append(next_key(before, tokens[start : start + PAGE_TOKENS]))
        return self._keys[:num_pages]

    def count_found(self, tokens: Sequence[int], num_cached: int) -> int:
        """The tokens behind the first ``num_cached`` whose pages are there, but not the last."""
        return PAGE_TOKENS * len(self._found(tokens, num_cached))

    def reuse(self, tokens: Sequence[int], num_cached: int) -> int:
        """Take the pages of these tokens. Returns their number."""
        before = len(self.pages)
        for key in self._found(tokens, num_cached):
            page = self._changed(partial(self.pool.find, key))
            if page is None:
                break
            self._append(page)
        return PAGE_TOKENS * (len(self.pages) - before)

    def num_needed(self, tokens: Sequence[int]) -> int:
        """The units that these tokens need of those that are available. It must have no page."""
        keys = self._found(tokens, 0)
        num_in_use = sum(not self.pool.is_kept(key) for key in keys)
        return (pages_of(len(tokens)) - num_in_use) * self.num_blocks

    def _found(self, tokens: Sequence[int], num_cached: int) -> list[bytes]:
        """Keys of the next pages that are there. None where the next token is within a page."""
        if not self.can_find or len(self.pages) * PAGE_TOKENS != num_cached:
            return []
        keys = self.keys(tokens, (len(tokens) - 1) // PAGE_TOKENS)[len(self.pages) :]
        return [*takewhile(self.pool.has, keys)]

    def publish(self, tokens: Sequence[int], first: int, last: int) -> None:
        """Let others find the pages that were filled by the tokens ``first`` to ``last``."""
        if self._root is None or first // PAGE_TOKENS == last // PAGE_TOKENS:
            return
        keys = self.keys(tokens, last // PAGE_TOKENS)
        for index in range(first // PAGE_TOKENS, last // PAGE_TOKENS):
            self.pool.publish(self.pages[index], keys[index])

    def release(self) -> None:
        """Leave all pages, the last one first."""
        for page in reversed(self.pages):
            self._changed(partial(self.pool.release, page))
        self.pages.clear()

    def forget(self) -> list[int]:
        """Let nothing find its pages any more. Returns the units that no other sequence has."""
        for page in self.pages:
            self.pool.forget(page)
        return [unit for page in self.pages if page.num_users == 1 for unit in page.units]

    def _changed(self, change: Callable[[], Page | None]) -> Page | None:
        """The page that a change of the account gives; None if the account is broken."""
        try:
            return change()
        except PageAccountBroken:
            logger.exception("the account of the pages of keys and values is broken")
            self.is_broken = True
            return None

    def _append(self, page: Page) -> None:
        at = len(self.pages)
        if at == len(self._units):
            grown = np.zeros((max(4, 2 * at), self.num_blocks), np.int64)
            grown[:at] = self._units[:at]
            self._units = grown
        self._units[at] = page.units
        self.pages.append(page)
