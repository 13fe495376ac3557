"""The grammar of text in which a model may call tools: any text, with calls that are valid."""

import json

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from app.engine.grammar import (
    JSON_OF_SCHEMA,
    Grammar,
    ResponseFormatRefused,
    grammar_source,
    grammar_tokens,
)
from app.generation.calls import call_form, call_grammar
from tests.support.tiny_directory import tiny_tokenizer

TEMPLATE = "{{ tools }} return a json object within <tool_call></tool_call> XML tags"
_ZONE = {"type": "object", "properties": {"zone": {"type": "integer"}}, "required": ["zone"]}
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"name": {"const": "clock"}, "arguments": _ZONE},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
)
BODY = '{"name": "clock", "arguments": {"zone": 3}}'
CALL = f"<tool_call>\n{BODY}\n</tool_call>"
PLAIN = ()  # the tags are text
TAGS = ("<tool_call>", "</tool_call>", "<think>")  # tokens, as in the vocabulary of Qwen


def tokenizer_with(added: tuple[str, ...]) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in added])
    return tokenizer


def read_of(tokenizer: PreTrainedTokenizerFast, text: str, *, may_call_many: bool = True) -> str:
    """As much of the text as the grammar takes; with a full stop where the text may end."""
    form = call_form(tokenizer)
    assert form is not None
    within = call_grammar(tokenizer, form, may_call_many=may_call_many)
    assert within is not None
    end = tokenizer.eos_token_id
    tokens = grammar_tokens(tokenizer.backend_tokenizer.to_str(), len(tokenizer), [end])
    matcher = Grammar(grammar_source(SCHEMA, within), tokens).matcher()
    token_ids = tokenizer(text, add_special_tokens=False).input_ids
    for number, token_id in enumerate([*token_ids, end]):
        try:
            matcher.advance(token_id)
        except ResponseFormatRefused:
            return str(tokenizer.decode(token_ids[:number]))
    return f"{text}."


@pytest.mark.parametrize("added", [PLAIN, TAGS])
@pytest.mark.parametrize(
    "text", ["", "the dog", "a < b <tool", CALL, f"the dog{CALL}", f"{CALL}\n{CALL} the dog"]
)
def test_any_text_with_valid_calls_is_allowed(added: tuple[str, ...], text: str) -> None:
    assert read_of(tokenizer_with(added), text) == f"{text}."


@pytest.mark.parametrize("added", [PLAIN, TAGS])
def test_what_begins_as_a_call_becomes_a_valid_one(added: tuple[str, ...]) -> None:
    tokenizer = tokenizer_with(added)
    assert read_of(tokenizer, "the <tool_call>dog") == "the <tool_call>"
    wrong = CALL.replace("3", "true")
    assert read_of(tokenizer, wrong) == wrong[: wrong.index("true")]
    unfinished = CALL[:-5]
    assert read_of(tokenizer, unfinished) == unfinished


@pytest.mark.parametrize("added", [PLAIN, TAGS])
def test_one_call_ends_the_output_where_more_are_not_wanted(added: tuple[str, ...]) -> None:
    tokenizer = tokenizer_with(added)
    for text in ("the dog", f"the dog{CALL}"):
        assert read_of(tokenizer, text, may_call_many=False) == f"{text}."
    assert read_of(tokenizer, CALL + CALL, may_call_many=False) == CALL


@pytest.mark.parametrize("may_call_many", [False, True])
def test_other_tokens_that_were_added_may_be_in_the_text(*, may_call_many: bool) -> None:
    text = f"<think>the dog<think>{CALL}"
    assert read_of(tokenizer_with(TAGS), text, may_call_many=may_call_many) == f"{text}."


def test_a_form_without_tags_has_no_grammar() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ tools }} in the format of [func_name1(params_name1=value)]"
    form = call_form(tokenizer)
    assert form is not None
    assert call_grammar(tokenizer, form, may_call_many=True) is None


@pytest.mark.parametrize("within", ["", f"%llguidance {{}}\nstart: {JSON_OF_SCHEMA}"])
@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"$ref": "#/$defs/none"}, "Pointer '/$defs/none' does not exist"),
        ({"oneOf": [{"type": "integer"}, {"minimum": 1}]}, "oneOf requires schemas that exclude"),
    ],
)
def test_a_refusal_is_about_the_schema_alone(
    schema: dict[str, object], reason: str, within: str
) -> None:
    tokenizer = tokenizer_with(PLAIN)
    tokens = grammar_tokens(
        tokenizer.backend_tokenizer.to_str(), len(tokenizer), [tokenizer.eos_token_id]
    )
    with pytest.raises(ResponseFormatRefused) as refused:
        Grammar(grammar_source(json.dumps(schema), within), tokens)
    assert str(refused.value).startswith(f"the schema cannot be enforced: {reason}")
    assert "llguidance" not in str(refused.value)
