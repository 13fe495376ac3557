"""What a model thinks of a text, read in chunks, against one whole forward."""

import pytest
import torch

from app.engine.sampling.logprobs import score
from tests.support.engine_requests import prompt, variant
from tests.support.tiny import SERVED


def scored(family: str, prompt_len: int, answer_len: int, chunk: int) -> tuple[list[float], int]:
    """With the number of pieces that it took."""
    pieces, number = score(variant(family=family), *texts(prompt_len, answer_len), chunk), 0
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            found: list[float] = end.value
            return found, number
        number += 1


def texts(prompt_len: int, answer_len: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    ids = prompt(prompt_len + answer_len, seed=prompt_len)
    return ids[:prompt_len], ids[prompt_len:]


@torch.inference_mode()
def oracle(family: str, prompt_len: int, answer_len: int) -> list[float]:
    ids = torch.tensor([sum(texts(prompt_len, answer_len), ())])
    logprobs = variant(family=family).model(ids).logits[0].float().log_softmax(dim=-1)
    places = range(prompt_len, prompt_len + answer_len)
    return [float(logprobs[place - 1, ids[0, place]]) for place in places]


@pytest.mark.parametrize("family", SERVED)
def test_every_family_is_read_in_chunks_as_in_one(family: str) -> None:
    expected = oracle(family, 9, 14)
    for chunk in (1, 4, 9, 50):
        found, _ = scored(family, 9, 14, chunk)
        assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("prompt_len", "answer_len"), [(1, 1), (1, 7), (8, 1), (8, 8)])
def test_every_token_of_the_answer_is_scored_and_no_other(prompt_len: int, answer_len: int) -> None:
    found, num_pieces = scored("llama", prompt_len, answer_len, chunk=4)
    assert found == pytest.approx(oracle("llama", prompt_len, answer_len), abs=1e-4)
    assert num_pieces == -(-(prompt_len + answer_len - 1) // 4)
