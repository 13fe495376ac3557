"""``sleb compare``: the result of ``POST /compare`` as a table and texts."""

from collections.abc import Iterator, Mapping
from statistics import fmean
from string import ascii_uppercase
from typing import Any

from rich.console import Console
from rich.markup import escape

from app.commands.client import service_client
from app.commands.progress import search_progress
from app.terminal import plain_table, print_json

TIMEOUT_S = 600.0  # until the models are loaded, and between two events


def run_compare(url: str | None, body: dict[str, Any], *, as_json: bool) -> None:
    """Raises ``ServiceUnavailable`` or ``Refused``."""
    with service_client(url) as client, search_progress(Console(stderr=True)) as progress:
        task = progress.add_task("Turns of the models", total=None)

        def observe(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        comparison = client.work("/compare", body, observe, TIMEOUT_S)
    if as_json:
        print_json(comparison)
    else:
        print_comparison(comparison, body["prompt"])


def print_comparison(comparison: Mapping[str, Any], prompts: list[str]) -> None:
    """Print one row for each model, the reasons of the verdicts, and the outputs."""
    console = Console(highlight=False)
    table = plain_table("Speed-up: time of the baseline divided by time of the model")
    for heading in ("model", "ms per token", "speed-up", "first token", "same tokens"):
        table.add_column(heading, justify="left" if heading == "model" else "right", no_wrap=True)
    results = {result["model"]: result for result in comparison["results"]}
    named = dict(zip(ascii_uppercase, comparison["models"], strict=False))  # names are long
    for number, (letter, model) in enumerate(named.items()):
        outputs = [prompt["outputs"][number] for prompt in comparison["prompts"]]
        table.add_row(letter, *_cells(outputs, results.get(model)))
    console.print(table)
    if (control := comparison["control"]) is not None:
        console.print(
            f"control (the baseline against itself): speed-up {_speedup(control['tpot'])}, "
            f"first token {_speedup(control['ttft'])}, same tokens "
            f"{control['agreement']:.0%}"
        )
    for letter, model in named.items():
        console.print(f"{letter}: {model}{_verdict(results.get(model))}", markup=False)
    console.print(
        "95 % intervals in parentheses; same tokens: share of tokens before the first difference"
    )
    for prompt, text in zip(comparison["prompts"], prompts, strict=True):
        console.print(f"\n[bold]{escape(text)}[/]")
        for letter, output in zip(named, prompt["outputs"], strict=True):
            console.print(f"[dim]{letter}:[/]{escape(output['text'])}")


def _cells(outputs: list[dict[str, Any]], result: Mapping[str, Any] | None) -> Iterator[str]:
    times_s = [times["tpot_s"] for output in outputs for times in output["timings"]]
    known = [time_s for time_s in times_s if time_s is not None]
    yield f"{1e3 * fmean(known):.1f}" if known else ""
    if result is None:
        yield from ("baseline", "", "")
        return
    yield _speedup(result["tpot"])
    yield _speedup(result["ttft"])
    yield f"{result['agreement']:.0%}"


def _speedup(speedup: Mapping[str, Any] | None) -> str:
    """The ratio with its interval, if there is one."""
    if speedup is None:
        return ""
    interval = "" if speedup["low"] is None else f" ({speedup['low']:.2f} to {speedup['high']:.2f})"
    return f"{speedup['ratio']:.2f}{interval}"


def _verdict(result: Mapping[str, Any] | None) -> str:
    """In words, with the reason; nothing for the baseline."""
    speedup = result and result["tpot"]
    return f", {speedup['verdict']} per token: {speedup['reason']}" if speedup else ""
