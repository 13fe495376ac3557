import pytest
import torch

from app.engine.kv_cache import AttentionMetadata, SlotCache

HEADS, DIM = 2, 4


def write(
    cache: SlotCache,
    first_slot: int,
    positions: list[list[int]],
    value: float,
    shape: tuple[int, int],
) -> tuple[torch.Tensor, torch.Tensor]:
    places = torch.tensor(positions)
    rows, width = places.shape
    read = slice(first_slot, first_slot + rows)
    slots = torch.arange(read.start, read.stop).repeat_interleave(width)
    cache.open(AttentionMetadata(slots, places.flatten(), shape, read, int(places.max()) + 1))
    keys = torch.full((rows, HEADS, width, DIM), value)
    return cache.update(keys, -keys, 0)


def test_what_is_written_is_read_at_its_slot_and_position() -> None:
    cache = SlotCache()
    write(cache, 0, [[0, 1], [0, 1]], 1.0, (2, 64))
    keys, values = write(cache, 0, [[2], [1]], 2.0, (2, 64))
    assert keys[:, 0, :, 0].tolist() == [[1, 1, 2], [1, 2, 0]]
    assert torch.equal(values, -keys)


def test_packed_prompts_go_to_their_slots_and_read_themselves() -> None:
    cache = SlotCache()
    slots, positions = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 1, 0, 1, 2])
    cache.open(AttentionMetadata(slots, positions, (2, 64), rows=None))
    tokens = torch.arange(1.0, 6.0)[:, None, None].expand(5, HEADS, DIM)
    keys, values = cache.write(tokens, -tokens, 0)
    assert keys.shape == (1, HEADS, 5, DIM)
    assert keys[0, 1, :, 0].tolist() == [1, 2, 3, 4, 5]
    assert torch.equal(values, -keys)
    keys, _ = write(cache, 0, [[3], [3]], 9.0, (2, 64))
    assert keys[:, 0, :, 0].tolist() == [[1, 2, 0, 9], [3, 4, 5, 9]]


def test_reading_is_a_view_into_the_cache() -> None:
    cache = SlotCache()
    first, _ = write(cache, 0, [[0]], 1.0, (1, 64))
    write(cache, 0, [[0]], 7.0, (1, 64))
    assert first.unique().tolist() == [7.0]


def test_growing_keeps_what_is_there_and_zeroes_the_rest() -> None:
    cache = SlotCache()
    write(cache, 0, [[0, 1]], 1.0, (1, 64))
    keys, _ = write(cache, 1, [[100]], 2.0, (2, 128))
    assert keys[0, 0, :, 0].nonzero().flatten().tolist() == [100]
    keys, _ = write(cache, 0, [[2]], 3.0, (2, 128))
    assert keys[0, 0, :, 0].tolist() == [1, 1, 3]
    cache.check_integrity(2, 101)


def test_memory_is_given_back_when_little_of_it_is_needed() -> None:
    cache = SlotCache()
    write(cache, 0, [[0]] * 16, 1.0, (16, 128))
    full = cache.num_bytes
    keys, _ = write(cache, 0, [[1]] * 2, 2.0, (2, 64))
    assert cache.num_bytes == full // 16
    assert keys[:, 0, :, 0].tolist() == [[1, 2], [1, 2]]


def test_freeing_a_slot_moves_the_last_one_there_and_clears_it() -> None:
    cache = SlotCache()
    for slot in range(3):
        write(cache, slot, [[0]], float(slot + 1), (4, 64))
    cache.free(0, last=2)
    cache.check_integrity(2, 1)
    keys, _ = write(cache, 0, [[1], [1]], 9.0, (4, 64))
    assert keys[:, 0, 0, 0].tolist() == [3, 2]


def test_a_slot_that_a_failed_forward_never_made_can_be_freed() -> None:
    cache = SlotCache()
    write(cache, 0, [[0]], 1.0, (1, 64))
    cache.free(1, last=1)
    cache.check_integrity(1, 1)


@pytest.mark.parametrize(("num_slots", "num_tokens"), [(0, 1), (5, 1), (2, 65)])
def test_integrity_notices_leftovers_and_missing_room(num_slots: int, num_tokens: int) -> None:
    cache = SlotCache()
    write(cache, 0, [[0, 1], [0, 1]], 1.0, (4, 64))
    write(cache, 2, [[0], [0]], 1.0, (4, 64))  # as the padding of a replayed decode
    cache.check_integrity(2, 64)
    with pytest.raises(AssertionError):
        cache.check_integrity(num_slots, num_tokens)


def test_integrity_notices_what_would_spread() -> None:
    cache = SlotCache()
    write(cache, 0, [[0]], float("nan"), (1, 64))
    with pytest.raises(AssertionError):
        cache.check_integrity(1, 1)
