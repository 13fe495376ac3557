"""The order of training windows depends on a seed and a number alone."""

import torch

from pruning.healing.text import Order, sample_of

PROSE = torch.arange(5).unsqueeze(1).expand(5, 3)
CODE = 100 + torch.arange(2).unsqueeze(1).expand(2, 3)


def order(seed: int = 0) -> Order:
    return Order({"prose": PROSE, "code": CODE}, seed)


def firsts(windows: torch.Tensor) -> list[int]:
    return [int(window[0]) for window in windows]


def test_domains_take_turns_and_every_pass_has_each_window_once() -> None:
    found = firsts(order().windows(0, 20))
    assert all(number < 100 for number in found[::2])
    assert all(number >= 100 for number in found[1::2])
    prose, code = found[::2], found[1::2]
    assert sorted(prose[:5]) == sorted(prose[5:]) == [0, 1, 2, 3, 4]
    assert [sorted(code[at : at + 2]) for at in range(0, 10, 2)] == [[100, 101]] * 5


def test_a_later_start_gives_the_same_windows() -> None:
    whole = firsts(order().windows(0, 40))
    assert firsts(order().windows(17, 9)) == whole[17:26]
    again = order()
    again.windows(30, 5)
    assert firsts(again.windows(0, 40)) == whole


def test_another_seed_and_another_pass_give_another_order() -> None:
    many = {"prose": torch.arange(50).unsqueeze(1)}
    found = firsts(Order(many, 0).windows(0, 100))
    assert found[:50] != found[50:]
    assert firsts(Order(many, 1).windows(0, 100)) != found


def test_a_sample_of_the_held_out_text_represents_all_of_it() -> None:
    held_out = {"prose": PROSE, "code": CODE}
    assert sample_of(held_out, 7 * 3) is held_out
    found = {domain: firsts(windows) for domain, windows in sample_of(held_out, 13).items()}
    assert found == {"prose": [0, 2], "code": [100]}
    assert [len(windows) for windows in sample_of(held_out, 1).values()] == [1, 1]
