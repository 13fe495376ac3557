"""A group of commands whose help has whole sentences: click cuts them at the width of a line."""

from typing import Any

from typer.core import TyperGroup


class WholeHelp(TyperGroup):
    """Lists each command with the first sentence of its help, in as many lines as it takes."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401 - typer's context has no public name
        command = super().get_command(ctx, cmd_name)
        if command is not None and not command.short_help and command.help:
            command.short_help = _first_sentence(command.help)
        return command


def _first_sentence(text: str) -> str:
    paragraph = " ".join(text.split("\n\n", maxsplit=1)[0].split())
    sentence, dot, _ = paragraph.partition(". ")
    return sentence if dot else paragraph.removesuffix(".")
