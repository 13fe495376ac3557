"""``sleb chat``: a conversation with a model of a running service."""

import json
import re
import time
from collections.abc import Callable, Iterator
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
    "/compare OTHER has another model answer to your last message, /help says this, and /bye or "
    "Ctrl-D ends."
)


def run_chat(url: str | None, model: str, options: dict[str, Any]) -> None:
    """Read messages until the end of the input. Raises ``ServiceUnavailable`` or ``Refused``."""
    console = Console(highlight=False)
    with service_client(url) as client:
        client.request("GET", f"/models/{model}")  # refuses an unknown name at once
        console.print(_HELP, style="dim")
        Conversation(client, model, options, console).run(lambda: console.input("[bold]> [/]"))


class Conversation:
    """The messages so far. A model answers to all of them."""

    def __init__(
        self,
        client: ServiceClient,
        model: str,
        options: dict[str, Any],
        console: Console,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.messages: Messages = []
        self._client = client
        self._model = model
        self._options = options
        self._console = console
        self._clock = clock
        self._num_tokens = 0  # of the last answer, once the service has said so

    def run(self, read: Callable[[], str]) -> None:
        """Answer to what ``read`` returns, until it raises ``EOFError``."""
        while True:
            try:
                text = read().strip()
            except EOFError:
                self._console.print()  # the shell goes on below the prompt
                return
            command, _, argument = text.partition(" ")
            if command == _BYE:
                return
            if command == _SHOW_HELP:
                self._console.print(_HELP, style="dim")
            elif command == _COMPARE:
                self._compare(argument.strip())
            elif command.startswith("/"):
                self._console.print(f"{command} is no command. {_HELP}", style="dim", markup=False)
            elif text:
                self._say(text)

    def _say(self, text: str) -> None:
        """Have the model answer. A message that the service refuses is not kept."""
        messages = [*self.messages, {"role": "user", "content": text}]
        try:
            answer = self._answer(self._model, messages)
        except Refused as error:
            self._console.print(str(error), markup=False)
        else:
            self.messages = [*messages, {"role": "assistant", "content": answer}]

    def _compare(self, other: str) -> None:
        """Have ``other`` answer to the last message. Its answer is not in the conversation."""
        if not other or len(self.messages) < 2:
            self._console.print("say something first, then: /compare OTHER", style="dim")
            return
        try:
            self._answer(other, self.messages[:-1])
        except Refused as error:
            self._console.print(str(error), markup=False)

    def _answer(self, model: str, messages: Messages) -> str:
        """Print the answer as it arrives, and return it. Ctrl-C stops it."""
        self._console.print(f"{model}:", style="dim", markup=False)
        text, began_s, self._num_tokens = "", 0.0, 0
        try:
            deltas = filter(None, self._deltas(model, messages))
            with self._console.status("waiting for its first token"):
                first = next(deltas, "")
            began_s = self._clock()
            words = WrappedWords(self._console)
            for delta in chain([first], deltas):
                words.show(delta)
                text += delta
        except KeyboardInterrupt:
            pass
        self._console.print()
        self._say_pace(self._clock() - began_s)
        return text

    def _say_pace(self, seconds: float) -> None:
        """Say how fast the tokens behind the first one came. Nothing of an answer that was cut."""
        if self._num_tokens > 1 and seconds > 0:
            pace = (self._num_tokens - 1) / seconds
            self._console.print(f"{self._num_tokens} tokens, {pace:.1f} a second", style="dim")

    def _deltas(self, model: str, messages: Messages) -> Iterator[str]:
        body = {
            "model": model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._options,
        }
        for data in self._client.events("/v1/chat/completions", body=body):
            if data == _END:
                return
            chunk = json.loads(data)
            if "error" in chunk:
                raise Refused(chunk["error"]["message"])
            if usage := chunk.get("usage"):
                self._num_tokens = usage["completion_tokens"]
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
