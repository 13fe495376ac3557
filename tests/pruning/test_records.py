"""Records that somebody else has written."""

from dataclasses import dataclass
from traceback import format_exception

import pytest

from pruning.records import InvalidRecord, read_record


@dataclass(frozen=True)
class Point:
    x: int


def test_the_name_of_an_unknown_field_can_be_logged() -> None:
    """Half of a character cannot be written as UTF-8."""
    with pytest.raises(InvalidRecord, match=r"unexpected .*\\ud800") as refused:
        read_record(Point, {"x": 1, "\ud800": 2})
    "".join(format_exception(refused.value)).encode()
