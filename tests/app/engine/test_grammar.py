"""Response formats in the engine: what is generated fulfils the schema, whatever a model says."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher

from app.engine.engine import Engine
from app.engine.grammar import (
    MAX_SCHEMA_CHARS,
    ResponseFormatRefused,
    _normalized,
    grammar_source,
    grammar_tokens,
    num_repeats,
)
from app.engine.scheduling.scheduler import EngineLimits
from app.engine.scheduling.sequence import FinishReason, InvalidSampling, Request, SamplingParams
from app.engine.variant import Variant, make_variant
from pruning.models.store import LoadedModel
from tests.support.engine_requests import Outcome, plain, run
from tests.support.response_formats import PERSON, constrained, tiny_grammar, tiny_tokens
from tests.support.tiny_directory import tiny_tokenizer

EOS = 1
PROMPTS = ((70, 71, 72), (80, 81), (90, 91, 92, 93, 94))


@pytest.fixture(scope="module")
def tiny(tiny_loaded: LoadedModel) -> Variant:
    return make_variant("tiny", "tiny", tiny_loaded.model)


def text_of(tokens: Sequence[int]) -> str:
    return str(tiny_tokenizer().decode(list(tokens), skip_special_tokens=True))


def check(schema: Mapping[str, Any], tokens: Sequence[int], reason: FinishReason | None) -> None:
    if reason is FinishReason.STOP:
        assert tokens[-1] == EOS
        jsonschema.validate(json.loads(text_of(tokens)), schema)
    else:
        assert reason is FinishReason.LENGTH
        matcher = LLMatcher(tiny_tokens(), LLMatcher.grammar_from_json_schema(json.dumps(schema)))
        assert matcher.try_consume_tokens(list(tokens)) == len(tokens)


SCHEMAS: list[dict[str, Any]] = [
    {"type": "object"},
    dict(PERSON),
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
    {"anyOf": [{"type": "null"}, {"type": "number"}]},
    {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}$"},
    {"$defs": {"n": {"type": "array", "maxItems": 1, "items": {"$ref": "#/$defs/n"}}}}
    | {"$ref": "#/$defs/n"},
    {"enum": ["🦊", "naïve", 1.5, None, {"a": [1]}]},
]


WAYS: list[dict[str, Any]] = [
    {"temperature": 1.0, "seed": 1},
    {"temperature": 3.0, "seed": 2, "top_p": 0.9},
    {"repetition_penalty": 1.5, "logit_bias": ((70, 100.0),)},
]


def test_texts_fulfil_each_schema_in_one_batch(tiny: Variant) -> None:
    engine = Engine(EngineLimits(max_num_seqs=32))
    requests = [
        constrained(schema, tiny, PROMPTS[way], f"{number}-{way}", max_new_tokens=120, **params)
        for number, schema in enumerate(SCHEMAS)
        for way, params in enumerate(WAYS)
    ]
    outcome = run(engine, *requests)
    for request in requests:
        number = int(request.request_id.split("-")[0])
        check(SCHEMAS[number], outcome.of(request), outcome.reason(request))
    reasons = [outcome.reason(request) for request in requests]
    assert reasons.count(FinishReason.STOP) > len(reasons) / 2


def schemas() -> st.SearchStrategy[dict[str, Any]]:
    names = st.sampled_from(["a", "b c", 'q"', "ü", "数"])
    leaves = st.one_of(
        st.sampled_from([{"type": "boolean"}, {"type": "null"}]),
        st.builds(
            lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more},
            st.integers(-200, 200),
            st.integers(0, 300),
        ),
        st.builds(
            lambda few, more: {"type": "string", "minLength": few, "maxLength": few + more},
            st.integers(0, 3),
            st.integers(0, 3),
        ),
        st.lists(st.one_of(st.integers(-9, 9), names, st.none()), min_size=1, max_size=3).map(
            lambda values: {"enum": values}
        ),
    )

    def larger(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
        objects = st.dictionaries(names, inner, max_size=3).flatmap(
            lambda fields: st.builds(
                lambda required: {
                    "type": "object",
                    "properties": fields,
                    "required": sorted(required),
                    "additionalProperties": False,
                },
                st.sets(st.sampled_from(sorted(fields)) if fields else st.nothing()),
            )
        )
        arrays = st.builds(
            lambda items, few, more: {
                "type": "array",
                "items": items,
                "minItems": few,
                "maxItems": few + more,
            },
            inner,
            st.integers(0, 2),
            st.integers(0, 2),
        )
        choices = st.lists(inner, min_size=1, max_size=2).map(lambda parts: {"anyOf": parts})
        return objects | arrays | choices

    return st.recursive(leaves, larger, max_leaves=4)


@settings(max_examples=25)
@given(schema=schemas(), seed=st.integers(0, 1000))
def test_texts_fulfil_any_schema(tiny: Variant, schema: dict[str, Any], seed: int) -> None:
    params = {"temperature": 1.5, "max_new_tokens": 150}
    requests = [
        constrained(schema, tiny, PROMPTS[each], f"{each}", seed=seed + each, **params)
        for each in range(2)
    ]
    outcome = run(Engine(), *requests)
    for request in requests:
        check(schema, outcome.of(request), outcome.reason(request))


@torch.inference_mode()
def obvious(request: Request, schema: Mapping[str, Any]) -> list[int]:
    """The best token that the library allows, asked for each token alone, by whole forwards."""
    matcher = LLMatcher(tiny_tokens(), LLMatcher.grammar_from_json_schema(json.dumps(schema)))
    tokens = list(request.prompt_ids)
    for _ in range(request.params.max_new_tokens):
        logits = request.variant.model(torch.tensor([tokens])).logits[0, -1].float()
        for token_id in logits.argsort(descending=True).tolist():
            ends = token_id == EOS
            if matcher.is_accepting() if ends else matcher.validate_tokens([token_id]):
                break
        tokens.append(token_id)
        if token_id == EOS:
            break
        matcher.consume_token(token_id)
    return tokens[len(request.prompt_ids) :]


@pytest.mark.parametrize("number", [1, 2, 4])
def test_greedy_tokens_are_the_best_of_those_allowed(tiny: Variant, number: int) -> None:
    schema = SCHEMAS[number]
    requests = [
        constrained(schema, tiny, prompt, str(each), max_new_tokens=25)
        for each, prompt in enumerate(PROMPTS)
    ]
    outcome = run(Engine(), *requests)
    assert [outcome.of(each) for each in requests] == [obvious(each, schema) for each in requests]


def test_other_sequences_of_the_batch_keep_their_tokens(tiny: Variant) -> None:
    free = [
        Request("greedy", tiny, PROMPTS[0], SamplingParams(max_new_tokens=20, num_logprobs=2)),
        Request(
            "drawn", tiny, PROMPTS[1], SamplingParams(max_new_tokens=20, temperature=1, seed=3)
        ),
    ]
    bound = constrained(PERSON, tiny, PROMPTS[2], "bound", max_new_tokens=20, temperature=1, seed=4)
    outcome = run(Engine(), free[0], bound, free[1])
    for request in free:
        assert outcome.of(request) == [choice.token_id for choice in plain(request)]
    alone = run(Engine(), bound)
    assert outcome.of(bound) == alone.of(bound)


def test_a_sequence_that_was_preempted_goes_on_in_its_grammar(tiny: Variant) -> None:
    def background() -> Request:
        live = constrained(PERSON, tiny, PROMPTS[0], "back", max_new_tokens=40)
        return replace(live, is_background=True)

    undisturbed = run(Engine(), background())
    engine, outcome = Engine(), Outcome()
    engine.add(background())
    for _ in range(7):
        outcome.take(engine.step())
    engine.preempt()
    outcome = run(engine, Request("live", tiny, PROMPTS[1]), outcome=outcome)
    assert outcome.tokens["back"] == undisturbed.tokens["back"]
    check(PERSON, outcome.tokens["back"], outcome.last["back"].finish_reason)


@torch.inference_mode()
def test_logprobs_are_the_models_own(tiny: Variant) -> None:
    request = constrained(PERSON, tiny, PROMPTS[0], "a", max_new_tokens=3, num_logprobs=1)
    [event, *_] = _events(request)
    logits = tiny.model(torch.tensor([PROMPTS[0]])).logits[0, -1].float().log_softmax(dim=-1)
    assert event.token_id is not None
    assert text_of([event.token_id]) == "{"
    assert event.logprob == pytest.approx(float(logits[event.token_id]), abs=1e-3)
    [(best, _)] = event.top_logprobs
    assert best == int(logits.argmax())


def _events(request: Request) -> list[Any]:
    engine = Engine()
    engine.add(request)
    events = []
    while engine.has_work:
        events += engine.step()
    return events


def test_a_grammar_that_fails_ends_its_sequence_alone(tiny: Variant) -> None:
    engine, outcome = Engine(), Outcome()
    bad, good = (constrained(PERSON, tiny, PROMPTS[0], name) for name in ("bad", "good"))
    for request in (bad, good):
        engine.add(request)
    outcome.take(engine.step())
    matcher = engine._sequences["bad"].matcher
    assert matcher is not None
    with pytest.raises(ResponseFormatRefused):
        matcher.advance(5)  # a token that the schema does not allow here
    run(engine, outcome=outcome)
    assert outcome.reason(bad) is FinishReason.ERROR
    assert "cannot be enforced" in str(outcome.last["bad"].failure)
    assert outcome.of(good) == run(Engine(), good).of(good)


def test_the_end_of_text_is_not_ignored(tiny: Variant) -> None:
    with pytest.raises(InvalidSampling, match="response_format"):
        Engine().add(constrained({}, tiny, (5,), "a", ignore_eos=True))


def nested(levels: int) -> str:
    return '{"type":"array","items":' * levels + "{}" + "}" * levels


def expanding(levels: int) -> str:
    """Each definition has the next one twice."""
    parts = {
        f"d{each}": {"allOf": [{"$ref": f"#/$defs/d{each + 1}"}, {"$ref": f"#/$defs/d{each + 1}"}]}
        for each in range(levels)
    }
    return json.dumps({"$defs": {**parts, f"d{levels}": {"type": "null"}}, "$ref": "#/$defs/d0"})


HOSTILE = {
    "not JSON": "{",
    "no number": '{"const": NaN}',
    "half a character": '{"const": "\\ud800"}',
    "deep": nested(5_000),
    "deeper than Python": nested(2_500_000 // 25),
    "large": json.dumps({"enum": ["x" * 80] * 1_000}),
    "enumeration": json.dumps({"enum": [f"{each}" for each in range(30_000)]}),
    "repeats": '{"pattern": "^(a{1000}){1000}$"}',
    "repeats of a key": '{"patternProperties": {"^((a{99}){99}){99}$": {}}}',
    "endless": '{"$ref": "#"}',
    "impossible": '{"type": "integer", "minimum": 5, "maximum": 3}',
    "foreign": '{"$ref": "http://127.0.0.1:1/x"}',
    "unknown keyword": '{"uniqueItems": true}',
    "unknown keyword, ignored": '{"x-guidance": {"lenient": true}, "uniqueItems": true}',
    "unknown type": '{"type": "set"}',
    "overlapping": '{"oneOf": [{"type": "integer"}, {"type": "number"}]}',
    "wrong type": '{"type": 7}',
    "pattern": json.dumps({"type": "string", "pattern": "(" * 9_000}),
    "look-ahead": json.dumps({"type": "string", "pattern": "(?=a)b"}),
}


@pytest.mark.parametrize("schema", HOSTILE.values(), ids=HOSTILE)
def test_a_schema_that_cannot_be_enforced_is_refused_soon(schema: str) -> None:
    tiny_tokens()
    began_s = time.process_time()
    with pytest.raises(ResponseFormatRefused, match="the schema cannot be enforced") as refused:
        tiny_grammar(schema)
    assert time.process_time() - began_s < 3
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize(
    ("schema", "plain"),
    [
        ({"type": "array", "uniqueItems": False}, {"type": "array"}),
        (
            {"type": "array", "minItems": 1.0, "maxItems": 2.0, "items": {"maxLength": 3.0}},
            {"type": "array", "minItems": 1, "maxItems": 2, "items": {"maxLength": 3}},
        ),
        (
            {"properties": {"maxItems": {"uniqueItems": False}}},
            {"properties": {"maxItems": {}}},
        ),
        (
            {"anyOf": [{"uniqueItems": False}, {"$ref": "#/$defs/a"}]}
            | {"$defs": {"a": {"not": {"maxLength": 3.0}}}},
            {"anyOf": [{}, {"$ref": "#/$defs/a"}], "$defs": {"a": {"not": {"maxLength": 3}}}},
        ),
        # values and names, which look like keywords
        ({"const": {"uniqueItems": False, "maxItems": 2.0}},) * 2,
        ({"enum": [{"maxLength": 1.0}], "default": {"uniqueItems": False}},) * 2,
        ({"properties": {"uniqueItems": False, "maxItems": True}},) * 2,
        ({"maxItems": 2.5, "uniqueItems": True},) * 2,
    ],
)
def test_a_schema_may_say_the_same_in_other_words(
    schema: Mapping[str, Any], plain: Mapping[str, Any]
) -> None:
    assert grammar_source(json.dumps(schema)) == grammar_source(json.dumps(plain))
    assert _normalized(json.dumps(schema)) == json.dumps(plain)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "string", "pattern": "^(a|[b"}, "regex parse error: ^(a|[b error: unclosed"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "exclude each other: use anyOf"),
        ({"type": "array", "maxItems": 2.5}, "maxItems"),
    ],
)
def test_a_refusal_says_all_of_its_reason(schema: Mapping[str, Any], reason: str) -> None:
    with pytest.raises(ResponseFormatRefused) as refused:
        tiny_grammar(json.dumps(schema))
    assert reason in str(refused.value)
    assert "coerce_one_of" not in str(refused.value)


def test_a_schema_that_expands_is_compiled_soon() -> None:
    began_s = time.process_time()
    tiny_grammar(expanding(60))
    assert time.process_time() - began_s < 3
    assert len(expanding(60)) < MAX_SCHEMA_CHARS


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("abc", 1),
        ("a{5}", 5),
        ("a{2,7}b{3,}", 7),
        ("(a{5}b){3}", 15),
        ("((a{5}|b{2}){3}){2}c{9}", 30),
        (r"\{9}a\\{4}", 4),
        (r"[({9}]{3}", 3),
        ("[]{9}]{2}", 2),
        ("(a{10}){10}?", 100),
        ("a{3}{4}", 12),
        (")(a{3}", 3),
        ("a{,9}", 1),
        ("(a{" + "9" * 6000 + "}){9}", float("inf")),
    ],
)
def test_repetitions_multiply(pattern: str, expected: float) -> None:
    assert num_repeats(pattern) == expected


def test_a_model_without_an_end_of_text_is_refused() -> None:
    with pytest.raises(ResponseFormatRefused, match="no end-of-text token"):
        grammar_tokens(tiny_tokenizer().backend_tokenizer.to_str(), 320, ())


def test_a_tokenizer_without_bytes_is_refused() -> None:
    tokenizer = tiny_tokenizer().backend_tokenizer
    tokenizer.decoder = None
    with pytest.raises(ResponseFormatRefused, match="does not provide the bytes"):
        grammar_tokens(tokenizer.to_str(), tokenizer.get_vocab_size(), {EOS})


def test_grammars_are_copied_for_each_sequence() -> None:
    grammar = tiny_grammar('{"const": 12}')
    first, second = grammar.matcher(), grammar.matcher()
    [one] = tiny_tokenizer()("1", add_special_tokens=False).input_ids
    first.advance(one)
    with pytest.raises(ResponseFormatRefused):
        first.advance(one)
    assert first.failure
    second.advance(one)
    assert second.failure is None
