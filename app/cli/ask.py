"""``sleb compare`` and ``sleb chat``: ask a running service for outputs. Imports are lazy."""

from typing import Annotated

import typer

from app.cli.options import AsJson, Url


def compare(
    models: Annotated[
        list[str], typer.Argument(help="Two or more variants of one model, the baseline first.")
    ],
    prompt: Annotated[list[str], typer.Option(help="A prompt; can be repeated.")] = ["The sea is"],  # noqa: B006 - typer needs a list, and never changes it
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of every output.")] = 32,
    repeats: Annotated[
        int, typer.Option(min=1, help="Repeats of every prompt, by which intervals get narrow.")
    ] = 5,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Compare outputs and times of several variants in a running service.

    All outputs have the same length, and the models run in turn. Verdicts need several repeats.
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
    model: Annotated[str, typer.Argument(help="A model of the service, or an alias.")],
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Longest answer; the rest of the context limits it too.")
    ] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy decoding.")] = 0.0,
    url: Url = None,
) -> None:
    """Talk to a model of a running service. /compare OTHER has another model answer too.

    Below each answer are its tokens per second. Ctrl-C stops an answer, and Ctrl-D the
    conversation.
    """
    from app.commands.chat import run_chat

    run_chat(url, model, {"max_tokens": max_tokens, "temperature": temperature})
