"""What fails in the work of one sequence ends that sequence alone; the others of its step go on."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from app.engine.engine import Engine
from app.engine.grammar import Matcher, ResponseFormatRefused
from app.engine.sampling import logprobs, sampling
from app.engine.scheduling.sequence import FinishReason, Request, Sequence
from app.engine.variant import Variant, make_variant
from pruning.models.store import LoadedModel
from tests.support.engine_requests import Outcome, run
from tests.support.response_formats import PERSON, constrained, tiny_grammar

MARK = 7  # a parameter of the request that fails
WIDE: Mapping[str, Any] = {
    "type": "object",
    "properties": {f"p{number}": {"type": "integer"} for number in range(1_800)},
    "required": ["p0"],
}
LETTERS = {"type": "string", "pattern": r"[\p{L}\p{N}]{9999}"}
IN_AN_OBJECT = {"type": "object", "properties": {"a/b": {"type": "array", "items": LETTERS}}} | {
    "required": ["a/b"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tiny(tiny_loaded: LoadedModel) -> Variant:
    return make_variant("tiny", "tiny", tiny_loaded.model)


def others(tiny: Variant) -> list[Request]:
    """Requests of different kinds, in the same batches as the one that fails."""
    drawn: dict[str, Any] = {"max_new_tokens": 12, "temperature": 1.0}
    return [
        constrained(PERSON, tiny, (70, 71, 72), "bound", seed=1, **drawn),
        constrained({}, tiny, (73, 74, 75), "reported", seed=2, num_logprobs=2, **drawn),
        constrained({}, tiny, (76, 77), "read", max_new_tokens=12, num_prompt_logprobs=1),
    ]


def marked(tiny: Variant) -> Request:
    reported = {"num_logprobs": MARK, "num_prompt_logprobs": MARK}
    drawn: dict[str, Any] = {"max_new_tokens": 12, "temperature": 1.0, "top_k": MARK, "seed": 4}
    return constrained(PERSON, tiny, (80, 81, 82, 83), "bad", **drawn, **reported)


def check_alone(tiny: Variant, bad: Request, break_it: Callable[[Engine], None]) -> Outcome:
    """The request in the middle of the others ends with an error; they do not notice."""
    first, *more = others(tiny)
    undisturbed = run(Engine(), *others(tiny))
    engine = Engine()
    for request in (first, bad, *more):
        engine.add(request)
    break_it(engine)
    outcome = run(engine)
    for request in (first, *more):
        assert outcome.of(request) == undisturbed.of(request)
        assert outcome.reason(request) is undisturbed.reason(request)
    assert outcome.reason(bad) is FinishReason.ERROR
    return outcome


PARTS: Mapping[str, tuple[Any, str, Callable[..., bool]]] = {
    "filters": (sampling, "_keep_top_k", lambda _logits, top_k: MARK in top_k),
    "reports": (sampling, "_reports", lambda _logits, _ids, _rows, best: MARK in best.values()),
    "prompt": (logprobs, "_scored", lambda _logits, _targets, num_best: num_best == MARK),
    "end": (Sequence, "finish_reason", lambda seq: seq.request.params.top_k == MARK),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_its_work_that_fails(
    tiny: Variant, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, is_bad = PARTS[part]
    own = getattr(owner, name)

    def fail(*args: Any) -> Any:
        if is_bad(*args):
            raise ZeroDivisionError
        return own(*args)

    check_alone(tiny, marked(tiny), lambda _engine: monkeypatch.setattr(owner, name, fail))


def test_a_grammar_that_takes_no_token(tiny: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Matcher.advance

    def break_it(engine: Engine) -> None:
        bad = engine._sequences["bad"].matcher

        def fail(matcher: Matcher, token_id: int) -> None:
            if matcher is bad:
                raise ZeroDivisionError
            own(matcher, token_id)

        monkeypatch.setattr(Matcher, "advance", fail)

    check_alone(tiny, marked(tiny), break_it)


@pytest.mark.parametrize(
    ("schema", "part", "reason"),
    [
        (WIDE, "the part for /p0 of the output", "Current row has"),
        (LETTERS, "the top level", "too many expressions"),
        (IN_AN_OBJECT, "the part for /a~1b/0 of the output", "too many expressions"),
    ],
)
def test_a_grammar_that_exceeds_its_limits(
    tiny: Variant, schema: Mapping[str, Any], part: str, reason: str
) -> None:
    params: dict[str, Any] = {"max_new_tokens": 250, "temperature": 2.0, "seed": 1}
    bad = constrained(schema, tiny, (80, 81), "bad", **params)
    outcome = check_alone(tiny, bad, lambda _engine: None)
    failure = str(outcome.last["bad"].failure)
    assert failure.startswith(f"the schema cannot be enforced: {part}: ")
    assert reason in failure
    assert "non-verbose" not in failure
    alone = replace(bad, grammar=tiny_grammar(json.dumps(schema)))
    assert run(Engine(), alone).last["bad"].failure == failure


def test_a_grammar_says_at_once_that_it_takes_no_token(tiny: Variant) -> None:
    matcher = marked(tiny).grammar.matcher()  # type: ignore[union-attr]
    with pytest.raises(ResponseFormatRefused, match="cannot be enforced"):
        matcher.advance(5)  # which the schema does not allow there
    assert matcher.failure


@pytest.mark.parametrize("schema", [PERSON, {}, {"enum": ["a"]}])
def test_a_grammar_that_is_tried_goes_on(schema: dict[str, Any]) -> None:
    tiny_grammar(json.dumps(schema)).try_out()


def test_a_grammar_that_fails_soon_is_seen_when_it_is_tried() -> None:
    """So that it takes no time of the steps of others."""
    with pytest.raises(ResponseFormatRefused, match="the part for /p0"):
        tiny_grammar(json.dumps(WIDE)).try_out()
