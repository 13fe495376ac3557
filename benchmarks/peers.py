"""The part of the serving benchmark that compares with vLLM and llama.cpp, over HTTP.

Each server is a program of its own, found on the ``PATH``, so it may live in any environment. All
get the same requests from the same load generator in turns, and those that wait are stopped.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any

from rich.console import Console

from benchmarks.latencies import Pass, SideRunner, median_tpot_s, performance, run_in_turn
from benchmarks.load import closed_loop
from benchmarks.plan import Baseline, PartResult, ServePlan, ServeSubject
from benchmarks.servers import Server, llama_server, paused, sleb_serve, vllm_serve
from benchmarks.workload import SampleRequest
from pruning.checkpoints.markdown import markdown_table

SLEB = "sleb serve"
_MIN_REQUESTS = 4  # of a closed loop
PROGRAMS: Mapping[Baseline, str] = {Baseline.VLLM: "vllm", Baseline.LLAMA_CPP: "llama-server"}
_RATIOS = MappingProxyType({Baseline.VLLM: "http_vs_vllm", Baseline.LLAMA_CPP: "http_vs_llama_cpp"})
_HEADINGS = ("clients", "tokens per second", "time to first token", "time per token")


Start = Callable[[], AbstractContextManager[Server]]
Closed = Mapping[int, Mapping[str, Sequence[Pass]]]  # passes of each side by number of clients


def peers(subject: ServeSubject, plan: ServePlan) -> PartResult:
    """Closed loops of each number of clients against ``sleb serve`` and the peers in turn."""
    asked = [peer for peer in PROGRAMS if peer in plan.against]
    programs = {peer: program for peer in asked if (program := shutil.which(PROGRAMS[peer]))}
    left_out = {peer: missing(peer) for peer in asked if peer not in programs}
    for message in left_out.values():
        Console(stderr=True, highlight=False).print(message)
    if not programs:
        return PartResult({"left_out": left_out})

    def requests(number: int) -> Sequence[SampleRequest]:
        return subject.prompts(plan).uniform(number, plan.prompt_len, plan.output_len)

    closed = closed_loops(
        _starts(subject, plan, programs), requests, plan.concurrency, plan.repeats
    )
    figures = {peer: rows(closed, peer) for peer in programs}
    details: dict[str, Any] = {
        "left_out": left_out,
        "against": figures,
        "closed_loop": {
            str(concurrency): {name: performance(timed) for name, timed in passes.items()}
            for concurrency, passes in closed.items()
        },
    }
    ratios = {_RATIOS[peer]: min(row["tokens_per_s"] for row in figures[peer]) for peer in programs}
    return PartResult(details, ratios, _markdown(figures))


def closed_loops(
    starts: Mapping[str, Start],
    requests: Callable[[int], Sequence[SampleRequest]],
    concurrency: Sequence[int],
    repeats: int,
) -> Closed:
    """Start all servers, and load them in turns from each number of clients."""
    with ExitStack() as stack:
        servers = {name: stack.enter_context(start()) for name, start in starts.items()}
        return {
            number: run_in_turn(
                {name: _alone(name, servers, number) for name in servers},
                requests(max(number, _MIN_REQUESTS)),
                repeats,
            )
            for number in concurrency
        }


def rows(closed: Closed, peer: str) -> list[dict[str, Any]]:
    """Our figures over those of this peer by number of clients, each the median of the turns, with
    the range for the rate."""
    found = []
    for number, passes in closed.items():
        pairs = list(zip(passes[SLEB], passes[peer], strict=True))
        rates = [ours.tokens_per_s / theirs.tokens_per_s for ours, theirs in pairs]
        of_number = {
            "clients": number,
            "tokens_per_s": median(rates),
            "from": min(rates),
            "to": max(rates),
            "ttft": median(_ttft_s(ours) / _ttft_s(theirs) for ours, theirs in pairs),
            "tpot": median(
                median_tpot_s([ours]) / median_tpot_s([theirs]) for ours, theirs in pairs
            ),
        }
        found.append(of_number)
    return found


def missing(peer: Baseline) -> str:
    """What to say about a peer that is not here."""
    return (
        f"{peer} is left out: there is no {PROGRAMS[peer]} on the PATH. Install it in an "
        f"environment of its own, and add its bin directory to the PATH."
    )


def _starts(
    subject: ServeSubject, plan: ServePlan, programs: Mapping[Baseline, str]
) -> Mapping[str, Start]:
    """How to start each server, ours first, with room for all clients at once."""
    model = (subject.path, subject.dtype, subject.threads)
    max_len, most = plan.prompt_len + plan.output_len, max(plan.concurrency)
    starts: dict[str, Start] = {SLEB: partial(sleb_serve, *model)}
    if program := programs.get(Baseline.VLLM):
        starts[Baseline.VLLM] = partial(vllm_serve, Path(program), *model, max_len, most)
    if program := programs.get(Baseline.LLAMA_CPP):
        starts[Baseline.LLAMA_CPP] = partial(llama_server, Path(program), *model, max_len, most)
    return starts


def _alone(name: str, servers: Mapping[str, Server], concurrency: int) -> SideRunner:
    """Load one server while all others are stopped: some of them poll while they are idle."""
    others = [server for other, server in servers.items() if other != name]

    def run(requests: Sequence[SampleRequest]) -> Pass:
        with paused(others):
            return closed_loop(servers[name], requests, concurrency)

    return run


def _ttft_s(one: Pass) -> float:
    return median(timing.ttft_s for timing in one.timings)


def _markdown(rows: Mapping[Baseline, Sequence[Mapping[str, Any]]]) -> str:
    parts = []
    for peer, of_peer in rows.items():
        cells = []
        for row in of_peer:
            rate = f"{row['tokens_per_s']:.2f} ({row['from']:.2f} to {row['to']:.2f})"
            cells.append((str(row["clients"]), rate, f"{row['ttft']:.2f}", f"{row['tpot']:.2f}"))
        parts.append(f"## sleb serve over {peer}\n\n{markdown_table(_HEADINGS, cells)}\n")
    return "\n".join(parts)
