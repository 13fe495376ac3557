"""``sleb chat``: a conversation with a model of a running service."""

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.control import Control
from rich.segment import ControlType

from app.commands.client import Refused, ServiceClient, service_client

Messages = list[dict[str, str]]
_COMPARE, _SHOW_HELP, _BYE, _END = "/compare", "/help", "/bye", "[DONE]"
_HELP = (
    "/compare OTHER sends your last message to another model, /help shows this "
    "text, and /bye or Ctrl-D ends the chat."
)


def run_chat(url: str | None, model: str, options: dict[str, Any]) -> None:
    """Read messages until the end of the input. Raises ``ServiceUnavailable`` or ``Refused``."""
    console = Console(highlight=False)
    with service_client(url) as client:
        client.request("GET", f"/models/{model}")  # refuses an unknown name at once
        console.print(_HELP, style="dim")
        Conversation(client, model, options, console).run(lambda: console.input("[bold]> [/]"))


@dataclass
class Conversation:
    """The ``messages`` so far. A model answers to all of them."""

    client: ServiceClient
    model: str
    options: dict[str, Any]
    console: Console
    clock: Callable[[], float] = time.monotonic
    messages: Messages = field(default_factory=list)
    num_tokens: int = 0  # of the last answer, once the service has said so

    def run(self, read: Callable[[], str]) -> None:
        """Answer to what ``read`` returns, until it raises ``EOFError``."""
        while True:
            try:
                text = read().strip()
            except EOFError:
                self.console.print()  # the shell goes on below the prompt
                return
            command, _, argument = text.partition(" ")
            if command == _BYE:
                return
            if command == _SHOW_HELP:
                self.console.print(_HELP, style="dim")
            elif command == _COMPARE:
                self._compare(argument.strip())
            elif command.startswith("/"):
                self.console.print(f"unknown command {command}. {_HELP}", style="dim", markup=False)
            elif text:
                self._say(text)

    def _say(self, text: str) -> None:
        """Have the model answer. A message that the service refuses is not kept."""
        messages = [*self.messages, {"role": "user", "content": text}]
        try:
            answer = self._answer(self.model, messages)
        except Refused as error:
            self.console.print(str(error), markup=False)
        else:
            self.messages = [*messages, {"role": "assistant", "content": answer}]

    def _compare(self, other: str) -> None:
        """Have ``other`` answer to the last message. Its answer is not in the conversation."""
        if not other or len(self.messages) < 2:
            self.console.print("send a message first, then use /compare OTHER", style="dim")
            return
        try:
            self._answer(other, self.messages[:-1])
        except Refused as error:
            self.console.print(str(error), markup=False)

    def _answer(self, model: str, messages: Messages) -> str:
        """Print the answer as it arrives, and return it. Ctrl-C stops it."""
        self.console.print(f"{model}:", style="dim", markup=False)
        text, began_s, self.num_tokens = "", 0.0, 0
        try:
            deltas = filter(None, self._deltas(model, messages))
            with self.console.status("waiting for the first token"):
                first = next(deltas, "")
            began_s = self.clock()
            words = WrappedWords(self.console)
            for delta in chain([first], deltas):
                words.show(delta)
                text += delta
        except KeyboardInterrupt:
            pass
        self.console.print()
        seconds = self.clock() - began_s
        if self.num_tokens > 1 and seconds > 0:  # of the tokens behind the first one
            pace = (self.num_tokens - 1) / seconds
            self.console.print(f"{self.num_tokens} tokens, {pace:.1f} tokens/s", style="dim")
        return text

    def _deltas(self, model: str, messages: Messages) -> Iterator[str]:
        body = {
            "model": model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.options,
        }
        for data in self.client.events("/v1/chat/completions", body=body):
            if data == _END:
                return
            chunk = json.loads(data)
            if "error" in chunk:
                raise Refused(chunk["error"]["message"])
            if usage := chunk.get("usage"):
                self.num_tokens = usage["completion_tokens"]
            for choice in chunk["choices"]:
                yield choice["delta"].get("content") or ""


class WrappedWords:
    """Shows text as it arrives, in lines that end between words.

    A word that grows beyond the end of its line is moved to the next one.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._width = console.width - 1  # in the last column a terminal may have wrapped already
        self._column = 0
        self._word_cells = 0
        self._word = ""

    def show(self, delta: str) -> None:
        if not self._console.is_terminal:
            self._write(delta)
            return
        for part in re.findall(r"\n|[^\S\n]|\S+", delta):
            if part.isspace():
                self._space(part)
            else:
                self._grow(part)

    def _space(self, space: str) -> None:
        self._word, self._word_cells = "", 0
        if space == "\n" or self._column >= self._width:
            self._write("\n")
            self._column = 0
        else:
            self._write(" ")
            self._column += 1

    def _grow(self, part: str) -> None:
        cells = cell_len(part)
        grown = self._word_cells + cells
        if self._column + cells > self._width >= grown:
            if self._word:
                back = (ControlType.CURSOR_BACKWARD, self._word_cells)
                self._console.control(Control(back, (ControlType.ERASE_IN_LINE, 0)))
            self._write(f"\n{self._word}")
            self._column = self._word_cells
        self._write(part)
        self._word += part
        self._word_cells = grown
        self._column += cells

    def _write(self, text: str) -> None:
        self._console.print(text, end="", markup=False, soft_wrap=True)
