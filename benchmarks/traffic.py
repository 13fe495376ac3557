"""The parts of the serving benchmark with traffic like that of users, against vLLM over HTTP.

Prompts begin alike, conversations grow, and a long prompt comes beside short ones. Both servers
reuse prefixes. They get the same requests in turns, new ones in each turn.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from app.compare.speedup import alternate
from benchmarks.load import Answer, Client, clients_at_once
from benchmarks.peers import PROGRAMS, SLEB, missing
from benchmarks.plan import Baseline, Part, PartResult, ServePlan, ServeSubject, TrafficSizes
from benchmarks.servers import Server, paused, sleb_serve, vllm_serve
from benchmarks.workload import Prompts, SampleRequest
from pruning.checkpoints.markdown import markdown_table

_MAX_NUM_SEQS = 64  # of vLLM, as ours by default
_SIDES = (SLEB, Baseline.VLLM)


@dataclass
class Traffic:
    """One turn of one side."""

    seconds: float = 0.0
    num_requests: int = 0
    ttfts_s: list[float] = field(default_factory=list)  # of short requests
    long_ttfts_s: list[float] = field(default_factory=list)
    num_known: int = 0  # tokens of prompts that were in earlier requests or their outputs
    num_cached: int = 0  # tokens of prompts that were not read again

    def take(self, answer: Answer, num_known: int, *, is_long: bool = False) -> None:
        self.num_requests += 1
        self.num_known += num_known
        self.num_cached += answer.num_cached
        ttfts_s = self.long_ttfts_s if is_long else self.ttfts_s
        ttfts_s.append(answer.timing.ttft_s)

    @property
    def requests_per_s(self) -> float:
        return self.num_requests / self.seconds

    @property
    def median_ttft_s(self) -> float:
        return median(self.ttfts_s)

    @property
    def hits(self) -> float | None:
        """The share of what could be reused. None if nothing could."""
        return self.num_cached / self.num_known if self.num_known else None


Clients = Callable[[Prompts, ServeSubject, TrafficSizes], Callable[[Traffic], Sequence[Client]]]


def traffic(part: Part, subject: ServeSubject, plan: ServePlan) -> PartResult:
    """Turns of ``sleb serve`` and of vLLM with the clients of this part."""
    program = shutil.which(PROGRAMS[Baseline.VLLM]) if Baseline.VLLM in plan.against else None
    if program is None and Baseline.VLLM in plan.against:
        Console(stderr=True, highlight=False).print(missing(Baseline.VLLM))
    turns = _turns(_CLIENTS[part], subject, plan, program)
    sides = {name: _figures(of_side) for name, of_side in turns.items()}
    hits = sides[SLEB]["hits"]
    ratios: dict[str, float | None] = {} if hits is None else {f"{part}_hits": hits}
    rows = []
    if program is not None:
        rows = _rows(turns)
        names = ("vs_vllm", "ttft_vs_vllm", "worst_ttft_vs_vllm")
        ratios |= {f"{part}_{name}": row["ratio"] for name, row in zip(names, rows, strict=True)}
    return PartResult({"sides": sides, "against": rows}, ratios, _markdown(part, sides, rows))


def _turns(
    clients: Clients, subject: ServeSubject, plan: ServePlan, program: str | None
) -> Mapping[str, Sequence[Traffic]]:
    """Start the servers, and load them in turns after a warm-up with other prompts."""
    model = (subject.path, subject.dtype, subject.threads)
    sizes, prompts = plan.traffic, subject.prompts(plan)
    with ExitStack() as stack:
        servers = {SLEB: stack.enter_context(sleb_serve(*model))}
        if program is not None:
            start = partial(vllm_serve, Path(program), *model, reuses_prefixes=True)
            limits = (subject.dense.max_model_len, _MAX_NUM_SEQS)
            servers[Baseline.VLLM] = stack.enter_context(start(*limits))
        warm_up = replace(sizes, num_rounds=1, num_turns=1, output_len=2)
        short = clients(prompts, subject, warm_up)
        for name in servers:
            _run(name, servers, short)
        made = [clients(prompts, subject, sizes) for _ in range(plan.repeats)]
        turns: dict[str, list[Traffic]] = {name: [] for name in servers}
        for repeat, name in alternate(list(servers), plan.repeats):
            turns[name].append(_run(name, servers, made[repeat]))
            _say(repeat, name, turns[name][-1])
    return turns


def _run(
    name: str, servers: Mapping[str, Server], make: Callable[[Traffic], Sequence[Client]]
) -> Traffic:
    """Load one server while the other is stopped."""
    run = Traffic()
    with paused(server for other, server in servers.items() if other != name):
        run.seconds = clients_at_once(servers[name], make(run))
    return run


def _prefix(
    prompts: Prompts, _subject: ServeSubject, sizes: TrafficSizes
) -> Callable[[Traffic], Sequence[Client]]:
    """Clients whose prompts all begin alike."""
    (shared,) = prompts.uniform(1, sizes.shared_len, sizes.output_len)
    number = sizes.prefix_clients * sizes.num_rounds
    requests = [
        SampleRequest(shared.text + own.text, shared.prompt_ids + own.prompt_ids, sizes.output_len)
        for own in prompts.uniform(number, sizes.own_len, sizes.output_len)
    ]

    def client(run: Traffic, own: Sequence[SampleRequest]) -> Client:
        for request in own:
            answer = yield request
            num_known = 0 if request is requests[0] else sizes.shared_len
            run.take(answer, num_known)

    return lambda run: [client(run, own) for own in _dealt(requests, sizes.prefix_clients)]


def _chat(
    prompts: Prompts, subject: ServeSubject, sizes: TrafficSizes
) -> Callable[[Traffic], Sequence[Client]]:
    """Conversations: each turn has all turns before it, with their answers, and something new."""
    number = sizes.chat_clients * sizes.num_turns
    new = prompts.uniform(number, sizes.turn_len, sizes.output_len)

    def client(run: Traffic, turns: Sequence[SampleRequest]) -> Client:
        text, ids = "", tuple[int, ...]()
        for turn in turns:
            num_known = len(ids)
            text, ids = text + turn.text, ids + turn.prompt_ids
            answer = yield SampleRequest(text, ids, sizes.output_len)
            run.take(answer, num_known)
            said = subject.tokenizer(answer.text, add_special_tokens=False, verbose=False)
            text, ids = text + answer.text, (*ids, *said.input_ids)

    return lambda run: [client(run, turns) for turns in _dealt(new, sizes.chat_clients)]


def _long(
    prompts: Prompts, _subject: ServeSubject, sizes: TrafficSizes
) -> Callable[[Traffic], Sequence[Client]]:
    """A client with one long prompt, and others with short ones."""
    (long,) = prompts.uniform(1, sizes.long_len, sizes.output_len)
    number = sizes.short_clients * sizes.num_rounds
    short = prompts.uniform(number, sizes.short_len, sizes.output_len)

    def client(run: Traffic, own: Sequence[SampleRequest]) -> Client:
        for request in own:
            answer = yield request
            run.take(answer, 0, is_long=request is long)

    return lambda run: [client(run, own) for own in ([long], *_dealt(short, sizes.short_clients))]


_CLIENTS: Mapping[Part, Clients] = {Part.PREFIX: _prefix, Part.CHAT: _chat, Part.LONG: _long}


def _dealt(requests: Sequence[SampleRequest], number: int) -> Iterator[Sequence[SampleRequest]]:
    """As many for each of a number of clients."""
    return (requests[at::number] for at in range(number))


def _figures(turns: Sequence[Traffic]) -> dict[str, Any]:
    """Medians of the turns of a side, and the worst of all."""
    hits = [hits for one in turns if (hits := one.hits) is not None]
    long_s = [each for one in turns for each in one.long_ttfts_s]
    return {
        "requests_per_s": median(one.requests_per_s for one in turns),
        "ttft_s": median(one.median_ttft_s for one in turns),
        "worst_ttft_s": median(max(one.ttfts_s) for one in turns),
        "long_ttft_s": median(long_s) if long_s else None,
        "hits": min(hits) if hits else None,
        "turns": [
            {
                "seconds": round(one.seconds, 3),
                "requests": one.num_requests,
                "ttfts_s": [round(each, 4) for each in one.ttfts_s],
                "known_tokens": one.num_known,
                "cached_tokens": one.num_cached,
            }
            for one in turns
        ],
    }


def _rows(turns: Mapping[str, Sequence[Traffic]]) -> list[dict[str, Any]]:
    """Ours over theirs: medians of the turns, with their range."""
    pairs = list(zip(*(turns[side] for side in _SIDES), strict=True))
    of: Mapping[str, Callable[[Traffic], float]] = {
        "requests per second": lambda one: one.requests_per_s,
        "time to first token, median": lambda one: one.median_ttft_s,
        "time to first token, worst": lambda one: max(one.ttfts_s),
    }
    rows = []
    for name, value in of.items():
        ratios = [value(ours) / value(theirs) for ours, theirs in pairs]
        ends = {"from": min(ratios), "to": max(ratios)}
        rows.append({"figure": name, "ratio": median(ratios), **ends})
    return rows


def _markdown(
    part: Part, sides: Mapping[str, Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> str:
    header = ("side", "requests/s", "first token, s", "worst", "of the long one", "hits")
    keys = ("requests_per_s", "ttft_s", "worst_ttft_s", "long_ttft_s", "hits")
    cells = [
        [name, *("" if side[key] is None else f"{side[key]:.2f}" for key in keys)]
        for name, side in sides.items()
    ]
    lines = [f"## {part}", "", markdown_table(header, cells, 1)]
    lines += [
        f"\n{row['figure']}, ours over vLLM's: {row['ratio']:.2f} "
        f"({row['from']:.2f} to {row['to']:.2f})"
        for row in rows
    ]
    return "\n".join([*lines, ""])


def _say(repeat: int, name: str, one: Traffic) -> None:
    Console(stderr=True, highlight=False).print(
        f"turn {repeat + 1}, {name}: {one.requests_per_s:.2f} requests/s, first token "
        f"{one.median_ttft_s:.2f} s, worst {max(one.ttfts_s):.2f} s, hits {one.hits}"
    )
