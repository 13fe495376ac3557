"""``structured_outputs`` by vLLM's names: regex, choice, grammar and JSON."""

import json
import re
from collections.abc import Callable
from typing import Any

import jsonschema
import openai
import pytest
from fastapi.testclient import TestClient

from app.engine.grammar import MAX_SCHEMA_CHARS
from tests.support.response_formats import PERSON, json_schema

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
CHOICE = ["naïve/", 'a "b"', "数学 🦊", "a]x{99999}"]
LARK = 'start: "sum " NUMBER ("+" NUMBER)~1..2\nNUMBER: /[0-9]{2}/'
GBNF = 'root ::= "sum " number ("+" number)*\nnumber ::= [0-9] [0-9]'
SUM = r"sum [0-9]{2}(\+[0-9]{2})*"


def is_person(text: str) -> bool:
    jsonschema.validate(json.loads(text), PERSON)
    return True


MET: list[tuple[dict[str, Any], Callable[[str], object]]] = [
    ({"regex": r"[a-c]{3}/\d\d"}, re.compile(r"[a-c]{3}/\d\d").fullmatch),
    ({"choice": CHOICE}, CHOICE.__contains__),
    ({"grammar": LARK}, re.compile(SUM).fullmatch),
    ({"grammar": GBNF}, re.compile(SUM).match),
    ({"json": PERSON}, is_person),
    ({"json": json.dumps(PERSON)}, is_person),
    ({"json_object": True}, lambda text: text.startswith("{")),
]


def ask(client: TestClient, path: str = CHAT, **body: Any) -> Any:
    prompt = {"prompt": "the dog"} if path == COMPLETIONS else {"messages": USER}
    asked = {"model": "tiny", "seed": 3, "temperature": 1.0, "max_tokens": 120, **prompt}
    return client.post(path, json={**asked, **body})


USER = [{"role": "user", "content": "the dog"}]


@pytest.mark.parametrize(("wanted", "is_met"), MET)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_an_output_is_as_asked(
    path: str, wanted: dict[str, Any], is_met: Callable[[str], object], client: TestClient
) -> None:
    answer = ask(client, path, structured_outputs=wanted)
    assert answer.status_code == 200, answer.text
    [choice] = answer.json()["choices"]
    text = choice["text"] if path == COMPLETIONS else choice["message"]["content"]
    assert is_met(text), text
    assert choice["finish_reason"] == "stop" or wanted in ({"json_object": True}, {"grammar": GBNF})


def test_openais_client_asks_as_vllms_documentation_does(client: TestClient) -> None:
    api = openai.OpenAI(base_url="http://localhost/v1", api_key="-", http_client=client)
    answer = api.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "the dog"}],
        extra_body={"structured_outputs": {"choice": ["positive", "negative"]}},
    )
    assert answer.choices[0].message.content in ("positive", "negative")


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"regex": "(["}, "structured_outputs.regex", "the regex cannot be enforced: .*unclosed"),
    ({"regex": r"(a{1000}){1000}"}, "structured_outputs.regex", "expand to more than"),
    ({"regex": r"a(?=b)"}, "structured_outputs.regex", "the regex cannot be enforced"),
    ({"choice": []}, "structured_outputs.choice", "at least 1 item"),
    ({"choice": ["a", ""]}, "structured_outputs.choice[1]", "at least 1 character"),
    ({"grammar": "start: ("}, "structured_outputs.grammar", "the grammar cannot be enforced"),
    ({"grammar": "root ::= other"}, "structured_outputs.grammar", "Rule 'other' not found"),
    ({"grammar": "root ::= " + "(" * 9_999}, "structured_outputs.grammar", "cannot be enforced"),
    ({"json": "{"}, "structured_outputs.json", "Expecting"),
    ({"json": "[" * 40_000}, "structured_outputs.json", "nested too deeply"),
    ({"json": {"not": {}}}, "structured_outputs.json", "the schema cannot be enforced"),
    ({"json_object": False}, "structured_outputs.json_object", "True"),
    ({}, "structured_outputs", "expected one of json, regex"),
    ({"regex": "a", "choice": ["a"]}, "structured_outputs", "expected one of json, regex"),
    ({"structural_tag": "{}"}, "structured_outputs.structural_tag", "unknown field"),
]


@pytest.mark.parametrize(("wanted", "param", "message"), REFUSED)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_what_cannot_be_met_is_refused(
    path: str, wanted: dict[str, Any], param: str, message: str, client: TestClient
) -> None:
    answer = ask(client, path, structured_outputs=wanted)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert re.search(message, error["message"]), error["message"]


def test_two_formats_are_refused(client: TestClient) -> None:
    answer = ask(client, response_format=json_schema(PERSON), structured_outputs={"regex": "a"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "structured_outputs"


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_refusal_of_tools_names_the_tools(choice: str, client: TestClient) -> None:
    registry = client.app_state["services"].generation.registry
    registry.get("tiny").tokenizer.chat_template = "{% if tools %}<tool_call>{% endif %}"
    parameters = {"type": "object", "description": "x" * MAX_SCHEMA_CHARS}
    tool: Any = {"type": "function", "function": {"name": "clock", "parameters": parameters}}
    error = ask(client, tools=[tool], tool_choice=choice).json()["error"]
    assert error["param"] == "tools"
    assert "characters, more than the limit" in error["message"]
    tool["function"] = {"name": "clock"}
    asked: Any = {"tools": [tool], "tool_choice": choice, "structured_outputs": {"regex": "a"}}
    assert ask(client, **asked).json()["error"]["param"] == "structured_outputs"
