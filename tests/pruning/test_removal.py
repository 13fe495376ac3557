"""The blocks that a removal order keeps."""

from pruning.removal import kept


def test_blocks_that_are_not_removed_are_kept_in_ascending_order() -> None:
    assert kept(5, [3, 1]) == (0, 2, 4)
    assert kept(3, ()) == (0, 1, 2)
    assert kept(2, iter([1])) == (0,)
