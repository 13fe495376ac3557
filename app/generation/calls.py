"""Calls of tools in the text of an output, in the form that the model's chat template asks for."""

import ast
import json
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from transformers import PreTrainedTokenizerBase

from app.engine.grammar import JSON_OF_SCHEMA
from app.engine.sampling.text import check_template
from app.generation.output import CallPart
from app.generation.request import Chat, Prompt

_Calls = Iterator[tuple[str, Any]]  # names and arguments
_INVALID = (ValueError, TypeError, LookupError, SyntaxError, RecursionError, MemoryError)


@dataclass(frozen=True)
class CallForm:
    """How a model writes calls: between two tags within a text, or as its whole output."""

    hint: str  # in the chat template
    openings: tuple[str, ...]
    closing: str  # empty for a whole output
    parse: Callable[[str], _Calls]


def _one(text: str) -> _Calls:
    call = json.loads(text)
    yield call["name"], call["arguments"]


def _many(text: str) -> _Calls:
    for call in json.loads(text.removeprefix("[TOOL_CALLS]")):
        yield call["name"], call["arguments"]


def _separated(text: str) -> _Calls:
    """Llama separates several calls by semicolons."""
    left = text.removeprefix("<|python_tag|>").lstrip()
    while left:
        call, end = json.JSONDecoder().raw_decode(left)
        yield call["name"], call["parameters"]
        left = left[end:].lstrip("; \r\n\t")


def _pythonic(text: str) -> _Calls:
    listed = ast.parse(text, mode="eval").body
    if not isinstance(listed, ast.List):
        raise TypeError("expected a list of calls")
    for call in listed.elts:
        if not isinstance(call, ast.Call) or call.args or None in _names(call):
            raise TypeError("expected calls with named arguments")
        values = [ast.literal_eval(each.value) for each in call.keywords]
        yield ast.unparse(call.func), dict(zip(_names(call), values, strict=True))


def _names(call: ast.Call) -> list[str | None]:
    """Of the arguments; None for a mapping of them."""
    return [each.arg for each in call.keywords]


_FORMS = (
    CallForm("<tool_call>", ("<tool_call>",), "</tool_call>", _one),
    CallForm("[TOOL_CALLS]", ("[",), "", _many),  # a tag that is a special token is no text
    CallForm('"parameters": dictionary', ("{", "<|python_tag|>"), "", _separated),
    CallForm("[func_name1(", ("[",), "", _pythonic),
)
_UNKNOWN = ("<function=", "[ARGS]")  # in templates with other forms within the same tags
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"\\]*)"\s*,\s*"arguments"\s*:\s*(?=\{)')
_MARKS = re.compile(r'\\.?|["{}]', re.DOTALL)


def call_form(tokenizer: PreTrainedTokenizerBase) -> CallForm | None:
    """The form in the chat template for tools; None if it has none that is known here.

    Raises ``NoChatTemplate``.
    """
    check_template(tokenizer)
    try:
        template = tokenizer.get_chat_template(tools=[{}])
    except ValueError:  # it has several, and none for tools
        return None
    if "tools" not in template or any(hint in template for hint in _UNKNOWN):
        return None
    return next((form for form in _FORMS if form.hint in template), None)


def call_finder(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> "CallFinder | None":
    """None if the output is only text."""
    if not isinstance(prompt, Chat) or not prompt.may_call:
        return None
    form = call_form(tokenizer)
    names = {tool["function"]["name"] for tool in prompt.tools}
    if form is None:
        return None
    return CallFinder(form, names, may_call_many=prompt.may_call_many)


def call_grammar(
    tokenizer: PreTrainedTokenizerBase, form: CallForm, *, may_call_many: bool
) -> str | None:
    """A Lark grammar of text with calls between tags; None for a form that has no tags.

    Both tags are written as text, or are tokens, which llguidance does not take as text. A token
    that tokenizers add for other uses, such as for reasoning, may come between the texts.
    """
    if not form.closing:
        return None
    [opening], closing = form.openings, form.closing
    added = tokenizer.get_added_vocab()
    hidden = {opening, closing, *tokenizer.all_special_tokens}
    others = sorted(added[token] for token in added.keys() - hidden)
    part = [f"part: TEXT <{others}>"] if others else []
    either = "(call | part)" if part else "call"
    return "\n".join(
        (
            "%llguidance {}",
            f"start: {either}* TEXT"
            if may_call_many
            else f"start: {'part* ' * len(part)}(call | TEXT)",
            "TEXT: /(.|\\n)*/",
            *part,
            f"written[lazy]: TEXT {json.dumps(opening)}",
            f"begin: written{_token(' | TEXT', added.get(opening))}",
            f"end: {json.dumps(closing)}{_token(' |', added.get(closing))}",
            f"call: begin GAP {JSON_OF_SCHEMA} GAP end",
            "GAP: /[ \\n\\r\\t]{0,4}/",
        )
    )


def _token(before: str, token_id: int | None) -> str:
    return "" if token_id is None else f"{before} <[{token_id}]>"


class _Arguments:
    """Finds the end of an object that is written in pieces."""

    def __init__(self, *, is_kept: bool) -> None:
        self.is_kept = is_kept  # by the finder
        self._depth = 0
        self._is_string = False

    def split(self, text: str) -> tuple[str, str, bool]:
        """What is of the object, what is not or is not yet known, and whether it has ended."""
        for mark in _MARKS.finditer(text):
            if mark[0] == "\\":  # of an escape whose second character is to come
                return text[: mark.start()], mark[0], False
            if mark[0] == '"':
                self._is_string = not self._is_string
            elif mark[0] in "{}" and not self._is_string:
                self._depth += 1 if mark[0] == "{" else -1
                if not self._depth:
                    return text[: mark.end()], text[mark.end() :], True
        return text, "", False


class CallFinder:
    """Separates the text of one output from its calls. What is no valid call remains text.

    The arguments of a call between tags are not checked, as its grammar has enforced them.
    """

    def __init__(self, form: CallForm, names: Collection[str], *, may_call_many: bool) -> None:
        self._form = form
        self._names = names
        self._may_call_many = may_call_many
        self._held = ""  # of which it is not yet known what it is
        self._is_text = False  # the whole output
        self._num_calls = 0
        self._arguments: _Arguments | None = None  # of the call that is being written
        self._is_closing = False  # behind its arguments

    @property
    def is_within_arguments(self) -> bool:
        return self._arguments is not None

    def push(self, text: str) -> tuple[str, list[CallPart]]:
        """The text and the parts of calls that this part of the output completes."""
        self._held += text
        return self._between_tags() if self._form.closing else (self._beginning(), [])

    def flush(self) -> tuple[str, list[CallPart]]:
        """The rest at the end of the output."""
        rest, self._held = self._held, ""
        if self._arguments is not None or self._is_closing:
            return "", []
        body = rest.strip()
        if self._form.closing and body.startswith(self._form.openings):
            body = body.removeprefix(self._form.openings[0])
        calls = [] if self._is_text else self._calls(body)
        is_gap = not rest.strip() and self._num_calls
        return ("" if calls or is_gap else rest), self._kept(calls)

    def _beginning(self) -> str:
        """What is to be sent of an output that is either text or calls."""
        start = self._held.lstrip()
        may_be_calls = any(
            start.startswith(opening) or opening.startswith(start)
            for opening in self._form.openings
        )
        self._is_text = self._is_text or not may_be_calls
        if not self._is_text:
            return ""
        text, self._held = self._held, ""
        return text

    def _between_tags(self) -> tuple[str, list[CallPart]]:
        texts: list[str] = []
        parts: list[CallPart] = []
        while self._takes_part(texts, parts):
            pass
        return "".join(texts), parts

    def _takes_part(self, texts: list[str], parts: list[CallPart]) -> bool:
        """Whether one more part of what is held was complete."""
        [opening], closing = self._form.openings, self._form.closing
        if self._arguments is not None:
            return self._takes_arguments(self._arguments, parts)
        if self._is_closing:
            _, end, rest = self._held.partition(closing)
            self._is_closing, self._held = not end, rest if end else self._held
            return bool(end)
        before, _, rest = self._held.partition(opening)
        head = _HEAD.match(rest)
        if head is not None and head[1] in self._names:
            texts.append(before.rstrip())
            begun = self._kept([(head[1], "")])
            parts += begun
            self._arguments, self._held = _Arguments(is_kept=bool(begun)), rest[head.end() :]
            return True
        body, end, after = rest.partition(closing)
        if not end:
            num_final = _num_final(self._held, opening)
            texts.append(self._held[:num_final])
            self._held = self._held[num_final:]
            return False
        calls = self._calls(body)
        texts.append(before.rstrip() if calls else f"{before}{opening}{body}{closing}")
        parts += self._kept(calls)
        self._held = after
        return True

    def _takes_arguments(self, arguments: _Arguments, parts: list[CallPart]) -> bool:
        """As ``_takes_part``, within the arguments of a call."""
        text, self._held, has_ended = arguments.split(self._held)
        if text and arguments.is_kept:
            parts.append(CallPart(self._num_calls - 1, None, None, text))
        if has_ended:
            self._arguments, self._is_closing = None, True
        return has_ended

    def _calls(self, body: str) -> list[tuple[str, str]]:
        """Names and arguments; none if anything is no call of one of the functions."""
        try:
            calls = list(self._form.parse(body))
            if not all(name in self._names and isinstance(args, dict) for name, args in calls):
                return []
            return [
                (name, json.dumps(args, ensure_ascii=False, allow_nan=False))
                for name, args in calls
            ]
        except _INVALID:
            return []

    def _kept(self, calls: list[tuple[str, str]]) -> list[CallPart]:
        """As parts, only one of them for the output if more are not wanted."""
        if not self._may_call_many:
            calls = calls[: 0 if self._num_calls else 1]
        first = self._num_calls
        self._num_calls += len(calls)
        return [
            CallPart(first + at, f"call_{uuid4().hex[:24]}", name, arguments)
            for at, (name, arguments) in enumerate(calls)
        ]


def _num_final(text: str, opening: str) -> int:
    """The length without a tag that may begin, and without white space in front of it."""
    end = text.find(opening)
    if end < 0:
        sizes = range(len(opening) - 1, 0, -1)
        begun = next((size for size in sizes if text.endswith(opening[:size])), 0)
        end = len(text) - begun
    return len(text[:end].rstrip())
