"""Questions for JSON: the same every time, with a solved example, and judged by their schema."""

import json
from typing import Any

import jsonschema
import pytest

from pruning.evaluation.json_questions import (
    END,
    NUM_QUESTIONS,
    JsonQuestion,
    JsonScore,
    fulfils,
    json_questions,
    wilson,
)
from pruning.evaluation.probe import digest


def test_questions_are_the_same_every_time_and_differ_from_each_other() -> None:
    questions = json_questions()
    assert questions == json_questions()
    assert len({each.prompt for each in questions}) == NUM_QUESTIONS
    assert digest(questions) == digest(json_questions()) != digest(json_questions(seed=1))


def test_the_solved_example_fulfils_the_schema_and_does_not_answer_the_question() -> None:
    for question in json_questions():
        solved, asked = question.prompt.split(END)
        text, answer = solved.split("\nJSON: ")
        jsonschema.Draft202012Validator.check_schema(dict(question.schema))
        assert question.is_answered_by(answer)
        assert question.is_answered_by(f" {answer}\n\nText: and so on")
        assert text != asked.removesuffix("\nJSON:")
        assert asked.endswith("JSON:")


@pytest.mark.parametrize(
    ("answer", "is_valid"),
    [
        ('{"a": 1}', True),
        (' {"a": 1}\n', True),
        ('{\n  "a": 2\n}', True),
        ('{"a": 1}\n\nText: more', True),
        ('{"a": "1"}', False),
        ('{"a": 1, "b": 2}', False),
        ("{}", False),
        ("[1]", False),
        ('{"a": 1', False),
        ('{"a": 1} and so on', False),
        ('{"a": NaN}', False),
        ("```json\n{}\n```", False),
        ("[" * 100_000, False),
        ("", False),
    ],
)
def test_an_answer_is_valid_if_it_is_json_by_the_schema(answer: str, is_valid: bool) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "number"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    assert JsonQuestion("?", schema).is_answered_by(answer) is is_valid


# by the closed formula, as R's prop.test(correct = FALSE) has them
@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    [(0, 10, 0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1), (33, 36, 0.7817, 0.9713)],
)
def test_the_interval_is_that_of_wilson(hits: int, trials: int, low: float, high: float) -> None:
    assert wilson(hits, trials) == pytest.approx((low, high), abs=1e-4)


def test_a_score_has_its_share_and_the_digest_of_its_questions() -> None:
    questions = json_questions(num_questions=4)
    score = JsonScore.of(3, questions)
    assert (score.share, score.num_valid, score.num_questions) == (0.75, 3, 4)
    assert score.digest == digest(questions)
    assert score.low < 0.75 < score.high


def test_values_are_judged_as_by_jsonschema() -> None:
    values: list[Any] = [None, True, 0, 1.0, -1, 0.5, 24, "", "x", "Monday", [], {}]
    items = [{"thing": "pens", "number": value} for value in values]
    values += [[value] for value in (*values, *items)] + [[1, 2.5, 3], [1, 2, True]]
    verdicts = []
    for question in json_questions(num_questions=4):
        solved = question.prompt.split(END)[0]
        answer = json.loads(solved.split("\nJSON: ")[1])
        changed = [{**answer, name: value} for name in answer for value in values]
        lacking = [{one: answer[one] for one in answer if one != name} for name in answer]
        peer = jsonschema.Draft202012Validator(dict(question.schema))
        for each in (answer, *changed, *lacking, {**answer, "other": 1}, [answer], None):
            verdicts.append(fulfils(each, question.schema))
            assert verdicts[-1] is peer.is_valid(each), each
    assert 20 < sum(verdicts) < len(verdicts) - 100
