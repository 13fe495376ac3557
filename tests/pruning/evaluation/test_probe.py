"""The probe: questions that are right, answers that a model really gives, and what was lost."""

import ast
import json
from collections import Counter
from dataclasses import asdict, replace
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from pruning.evaluation.probe import Item, digest, probe_items
from pruning.evaluation.probe_run import answer
from pruning.evaluation.results import (
    ItemResult,
    Kind,
    ProbeComparison,
    ProbeScore,
    compare,
    summary,
)
from pruning.models.blocks import view
from pruning.models.forward import InMemoryForward, StreamedForward
from pruning.models.store import LoadedModel
from pruning.models.streaming import StreamedModel
from pruning.records import read_record
from tests.support.tiny import generated

ITEMS = probe_items()


def asked(item: Item) -> str:
    """The question itself, behind the solved ones."""
    lines = item.prompt.split("\n")
    return "\n".join(lines[len(lines) * 3 // 4 :])


def value(text: str) -> Any:
    """Of a Python expression without names but those of four functions."""
    names = {"max": max, "min": min, "len": len, "sum": sum}
    return eval(text, {"__builtins__": {}}, names)  # noqa: S307 - our own text


def test_there_are_as_many_questions_of_each_kind_and_no_two_alike() -> None:
    assert Counter(item.kind for item in ITEMS) == dict.fromkeys(Kind, 40)
    assert len({item.prompt for item in ITEMS}) == len(ITEMS)
    for item in ITEMS:
        answers = [item.answer, *item.wrong]
        assert len(set(answers)) == 4, item
        assert all(text.startswith(" ") and text.endswith("\n") for text in answers)
        assert item.prompt == item.prompt.rstrip()


def test_they_are_the_same_every_time_and_others_for_another_seed() -> None:
    """Scores in manifests are of these questions: a change of them makes other scores."""
    assert digest(probe_items()) == digest(ITEMS)
    assert digest(ITEMS) == "6f512330fecc409110db1a4315da6117244202434cf91e8ed85a556c041fade7"
    assert digest(probe_items(seed=1)) != digest(ITEMS)


@pytest.mark.parametrize(
    "item", [item for item in ITEMS if asked(item).endswith("=") and "#" not in item.prompt]
)
def test_what_is_computed_is_right(item: Item) -> None:
    question = asked(item).removesuffix("=").removesuffix("=")
    right = value(question)
    assert ast.literal_eval(item.answer.strip()) == right
    assert all(ast.literal_eval(text.strip()) != right for text in item.wrong)
    for line in item.prompt.split("\n")[:-1]:
        assert value(line.replace(" = ", " == ")) is True


def test_json_answers_are_json_and_say_what_was_asked() -> None:
    for item in (item for item in ITEMS if item.kind is Kind.JSON):
        fields = json.loads(item.answer)
        told = dict(part.split("=") for part in asked(item).removesuffix(" ->").split(", "))
        assert {key: str(given) for key, given in fields.items()} == told
        readable = [text for text in item.wrong if _is_json(text)]
        assert all(json.loads(text) != fields for text in readable)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def test_copies_are_copies() -> None:
    said = [item for item in ITEMS if item.prompt.endswith("Said:")]
    assert len(said) > 20
    for item in said:
        assert asked(item) == f"Say:{item.answer}Said:"


@torch.inference_mode()
def by_hand(loaded: LoadedModel, item: Item) -> ItemResult:
    """Each answer alone, without padding, and what ``generate`` writes."""
    nats = []
    prompt = loaded.tokenizer(item.prompt).input_ids
    for text in (item.answer, *item.wrong):
        ids = loaded.tokenizer(item.prompt + text).input_ids
        assert ids[: len(prompt)] == prompt
        logits = loaded.model(torch.tensor([ids])).logits[0].float()
        targets = torch.tensor(ids[len(prompt) :])
        nats.append(F.cross_entropy(logits[len(prompt) - 1 : -1], targets, reduction="sum").item())
    right = loaded.tokenizer(item.prompt + item.answer).input_ids[len(prompt) :]
    written = generated(loaded.model, prompt, len(right))
    return ItemResult(item.kind, nats[0] < min(nats[1:]), written == right)


def short_items(loaded: LoadedModel) -> list[Item]:
    """Questions with answers of the tiny model's own, so that it is right in some of them."""
    items = []
    for number, word in enumerate(["fox", "dog", "lazy", "over", "brown", "the", "on", "sleeps"]):
        prompt = loaded.tokenizer(f"the {word}").input_ids
        own = str(loaded.tokenizer.decode(generated(loaded.model, prompt, 1 + number % 3)))
        wrong = (f" {word}\n", f" {word} {word}\n", " and\n")
        answers = (own, *wrong) if number % 2 else (wrong[0], own, *wrong[1:])
        items.append(Item(list(Kind)[number % 4], f"the {word}", answers[0], answers[1:]))
    return items


@pytest.mark.parametrize("batch_tokens", [1, 60, 10_000])
def test_answers_are_what_each_text_alone_and_generate_say(
    tiny_loaded: LoadedModel, batch_tokens: int
) -> None:
    items = [item for item in short_items(tiny_loaded) if _has_seam(tiny_loaded, item)]
    forward = InMemoryForward(tiny_loaded.model, batch_tokens=batch_tokens)
    found = answer(forward, tiny_loaded.tokenizer, items)
    assert found == [by_hand(tiny_loaded, item) for item in items]
    assert {each.is_written for each in found} == {True, False}
    assert {each.is_chosen for each in found} == {True, False}


def _has_seam(loaded: LoadedModel, item: Item) -> bool:
    """Whether no token lies across the end of the question."""
    prompt = loaded.tokenizer(item.prompt).input_ids
    texts = [item.prompt + text for text in (item.answer, *item.wrong)]
    return all(loaded.tokenizer(text).input_ids[: len(prompt)] == prompt for text in texts)


def test_a_token_across_the_seam_belongs_to_the_answer(tiny_loaded: LoadedModel) -> None:
    whole, prompt = (tiny_loaded.tokenizer(text).input_ids for text in ("the fox", "the fo"))
    assert whole[: len(prompt)] != prompt
    shared = [ours for ours, theirs in zip(whole, prompt, strict=False) if ours == theirs]
    own = generated(tiny_loaded.model, shared, len(whole) - len(shared))
    item = Item(Kind.COPYING, "the fo", "x", ("g", "h", "b"))
    forward = InMemoryForward(tiny_loaded.model)
    (found,) = answer(forward, tiny_loaded.tokenizer, [item])
    assert found.is_written == (shared + own == whole)
    (none,) = answer(forward, tiny_loaded.tokenizer, [replace(item, wrong=("x", "x", "x"))])
    assert not none.is_chosen  # a tie with the right answer


def test_streamed_the_answers_are_the_same(tiny_loaded: LoadedModel, tiny_model_dir: Path) -> None:
    keep = (0, 1, 3, 4, 5)
    items = ITEMS[::16]
    in_memory = answer(InMemoryForward(view(tiny_loaded.model, keep)), tiny_loaded.tokenizer, items)
    streamed = StreamedForward(StreamedModel(tiny_model_dir), keep)
    assert answer(streamed, tiny_loaded.tokenizer, items) == in_memory


def test_a_score_is_a_mean_of_kinds_and_says_how_sure_it_is() -> None:
    right, half, none = (ItemResult(Kind.JSON, *given) for given in ((1, 1), (1, 0), (0, 0)))  # type: ignore[arg-type]
    other = ItemResult(Kind.CODE, is_chosen=False, is_written=False)
    score = summary([right, half, none, other, other], "d")
    assert [kind.kind for kind in score.kinds] == [Kind.JSON, Kind.CODE]
    assert (score.kinds[0].chosen, score.kinds[0].written) == (2 / 3, 1 / 3)
    assert score.kinds[0].score == 0.5
    assert score.kinds[0].standard_error == pytest.approx(0.5 / sqrt(3))
    assert score.score == 0.25
    assert score.standard_error == pytest.approx(0.5 / sqrt(3) / 2)
    assert read_record(ProbeScore, json.loads(json.dumps(asdict(score)))) == score


_ANSWERS = st.lists(st.tuples(st.sampled_from(Kind), *[st.booleans()] * 4), min_size=1)


@given(_ANSWERS)
def test_a_drop_is_the_difference_of_the_scores(
    drawn: list[tuple[Kind, bool, bool, bool, bool]],
) -> None:
    drawn = [*drawn, *drawn]  # two of each kind at least
    dense = [ItemResult(kind, chosen, written) for kind, chosen, written, _, _ in drawn]
    pruned = [ItemResult(kind, chosen, written) for kind, _, _, chosen, written in drawn]
    found = compare(dense, pruned, "d")
    assert (found.dense, found.pruned) == (summary(dense, "d"), summary(pruned, "d"))
    assert found.drop == pytest.approx(found.dense.score - found.pruned.score)
    same = compare(dense, dense, "d")
    assert (same.drop, same.standard_error) == (0, 0)
    assert read_record(ProbeComparison, json.loads(json.dumps(asdict(found)))) == found
