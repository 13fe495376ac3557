from collections.abc import Callable, Sequence
from copy import copy
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from app.engine.sampling.text import (
    Detokenizer,
    MessagesRefused,
    NoChatTemplate,
    StopStrings,
    TextStream,
    render_chat,
    token_bytes,
    token_text,
)

CORPUS = ["the cat sat on the mat", "naïve café, 東京 и 🦊🦊", "  two  spaces\nand a line"] * 4
EOS = "<|end|>"


@cache
def byte_level() -> PreTrainedTokenizerFast:
    """Byte-level BPE, as of GPT-2 and Llama 3: tokens cut characters anywhere."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS)


@cache
def sentencepiece_like() -> PreTrainedTokenizerFast:
    """As of Llama 2: a mark for spaces, stripped in front, and single bytes for the unknown."""
    vocab = {EOS: 0, "<unk>": 1, **{f"<0x{byte:02X}>": byte + 2 for byte in range(256)}}
    for character in ("▁", *"abcdefghijklmnopqrstuvwxyz,"):
        vocab[character] = len(vocab)
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "a"), ("c", "a"), ("▁", "ca")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    model = models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([EOS])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS)


def whole(tokenizer: PreTrainedTokenizerFast, token_ids: Sequence[int]) -> str:
    text = tokenizer.decode(
        list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    assert isinstance(text, str)
    return text


def pieces(tokenizer: PreTrainedTokenizerFast, token_ids: Sequence[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.push(token_id) for token_id in token_ids), detokenizer.flush()]


@settings(max_examples=200)
@given(st.lists(st.integers(0, 299), max_size=30))
def test_pieces_of_any_byte_level_tokens_are_the_text_of_all(token_ids: list[int]) -> None:
    token_ids = [token_id for token_id in token_ids if token_id < len(byte_level())]
    assert "".join(pieces(byte_level(), token_ids)) == whole(byte_level(), token_ids)


@settings(max_examples=200)
@given(st.text(max_size=40))
@example("naïve 🦊 東京")
@example("a  b ")
def test_no_piece_of_a_text_holds_half_a_character(text: str) -> None:
    token_ids = byte_level()(text)["input_ids"]
    parts = pieces(byte_level(), token_ids)
    assert "".join(parts) == text
    assert "\ufffd" in text or all("\ufffd" not in part for part in parts)


@settings(max_examples=200)
@given(st.text("the cat,🦊é ", max_size=40))
@example("the cat 🦊 a")
def test_pieces_of_sentencepiece_tokens_keep_their_spaces(text: str) -> None:
    token_ids = sentencepiece_like()(text)["input_ids"]
    parts = pieces(sentencepiece_like(), token_ids)
    assert "".join(parts) == whole(sentencepiece_like(), token_ids) == text
    assert all("\ufffd" not in part for part in parts)


def test_a_character_comes_with_its_last_byte() -> None:
    [*first, last] = byte_level()("€")["input_ids"]
    detokenizer = Detokenizer(byte_level())
    assert [detokenizer.push(token_id) for token_id in first] == [""] * len(first)
    assert detokenizer.push(last) == "€"


def test_half_a_character_at_the_end_is_what_decoding_makes_of_it() -> None:
    token_ids = byte_level()("a€")["input_ids"][:-1]
    assert pieces(byte_level(), token_ids)[-1] == whole(byte_level(), token_ids)[1:] == "\ufffd"


def test_special_tokens_are_no_text() -> None:
    tokenizer = byte_level()
    eos = tokenizer.convert_tokens_to_ids(EOS)
    token_ids = [eos, *tokenizer("the")["input_ids"], eos, *tokenizer(" cat")["input_ids"]]
    assert "".join(pieces(tokenizer, token_ids)) == "the cat"


def test_bytes_that_never_become_a_character_are_not_held_for_ever() -> None:
    tokenizer = byte_level()
    half = tokenizer("€")["input_ids"][0]
    assert any(pieces(tokenizer, [half] * 100)[:40])


def cut(text: str, stop: Sequence[str], sizes: Sequence[int]) -> tuple[str, str | None]:
    """The text as it comes out when it goes in by pieces of these sizes."""
    stop_strings, out, start = StopStrings(stop), "", 0
    for size in (*sizes, len(text)):
        out += stop_strings.push(text[start : start + size])
        start += size
    return out + stop_strings.flush(), stop_strings.matched


@pytest.mark.parametrize(
    ("text", "stop", "expected", "matched"),
    [
        ("one two three", ["two"], "one ", "two"),
        ("one two three", ["four"], "one two three", None),
        ("one two three", [], "one two three", None),
        ("one two three", [""], "one two three", None),
        ("one two three", ["three", "two"], "one ", "two"),
        ("aab", ["ab"], "a", "ab"),
        ("abcd", ["abcd", "bc"], "a", "bc"),  # complete first
        ("xabc", ["c", "abc"], "x", "abc"),  # complete together: the longer one
        ("stop", ["stop"], "", "stop"),
    ],
)
def test_text_ends_in_front_of_the_first_stop_string(
    text: str, stop: list[str], expected: str, matched: str | None
) -> None:
    assert cut(text, stop, []) == (expected, matched)
    assert cut(text, stop, [1] * len(text)) == (expected, matched)


@settings(max_examples=300)
@given(
    text=st.text("ab\n", max_size=12),
    stop=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
    sizes=st.lists(st.integers(0, 4), max_size=12),
)
def test_how_the_text_arrives_makes_no_difference(
    text: str, stop: list[str], sizes: list[int]
) -> None:
    assert cut(text, stop, sizes) == cut(text, stop, [])


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    stop_strings = StopStrings(["\n\nUser:"])
    assert stop_strings.push("Hello\n") == "Hello"
    assert stop_strings.push("\n") == ""
    assert stop_strings.push("world") == "\n\nworld"
    assert stop_strings.flush() == ""


def test_a_stop_string_that_spans_tokens_ends_the_stream() -> None:
    stream = TextStream(byte_level(), stop=["at on"])
    out = ""
    for token_id in byte_level()("the cat sat on the mat")["input_ids"]:
        out += stream.push(token_id)
    assert stream.is_stopped
    assert out + stream.flush() == "the cat s"


def test_a_stream_without_stop_strings_gives_everything() -> None:
    stream = TextStream(byte_level())
    text = "naïve 🦊"
    out = "".join(stream.push(token_id) for token_id in byte_level()(text)["input_ids"])
    assert out + stream.flush() == text
    assert not stream.is_stopped


@pytest.mark.parametrize("make", [byte_level, sentencepiece_like])
def test_tokens_one_by_one_have_the_bytes_of_their_text(
    make: Callable[[], PreTrainedTokenizerFast],
) -> None:
    tokenizer = make()
    for text in ("the cat, a cat", "é 🦊 €", "naïve"):
        raw = [token_bytes(tokenizer, token_id) for token_id in tokenizer(text)["input_ids"]]
        assert b"".join(part or b"?" for part in raw).strip() == text.encode()


def test_a_token_keeps_its_space_and_a_special_one_its_name() -> None:
    for tokenizer in (byte_level(), sentencepiece_like()):
        token_id = tokenizer("a the")["input_ids"][-1]
        assert token_text(tokenizer, token_id) == " the"
        assert token_text(tokenizer, tokenizer(EOS)["input_ids"][-1]) == EOS


def test_the_length_of_the_text_so_far_is_told_whatever_was_cut_off() -> None:
    stream = TextStream(byte_level(), stop=["cat"])
    text = "the cat 🦊"
    for token_id in byte_level()(text)["input_ids"]:
        stream.push(token_id)
    assert stream.num_characters == len(text)


MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "the cat"}]


def with_template(template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = copy(byte_level())
    tokenizer.chat_template = template
    return tokenizer


def test_messages_become_a_prompt_as_the_template_has_it() -> None:
    tokenizer = with_template(
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    expected = f"[system]be brief{EOS}[user]the cat{EOS}[assistant]"
    assert render_chat(tokenizer, MESSAGES) == expected


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no system') }}", "{{ 1 + messages }}", "{{ nothing.at.all }}"]
)
def test_what_the_template_cannot_render_is_refused_with_its_reason(template: str) -> None:
    with pytest.raises(MessagesRefused, match="the chat template rejected"):
        render_chat(with_template(template), MESSAGES)


def test_without_a_template_there_is_no_chat() -> None:
    with pytest.raises(NoChatTemplate, match="send a prompt"):
        render_chat(with_template(None), MESSAGES)
