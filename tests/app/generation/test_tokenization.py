"""Prompts to token ids: what is refused unread, and how much is in work at once."""

import asyncio
import json
import threading
import time
from collections.abc import Sequence
from copy import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from app.engine.engine import PromptLimit, PromptTooLong
from app.engine.scheduling.admission import Overloaded
from app.generation import tokenization
from app.generation.request import Chat
from app.generation.tokenization import (
    MAX_BYTES_IN_WORK,
    MAX_BYTES_WAITING,
    TokenizerPool,
    min_tokens,
)
from tests.support.tiny_directory import tiny_tokenizer
from tests.support.waiting import wait_until

TINY = tiny_tokenizer()
ANY_LENGTH = PromptLimit("tiny", 10**9, 1)


def changed(**parts: Any) -> PreTrainedTokenizerFast:
    backend = Tokenizer.from_str(TINY.backend_tokenizer.to_str())
    for name, part in parts.items():
        setattr(backend, name, part)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def with_byte_fallback(*, all_bytes: bool = True) -> PreTrainedTokenizerFast:
    texts = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256 if all_bytes else 200)), "▁", "a"]
    vocabulary = {text: number for number, text in enumerate([*texts, "▁a", "aa", "aaaa"])}
    merges = [("▁", "a"), ("a", "a"), ("aa", "aa")]
    model = models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def word_piece() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def without_letters() -> PreTrainedTokenizerFast:
    """It drops what it does not know."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.train_from_iterator(["aaa"], trainers.BpeTrainer(show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def without_bytes(unknown: Sequence[int]) -> PreTrainedTokenizerFast:
    """It drops these bytes."""
    parts = json.loads(TINY.backend_tokenizer.to_str())
    for byte in unknown:
        del parts["model"]["vocab"][bytes_to_unicode()[byte]]
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(parts)))


def with_stripping_token() -> PreTrainedTokenizerFast:
    tokenizer = changed()
    tokenizer.add_special_tokens({"pad_token": AddedToken("<pad>", rstrip=True)})
    return tokenizer


LOSSLESS = {
    "bytes": TINY,
    "composed": changed(normalizer=normalizers.NFC()),
    "byte fallback": with_byte_fallback(),
    "rare bytes": without_bytes([0x04, 0x1D, 0xC0, 0xF1, 0xFF]),
    "digits": changed(
        pre_tokenizer=pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.Split(Regex(r"\s+"), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    ),
}
LOSSY = {
    "unknown words": word_piece(),
    "unknown bytes": with_byte_fallback(all_bytes=False),
    "unknown letters": without_letters(),
    "unknown part of characters": without_bytes([0x81]),
    "stripped": changed(normalizer=normalizers.Strip()),
    "collapsed": changed(normalizer=normalizers.Replace(Regex(" +"), " ")),
    "shortened": changed(normalizer=normalizers.Replace("aa", "a")),
    "dropped": changed(
        pre_tokenizer=pre_tokenizers.Sequence(
            [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel()]
        )
    ),
    "swallowed": with_stripping_token(),
}
LETTERS = "aé \x04\x1d\U000400001\u0301\u1100\u1161\u11a8🦊<s>\n"


@pytest.mark.parametrize("tokenizer", LOSSLESS.values(), ids=LOSSLESS)
@settings(max_examples=60)
@given(text=st.text(st.one_of(st.sampled_from(LETTERS), st.characters(codec="utf-8"))))
def test_no_text_has_fewer_tokens_than_its_length_allows(
    tokenizer: PreTrainedTokenizerFast, text: str
) -> None:
    for repeated in (text, text * 20):
        assert len(tokenizer(repeated).input_ids) >= min_tokens(repeated, tokenizer)
    assert min_tokens(text + "a" * 10_000, tokenizer) > 50


@pytest.mark.parametrize("tokenizer", LOSSY.values(), ids=LOSSY)
def test_where_text_may_vanish_no_length_is_too_long(tokenizer: PreTrainedTokenizerFast) -> None:
    assert min_tokens("a" * 10_000, tokenizer) == 0


def encode(
    prompts: Sequence[Any],
    tokenizer: PreTrainedTokenizerFast = TINY,
    limit: PromptLimit = ANY_LENGTH,
) -> list[tuple[int, ...]]:
    return asyncio.run(TokenizerPool().encode(prompts, tokenizer, limit))


@pytest.mark.parametrize("tokenizer", [*LOSSLESS.values(), LOSSY["unknown words"]])
def test_token_ids_are_those_of_the_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = ["the dog é <s> 🦊", "a" * 40_000]
    expected = [tuple(tokenizer(text).input_ids) for text in texts]
    assert encode([*texts, [1, 2]], tokenizer) == [*expected, (1, 2)]


def test_a_chat_has_no_special_tokens_but_those_of_its_template() -> None:
    tokenizer = copy(TINY)
    tokenizer.chat_template = "<s>{% for m in messages %}{{ m['content'] }}{% endfor %}"
    chat = Chat([{"role": "user", "content": "the dog"}])
    expected = tokenizer("<s>the dog", add_special_tokens=False).input_ids
    assert encode([chat], tokenizer) == [tuple(expected)]


def test_other_threads_go_on_while_a_long_text_is_encoded() -> None:
    tokenizer = LOSSY["unknown words"]
    longest_s, is_done = 0.0, threading.Event()

    def watch() -> None:
        nonlocal longest_s
        last_s = time.perf_counter()
        while not is_done.wait(0.001):
            now_s = time.perf_counter()
            longest_s, last_s = max(longest_s, now_s - last_s), now_s

    watching = threading.Thread(target=watch)
    watching.start()
    began_s = time.perf_counter()
    encode(["a b c d " * 250_000], tokenizer)
    took_s = time.perf_counter() - began_s
    is_done.set()
    watching.join()
    assert longest_s < took_s / 3


def limit_of(max_len: int) -> PromptLimit:
    return PromptLimit("tiny@-2", max_len, 4)


def test_a_text_is_refused_by_its_length_exactly_where_no_tokens_could_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    longest = -(-10_000 // min_tokens("a" * 10_000, TINY))
    within = "a" * longest * 20_000
    prompts = [within, within + "a", Chat([{"role": "user", "content": within + "a"}])]
    with pytest.raises(PromptTooLong, match=r"the prompt has at least 20001 tokens, .* of tiny@-2"):
        encode(prompts[1:2], limit=limit_of(20_004))
    with pytest.raises(PromptTooLong, match="at least 20001"):
        encode(prompts[2:], limit=limit_of(20_004))
    with pytest.raises(PromptTooLong, match=f"the prompt has {len(within)} tokens"):
        encode(prompts[:1], limit=limit_of(20_004))

    def fail(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(tokenization, "_encode_all", fail)
    with pytest.raises(PromptTooLong):
        encode(["the dog", within + "a"], limit=limit_of(20_004))


class Gate:
    """Holds each encoding until it is opened, and counts what is in work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_open = threading.Event()
        self.num_bytes = self.max_bytes = self.num_done = 0
        self._lock = threading.Lock()
        self._encode_all = tokenization._encode_all
        monkeypatch.setattr(tokenization, "_encode_all", self._held)

    def _held(self, prompts: Any, tokenizer: Any, limit: Any) -> Any:
        num_bytes = sum(map(len, prompts))
        if num_bytes < 1000:
            return self._encode_all(prompts, tokenizer, limit)
        with self._lock:
            self.num_bytes += num_bytes
            self.max_bytes = max(self.max_bytes, self.num_bytes)
        self.is_open.wait()
        with self._lock:
            self.num_bytes -= num_bytes
            self.num_done += 1
        return [(1,) for _ in prompts]


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


async def until(gate: Gate, num_bytes: int) -> None:
    await asyncio.to_thread(wait_until, lambda: gate.num_bytes == num_bytes, "texts in work")


def test_few_bytes_are_in_work_at_once_and_short_texts_do_not_wait(gate: Gate) -> None:
    size = MAX_BYTES_IN_WORK * 2 // 5

    async def main() -> None:
        pool = TokenizerPool()
        sizes = [size, size, size, 2 * MAX_BYTES_IN_WORK, size, size]
        encodings = [
            asyncio.create_task(pool.encode(["a" * num], TINY, ANY_LENGTH)) for num in sizes
        ]
        await until(gate, 2 * size)
        assert await pool.encode(["the dog"], TINY, ANY_LENGTH) == [
            tuple(TINY("the dog").input_ids)
        ]
        gate.is_open.set()
        assert await asyncio.gather(*encodings) == [[(1,)]] * len(sizes)

    asyncio.run(main())
    assert gate.max_bytes == 2 * MAX_BYTES_IN_WORK  # one that is longer, alone


def test_the_text_of_a_client_that_has_gone_counts_until_its_thread_is_done(gate: Gate) -> None:
    async def main() -> None:
        pool = TokenizerPool()
        encodings = [
            asyncio.create_task(pool.encode(["a" * MAX_BYTES_IN_WORK], TINY, ANY_LENGTH))
            for _ in range(3)
        ]
        await until(gate, MAX_BYTES_IN_WORK)
        encodings[0].cancel()
        encodings[1].cancel()  # before its turn
        await asyncio.wait(encodings[:2])
        gate.is_open.set()
        assert await encodings[2] == [(1,)]

    asyncio.run(main())
    assert (gate.max_bytes, gate.num_done) == (MAX_BYTES_IN_WORK, 2)


def test_long_texts_are_refused_while_too_many_of_them_wait(gate: Gate) -> None:
    text = "a" * (MAX_BYTES_WAITING // 4)

    async def main() -> None:
        pool = TokenizerPool()
        encodings = [asyncio.create_task(pool.encode([text], TINY, ANY_LENGTH)) for _ in range(5)]
        await asyncio.to_thread(
            wait_until, lambda: pool._num_waiting == MAX_BYTES_WAITING, "four texts wait"
        )
        with pytest.raises(Overloaded, match="waiting for the tokenizer") as refused:
            await pool.encode([text], TINY, ANY_LENGTH)
        assert refused.value.reason == "texts_full"
        assert refused.value.retry_after_s > 1
        gate.is_open.set()
        await asyncio.gather(*encodings)

    asyncio.run(main())
