"""The report of a run on a GPU as Markdown: a table for each part, and what went wrong."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pruning.checkpoints.markdown import markdown_table

Part = Mapping[str, Any]


def markdown(report: Mapping[str, Any]) -> str:
    """All parts that were run, in the order in which they ran."""
    parts = report["parts"]
    machine = ", ".join(f"{name}: {value}" for name, value in report["machine"].items())
    lines = ["# Measurements on a GPU", "", machine, ""]
    for name, lines_of in _TABLES.items():
        if name in parts:
            lines += [f"## {name}, {report['seconds'][name]} s", "", *lines_of(parts[name]), ""]
    if report["comparison"]:
        lines += ["## Predicted and measured", "", *report["comparison"], ""]
    if report["problems"]:
        lines += ["## What failed", ""]
        for name, problem in report["problems"].items():
            lines += [f"{name}:", "", "```text", problem.rstrip(), "```", ""]
    if report["warnings"]:
        lines += ["## Warnings", ""]
        for name, messages in report["warnings"].items():
            lines += [f"- {name}: {' '.join(message.split())}" for message in messages]
        lines.append("")
    return "\n".join(lines)


def _table(head: str, rows: Sequence[Sequence[object]]) -> list[str]:
    cells = [list(map(_cell, row)) for row in rows]
    return [markdown_table(head.split(" | "), cells)]


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _families(part: Part) -> list[str]:
    rows = [
        (family, dtype, f"{of['same']} of {of['requests']}", of["recorded"], of["replayed"])
        for family, by_dtype in part.items()
        for dtype, of in by_dtype.items()
    ]
    return _table("family | type | same tokens | recorded | replayed", rows)


def _steps(part: Part) -> list[str]:
    first = (
        f"Weights of {part['weight_bytes'] / 1e9:.3g} GB at {part['bytes_per_s'] / 1e9:.4g} GB/s. "
        "Milliseconds of a step; the floor is the time to read all weights."
    )
    head = "sequences | with graphs | without | without / with | floor | with graphs / floor"
    rows = [
        (one["sequences"], one["graphs_ms"], one["one kernel at a time_ms"], one["ratio"],
         one["floor_ms"], one["over_floor"])
        for one in part["rows"]
    ]  # fmt: skip
    return [first, "", *_table(head, rows)]


def _int8(part: Part) -> list[str]:
    rows = [
        (one["sequences"], one["one kernel at a time_ms"], one["int8_ms"], one["ratio"])
        for one in part["rows"]
    ]
    lines = _table("sequences | plain, ms | int8, ms | plain / int8", rows)
    products = [f"- {shape}: {', '.join(names)}" for shape, names in part["products"].items()]
    return [*lines, "", "Products by shape, for 1, 2, 4 ... rows:", "", *products]


def _generate(part: Part) -> list[str]:
    row = (part["engine_tokens_per_s"], part["generate_tokens_per_s"], part["ratio"])
    return _table("engine, tokens/s | generate, tokens/s | ratio", [row])


def _pruned(part: Part) -> list[str]:
    first = f"Without {part['num_removed']} of {part['num_blocks']} blocks, dense over pruned."
    rows = [(name, part[name], part["paper"][name]) for name in ("generation", "prompt")]
    return [first, "", *_table("speed-up | here | paper, 70B without 20 %", rows)]


def _search(part: Part) -> list[str]:
    rows = [
        (name, of["num_windows"], of["seqlen"], of["round_s"], of["search_of_windows"],
         of["search_s"])
        for name, of in part.items()
    ]  # fmt: skip
    head = "mode | windows | tokens each | first round, s | windows of a search | at most, s"
    last = "A search is its first pass and as many first rounds as blocks, times the windows."
    return [*_table(head, rows), "", last]


def _stream(part: Part) -> list[str]:
    row = (part["num_blocks"], part["round_s"], part["load_s"], part["pass_s"],
           part["whole_depth"], part["whole_round_s"])  # fmt: skip
    head = "blocks | round, s | load of a block, s | pass, s | of blocks | round then, s"
    last = "The whole round is the longer one of all loads and all passes."
    return [*_table(head, [row]), "", last]


def _heal(part: Part) -> list[str]:
    row = (part["num_parameters"], part["num_kept"], part["batch_tokens"], part["tokens_per_s"])
    peak = f"Peak {part['bytes']['peak'] / 1e9:.3g} GB, {part['bytes']['ratio']:.2f} of the sum."
    head = "parameters | blocks kept | tokens of a step | tokens per second"
    return [*_table(head, [row]), "", peak]


def _vllm(part: Part) -> list[str]:
    if "left_out" in part:
        return [part["left_out"]]
    rows = [(one["clients"], one["tokens_per_s"], one["ttft"], one["tpot"]) for one in part["rows"]]
    head = "clients | tokens per second | time to first token | time per token"
    return ["The service over vLLM.", "", *_table(head, rows)]


_TABLES: Mapping[str, Callable[[Part], list[str]]] = {
    "families": _families,
    "steps": _steps,
    "generate": _generate,
    "pruned": _pruned,
    "search": _search,
    "int8": _int8,
    "stream": _stream,
    "heal": _heal,
    "vllm": _vllm,
}
