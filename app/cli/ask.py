"""``sleb compare`` and ``sleb chat``: ask a running service for outputs. Imports are lazy."""

from typing import Annotated

import typer

from app.cli.options import AsJson, Url


def compare(
    models: Annotated[
        list[str],
        typer.Argument(help="Two or more variants of one model; the first is the baseline."),
    ],
    prompt: Annotated[list[str], typer.Option(help="Prompt to send; repeatable.")] = ["The sea is"],  # noqa: B006 - typer needs a list, and never changes it
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Number of new tokens per output.")
    ] = 32,
    repeats: Annotated[
        int, typer.Option(min=1, help="Repeats per prompt; more repeats give narrower intervals.")
    ] = 5,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Compare outputs and latency of several variants in a running service.

    All outputs have the same length, and the models generate in turn. Verdicts need several
    repeats.
    """
    from app.commands.compare import run_compare

    run_compare(
        url,
        {
            "models": models,
            "prompt": prompt,
            "max_new_tokens": max_new_tokens,
            "repeats": repeats,
            "ignore_eos": True,
        },
        as_json=as_json,
    )


def chat(
    model: Annotated[str, typer.Argument(help="Model or alias in the service.")],
    max_tokens: Annotated[
        int,
        typer.Option(
            min=1, help="Maximum number of new tokens; the context length is a limit too."
        ),
    ] = 256,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="Sampling temperature; 0 means greedy decoding.")
    ] = 0.0,
    url: Url = None,
) -> None:
    """Chat with a model of a running service; /compare OTHER also asks a second model.

    The speed in tokens per second is shown below each answer. Ctrl-C stops an answer, Ctrl-D ends
    the chat.
    """
    from app.commands.chat import run_chat

    run_chat(url, model, {"max_tokens": max_tokens, "temperature": temperature})
