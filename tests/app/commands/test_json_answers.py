"""Answers of a model are those that transformers generates, up to a blank line."""

import pytest

from app.commands.json_answers import json_score
from pruning.evaluation.json_questions import MAX_NEW_TOKENS, JsonQuestion
from pruning.evaluation.probe import digest
from pruning.models.store import LoadedModel
from tests.support.generate_requests import PROMPTS, oracle
from tests.support.tiny_directory import NUM_BLOCKS


def test_answers_are_generated_greedily_and_end_at_a_blank_line(
    tiny_loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, str] = {}

    def is_answered_by(self: JsonQuestion, text: str) -> bool:
        asked[self.prompt] = text
        return self.prompt == PROMPTS[1]

    monkeypatch.setattr(JsonQuestion, "is_answered_by", is_answered_by)
    expected = {}
    for prompt in PROMPTS:
        ids = oracle(tiny_loaded, prompt, tuple(range(NUM_BLOCKS)), MAX_NEW_TOKENS)
        expected[prompt] = str(tiny_loaded.tokenizer.decode(ids, skip_special_tokens=True))
    end = expected[PROMPTS[0]][7:10]  # a text that comes in the middle of an answer
    monkeypatch.setattr("app.commands.json_answers.END", end)
    questions = [JsonQuestion(prompt, {}) for prompt in PROMPTS]
    seen: list[tuple[int, int]] = []
    score = json_score(
        tiny_loaded.model, tiny_loaded.tokenizer, questions, lambda *done: seen.append(done)
    )
    assert asked == {prompt: text.split(end)[0] for prompt, text in expected.items()}
    assert score is not None
    assert (score.num_valid, score.num_questions, score.digest) == (1, 3, digest(questions))
    assert seen[-1] == (3, 3)


def test_a_model_with_too_few_positions_is_not_asked(tiny_loaded: LoadedModel) -> None:
    questions = [JsonQuestion("the dog " * 100, {})]
    assert json_score(tiny_loaded.model, tiny_loaded.tokenizer, questions) is None
