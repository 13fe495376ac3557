"""What the demo prints at its end: one table, one completion from each side, where to go next."""

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from app.commands.comparison import PROMPTS, Side
from app.terminal import print_json


def print_report(job: dict[str, Any], dense: Side, pruned: Side, *, as_json: bool) -> None:
    measured = dense.tpot_s / pruned.tpot_s
    ideal = dense.model["num_blocks"] / pruned.model["num_blocks"]
    if as_json:
        speedup = {"measured": measured, "ideal": ideal}
        sides = {"dense": asdict(dense), "pruned": asdict(pruned)}
        print_json({"job": job, **sides, "speedup": speedup})
        return
    table = Table(title="What pruning bought, and what it cost")
    for heading in ("", "dense", "pruned", "gain"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, left, right, ratio in _rows(dense, pruned):
        table.add_row(name, left, right, ratio)
    table.add_section()
    table.add_row("speed-up, measured", "", "", f"[bold]{measured:.2f}×[/]")
    table.add_row("speed-up, ideal (blocks)", "", "", f"{ideal:.2f}×")
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"perplexity: {pruned.model['evaluated_on']}; times: medians over requests of "
        f"{len(PROMPTS)} prompts, dense and pruned in turn"
    )
    for title, side in (("dense", dense), ("pruned", pruned)):
        text = f"[dim]{PROMPTS[0]}[/]{_escaped(side.completion)}"
        console.print(Panel(text, title=f"{title}: {side.model['id']}", title_align="left"))


def _rows(dense: Side, pruned: Side) -> list[tuple[str, str, str, str]]:
    def row(name: str, left: float, right: float, form: str) -> tuple[str, str, str, str]:
        return name, form.format(left), form.format(right), f"{left / right:.2f}×"

    left, right = dense.model, pruned.model
    return [
        row("transformer blocks", left["num_blocks"], right["num_blocks"], "{:d}"),
        row("parameters", left["num_parameters"], right["num_parameters"], "{:,d}"),
        row("perplexity", left["perplexity"], right["perplexity"], "{:.2f}"),
        row("time to first token", dense.ttft_s * 1e3, pruned.ttft_s * 1e3, "{:.0f} ms"),
        row("time per output token", dense.tpot_s * 1e3, pruned.tpot_s * 1e3, "{:.1f} ms"),
        (
            "tokens per second",
            f"{dense.tokens_per_s:.1f}",
            f"{pruned.tokens_per_s:.1f}",
            f"{pruned.tokens_per_s / dense.tokens_per_s:.2f}×",  # the one where more is better
        ),
    ]


def print_next_steps(console: Console, url: str, job_id: str, *, is_running: bool) -> None:
    hint = "" if is_running else " (while it runs: make demo KEEP=1)"
    console.print(
        f"\n[bold]Where to go next[/]{hint}\n"
        f"  API documentation  {url}/docs\n"
        f"  metrics            {url}/metrics\n"
        f"  the job            curl {url}/prune-jobs/{job_id}\n"
        f"  all variants       curl {url}/models\n"
        f"  a completion       curl {url}/generate -H 'content-type: application/json' \\\n"
        f"""                       -d '{{"model": "smollm2-135m@-3", "prompt": "The sea is"}}'""",
        soft_wrap=True,  # so that a line can be copied
    )


def _escaped(text: str) -> str:
    return text.replace("[", "\\[")
