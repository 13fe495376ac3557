"""Calls are found in the text of an output, in whatever pieces it comes."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.generation.calls import CallFinder, call_finder, call_form
from app.generation.output import CallPart
from app.generation.request import Chat
from tests.support.tiny_directory import tiny_tokenizer

# how the chat templates of these models tell them to write calls
TEMPLATES = {
    "hermes": "{{ tools }} return a json object within <tool_call></tool_call> XML tags",
    "llama": '{{ tools }} {"name": function name, "parameters": dictionary of argument name}',
    "mistral": "[AVAILABLE_TOOLS] {{ tools }}[/AVAILABLE_TOOLS]{{ '[TOOL_CALLS] [' }}",
    "pythonic": "{{ tools }} in the format of [func_name1(params_name1=params_value1)]",
}
Call = tuple[str, dict[str, object]]  # its name and its arguments
NAMES = ("weather", "clock")
WEATHER: Call = ("weather", {"city": "Köln", "days": [1, {"unit": None}]})
CLOCK: Call = ("clock", {})
_ARGUMENTS = '{"city": "Köln", "days": [1, {"unit": null}]}'
_WEATHER = f'{{"name": "weather", "arguments": {_ARGUMENTS}}}'
_CLOCK = '{"name": "clock", "arguments": {}}'
_LLAMA = _WEATHER.replace("arguments", "parameters")

FOUND: list[tuple[str, str, str, list[Call]]] = [
    ("hermes", f"<tool_call>\n{_WEATHER}\n</tool_call>", "", [WEATHER]),
    ("hermes", f"I look.\n\n<tool_call>{_CLOCK}</tool_call>\n", "I look.", [CLOCK]),
    (
        "hermes",
        f"<tool_call>\n{_CLOCK}\n</tool_call>\n<tool_call>\n{_WEATHER}\n</tool_call>",
        "",
        [CLOCK, WEATHER],
    ),
    ("hermes", f"<tool_call>\n{_CLOCK}\n", "", [CLOCK]),
    ("llama", _LLAMA, "", [WEATHER]),
    ("llama", f"<|python_tag|>{_LLAMA}", "", [WEATHER]),
    ("llama", f'{_LLAMA}; {{"name": "clock", "parameters": {{}}}}', "", [WEATHER, CLOCK]),
    ("mistral", f" [{_WEATHER}]", "", [WEATHER]),
    ("mistral", f"[TOOL_CALLS] [{_WEATHER}, {_CLOCK}]", "", [WEATHER, CLOCK]),
    (
        "pythonic",
        '[weather(city="Köln", days=[1, {"unit": None}]), clock()]',
        "",
        [WEATHER, CLOCK],
    ),
]
TEXTS = [
    ("hermes", "if a < b and <tool: no call"),
    ("hermes", "ends with <tool_c"),
    ("hermes", "<tool_call>{}</tool_call> and more"),
    ("hermes", '<tool_call>{"name": "other", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "clock", "arguments": [1]}</tool_call>'),
    ("hermes", '<tool_call>{"name": ["clock"], "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "clock", "argum'),
    ("llama", '{"weather": "cloudy"}'),
    ("llama", '{"name": "clock", "parameters": {}} it is'),
    ("llama", "  It says {}."),
    ("mistral", "[1] is the source"),
    ("mistral", "[" * 3000),
    ("pythonic", "[weather('Köln')]"),
    ("pythonic", "[clock(zone=os.environ)]"),
    ("pythonic", "[clock(**{'zone': 1})]"),
    ("pythonic", "[clock(zone={1, 2})]"),
    ("pythonic", "[clock(zone=" + "-" * 3000 + "1)]"),
    ("pythonic", "[1, 2]"),
]


def finder(form: str, *, may_call_many: bool = True) -> CallFinder:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATES[form]
    tools = [{"function": {"name": name}} for name in NAMES]
    chat = Chat([], tools, may_call=True, may_call_many=may_call_many)
    found = call_finder(chat, tokenizer)
    assert found is not None
    return found


def found_in(find: CallFinder, pieces: list[str]) -> tuple[str, list[tuple[str | None, object]]]:
    results = [*map(find.push, pieces), find.flush()]
    parts = [part for _, parts in results for part in parts]
    calls = [part for part in parts if part.name is not None]
    assert [call.index for call in calls] == [*range(len(calls))]
    assert len({call.id for call in calls}) == len(calls)
    arguments = [arguments_of(parts, call.index) for call in calls]
    text = "".join(text for text, _ in results)
    return text, [(call.name, json.loads(of)) for call, of in zip(calls, arguments, strict=True)]


def arguments_of(parts: list[CallPart], index: int) -> str:
    return "".join(part.arguments for part in parts if part.index == index)


@pytest.mark.parametrize(("form", "output", "text", "calls"), FOUND)
def test_calls_are_found(form: str, output: str, text: str, calls: list[object]) -> None:
    assert found_in(finder(form), [output]) == (text, calls)


@pytest.mark.parametrize(("form", "output"), TEXTS)
def test_what_is_no_call_of_a_tool_remains_text(form: str, output: str) -> None:
    assert found_in(finder(form), [output]) == (output, [])


@given(st.data())
def test_pieces_do_not_matter(data: st.DataObject) -> None:
    cases = [(form, output) for form, output, *_ in FOUND] + TEXTS
    form, output = data.draw(st.sampled_from([case for case in cases if len(case[1]) < 1000]))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(output)))))
    ends = [0, *cuts, len(output)]
    pieces = [output[start:end] for start, end in pairwise(ends)]
    assert found_in(finder(form), pieces) == found_in(finder(form), [output])


def test_text_is_not_held_back_for_longer_than_it_may_be_a_call() -> None:
    find = finder("hermes")
    assert find.push("a < b")[0] == "a < b"
    assert find.push(" and <tool")[0] == " and"
    assert find.push("s>")[0] == " <tools>"
    assert finder("llama").push("It is")[0] == "It is"


def test_arguments_are_found_as_they_are_written() -> None:
    """They may hold what looks like their end, whatever the pieces are."""
    find = finder("hermes")
    arguments = r'{"a": "}</tool_call>\" \\\\", "b": {"c": 1}}'
    parts: list[list[CallPart]] = []
    for piece in ["<tool_call>", '{"name": "clock"', ', "arguments": ', *arguments]:
        text, found = find.push(piece)
        assert not text
        parts.append(found)
    [begin, first], *later = parts[3:]
    assert (begin.index, begin.name, begin.arguments) == (0, "clock", "")
    assert first == CallPart(0, None, None, "{")
    assert all(part.name is None and part.id is None for [part] in filter(None, later))
    assert "{" + "".join(part.arguments for found in later for part in found) == arguments
    assert not find.is_within_arguments
    assert [find.push(piece) for piece in ("}", "\n</tool", "_call>")] == [("", [])] * 3
    assert find.push("the dog") == ("the dog", [])


@pytest.mark.parametrize("form", ["hermes", "mistral"])
def test_one_call_is_kept_where_more_are_not_wanted(form: str) -> None:
    several = next(output for of, output, _, calls in FOUND if of == form and len(calls) == 2)
    _, calls = found_in(finder(form, may_call_many=False), [several])
    assert len(calls) == 1


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages }}",
        "<tool_call> without a list of them",
        "{{ tools }}",
        "{{ tools }} <tool_call>\n<function=name>",
        "{{ tools }} [TOOL_CALLS]name[ARGS]{}",
    ],
)
def test_other_forms_are_not_guessed(template: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    assert call_form(tokenizer) is None
