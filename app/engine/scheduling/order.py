"""The order in which sequences are read, by what they have still to read."""

from itertools import takewhile

from app.engine.cache.pages import PAGE_TOKENS
from app.engine.scheduling.sequence import Sequence

_MAX_PASSED = 16  # prefills without a prompt, after which it is read before shorter ones


def arrival(seq: Sequence) -> int:
    return seq.serial


def is_due(seq: Sequence) -> bool:
    """Whether it was passed over for long, or was preempted."""
    return seq.num_passed >= _MAX_PASSED or seq.num_preemptions > 0


def overlap(seq: Sequence, num_cached: int, read: set[bytes]) -> int:
    """The next tokens behind ``num_cached`` which this batch reads for another sequence."""
    if not (read and seq.pages.can_find):
        return 0
    keys = seq.pages.keys(seq.tokens, len(seq.tokens) // PAGE_TOKENS)
    return PAGE_TOKENS * sum(
        1 for _ in takewhile(read.__contains__, keys[num_cached // PAGE_TOKENS :])
    )


def num_rest(seq: Sequence) -> int:
    """The tokens that it has to read."""
    return seq.num_uncached - seq.pages.count_found(seq.tokens, seq.num_cached)


def urgency(rest_of: tuple[int, Sequence]) -> tuple[bool, int, int]:
    """Prompts that were passed over for long come first, then those with the least to read."""
    rest, seq = rest_of
    return (False, 0, seq.serial) if is_due(seq) else (True, rest, seq.serial)
