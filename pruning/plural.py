"""Counts of things in messages: one window, two windows."""


def counted(number: int, one: str, many: str | None = None) -> str:
    """As `1 window` and `2 windows`. ``many`` is what no `s` makes of ``one``."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"
