"""What attacks cost everybody else: probes of liveness and one usual client, beside each attack.

A real ``sleb serve`` is attacked from another address of this machine, by one process of low
priority, for a few seconds each. In front of each attack both are measured without it.
"""

import json
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from http.client import HTTPConnection, HTTPException
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from threading import Event, Thread
from typing import Annotated, Any
from urllib.parse import urlsplit

import httpx2
import numpy as np
import typer

from app.api.problems import MAX_NESTED
from benchmarks.reports import facts, model_store, write
from benchmarks.servers import Server, no_server_left, sleb_serve
from pruning.checkpoints.markdown import markdown_table
from pruning.models.demo_model import NAME

MAX_PROBE_MS, MAX_RATIO = 100.0, 3.0
ATTACKER, US = "127.0.0.2", "127.0.0.1"
PROBE_EVERY_S = 0.02
NUM_TOKENS = 16
_TIMEOUT_S = 60.0
_GRACE_S = 5.0  # for the process of the attackers to say what it was answered
_PERCENTILES = (50, 90, 99, 100)
_NONE = (float("inf"),) * len(_PERCENTILES)  # where no probe was answered
_NICENESS = 19
_LONG_TEXT = b"the dog sees a cat. " * 200_000  # 4 MB


@dataclass(frozen=True)
class Target:
    """The server, seen from one address."""

    host: str
    port: int
    model: str
    job: str  # which no worker takes
    source: str

    def post(self, path: str, body: Mapping[str, Any]) -> int:
        """The status of the answer."""
        return self.post_bytes(path, json.dumps({"model": self.model, **body}).encode())

    def post_bytes(self, path: str, body: bytes) -> int:
        return self._request("POST", path, body)

    def get(self, path: str) -> int:
        return self._request("GET", path, None)

    def _request(self, method: str, path: str, body: bytes | None) -> int:
        address = (self.source, 0)
        connection = HTTPConnection(self.host, self.port, _TIMEOUT_S, source_address=address)
        try:
            headers = {"Content-Type": "application/json", "Host": "localhost"}
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()

    def send_and_wait(self, part: bytes, times: int = 1, *, reads: bool = True) -> int:
        """Send this, and read until the server ends the connection. 0 if it sends no status."""
        address, from_us = (self.host, self.port), (self.source, 0)
        with socket.create_connection(address, _TIMEOUT_S, from_us) as connection:
            connection.sendall(part * times)
            if not reads:
                _pause(_TIMEOUT_S)
            words = connection.recv(4_096).split(b" ", 2)
            while connection.recv(65_536):
                pass
            return int(words[1]) if len(words) > 1 else 0


@dataclass(frozen=True)
class Attack:
    """What each of so many clients does, again and again, with another number each time."""

    num_clients: int
    act: Callable[[Target, int], int]


def _with_schema(schema: Callable[[int], Mapping[str, Any]]) -> Callable[[Target, int], int]:
    def act(target: Target, number: int) -> int:
        wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema(number)}}
        body = {"prompt": "a", "max_new_tokens": 24, "response_format": wanted}
        return target.post("/generate", body)

    return act


def _failing(number: int) -> Mapping[str, Any]:
    return {"type": "string", "pattern": f"[\\p{{L}}\\p{{N}}]{{{9_000 + number % 999}}}"}


def _many(number: int) -> Mapping[str, Any]:
    properties = {f"p{number}x{each}": {"type": "integer"} for each in range(1_800)}
    return {"type": "object", "properties": properties}


def _endless(number: int) -> Mapping[str, Any]:
    return {"type": "integer", "multipleOf": 999_983 - 2 * number}


def _nested(target: Target, _number: int) -> int:
    return target.post("/generate", {"prompt": [[]] * (MAX_NESTED - 20)})


def _long_text(target: Target, number: int) -> int:
    return target.post_bytes(
        "/generate",
        b'{"model":"%s","prompt":"%d %s"}' % (target.model.encode(), number, _LONG_TEXT),
    )


_HALF_HEAD = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: appl"
_HALF_BODY = _HALF_HEAD + b"ication/json\r\nContent-Length: 100\r\n\r\n{"
_EVENTS = (
    "GET /prune-jobs/{}/events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n"
    "Connection: close\r\n\r\n"
)
_UNREAD = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"

ATTACKS: Mapping[str, Attack] = {
    "schemas whose matcher fails": Attack(8, _with_schema(_failing)),
    "schemas of 1,800 properties": Attack(8, _with_schema(_many)),
    "schemas that compile for minutes": Attack(8, _with_schema(_endless)),
    "texts of 4 MB": Attack(16, _long_text),
    "nested bodies": Attack(8, _nested),
    "half heads": Attack(500, lambda target, _: target.send_and_wait(_HALF_HEAD)),
    "half bodies": Attack(400, lambda target, _: target.send_and_wait(_HALF_BODY)),
    "silent connections": Attack(500, lambda target, _: target.send_and_wait(b"")),
    "streams of events": Attack(
        1_200, lambda target, _: target.send_and_wait(_EVENTS.format(target.job).encode())
    ),
    "answers that are not read": Attack(
        50, lambda target, _: target.send_and_wait(_UNREAD, 40, reads=False)
    ),
}


@dataclass(frozen=True)
class Measured:
    """Milliseconds of probes and of requests; ``refused`` are statuses other than 200."""

    probes_ms: Sequence[float]
    requests_ms: Sequence[float]
    refused: Mapping[str, int]


@dataclass(frozen=True)
class Row:
    """One attack, and the time before it."""

    attack: str
    calm: Measured
    attacked: Measured
    answers: Mapping[str, int]  # to the attackers, by status

    @property
    def ratio(self) -> float:
        """How much longer a request takes, by medians."""
        if not (self.attacked.requests_ms and self.calm.requests_ms):
            return float("inf")
        return median(self.attacked.requests_ms) / median(self.calm.requests_ms)

    @property
    def holds(self) -> bool:
        """Whether all probes, and the other client, got what they should."""
        slowest_ms = max(self.attacked.probes_ms, default=float("inf"))
        return slowest_ms <= MAX_PROBE_MS and self.ratio <= MAX_RATIO and not self.attacked.refused


def main(
    out: Annotated[Path, typer.Option(help="Where to write the JSON, with a table beside it.")],
    model: Annotated[str, typer.Option(help="Name or directory.")] = NAME,
    seconds: Annotated[float, typer.Option(help="Of each attack, and half before it.")] = 10.0,
    only: Annotated[str, typer.Option(help="A part of the names of the attacks.")] = "",
    dtype: str = "bfloat16",
    threads: Annotated[int | None, typer.Option(help="Of the service; by default its own.")] = None,
) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    path = model_store(model).path(model)
    rows = []
    with no_server_left(), sleb_serve(path, dtype, threads) as server:
        us = _target(server)
        measured(us, seconds / 4)  # warms up
        for name in ATTACKS:
            if only in name:
                rows.append(attacked(us, name, seconds))
                print(*_cells(rows[-1]), sep=" | ", flush=True)  # noqa: T201 - it takes minutes
    report = {
        **facts("liveness"),
        "seconds": seconds,
        "attacks": [{**asdict(row), "ratio": row.ratio, "holds": row.holds} for row in rows],
    }
    write(report, out, markdown(rows))


def attacked(us: Target, name: str, seconds: float) -> Row:
    """Measure without this attack, and then with it."""
    calm = measured(us, seconds / 2)
    context = get_context("spawn")
    answers = context.Queue()
    arguments = (name, replace(us, source=ATTACKER), seconds + 1, answers)
    attackers = context.Process(target=attack, args=arguments)
    attackers.start()
    answers.get(timeout=_TIMEOUT_S)  # it has begun
    try:
        beside = measured(us, seconds)
        answer = answers.get(timeout=seconds + _GRACE_S)
    finally:
        attackers.kill()
        attackers.join()
    while us.post("/v1/completions", {"prompt": "a", "max_tokens": 1}) != 200:
        _pause(PROBE_EVERY_S)
    return Row(name, calm, beside, answer)


def attack(name: str, target: Target, seconds: float, answers: Any) -> None:  # noqa: ANN401 - a queue of any context
    """Attack for so long, with all clients at once, and end without waiting for them.

    The queue gets a first word at the beginning, and at the end how often which answer came.
    """
    _leave_the_processors()
    of_status: Counter[str] = Counter()
    numbers, are_all_there = count(), Event()

    def client() -> None:
        are_all_there.wait()
        while True:
            try:
                status = str(ATTACKS[name].act(target, next(numbers)))
            except (OSError, HTTPException) as error:
                status = type(error).__name__
                _pause(PROBE_EVERY_S)
            of_status[status] += 1

    for _ in range(ATTACKS[name].num_clients):
        Thread(target=client, daemon=True).start()
    answers.put("begun")
    are_all_there.set()
    _pause(seconds)
    answers.put(dict(of_status))
    answers.close()
    answers.join_thread()
    os._exit(0)


def _leave_the_processors() -> None:
    """Attackers have machines of their own: what they compute must not be the server's time.

    Where Linux groups processes by session, niceness is that of the group.
    """
    os.nice(_NICENESS)
    os.setsid()
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(_NICENESS), encoding="ascii")


def measured(target: Target, seconds: float) -> Measured:
    """Ask for health all the time, and for a completion after the other."""
    is_over = Event()
    with ThreadPoolExecutor(2) as pool:
        probes = pool.submit(_times_ms, lambda: target.get("/health/live"), is_over, PROBE_EVERY_S)
        body = {"prompt": "a b c", "max_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True}
        requests = pool.submit(_times_ms, lambda: target.post("/v1/completions", body), is_over)
        _pause(seconds)
        is_over.set()
        (probes_ms, refused), (requests_ms, others) = probes.result(), requests.result()
    failures = {f"health {status}": number for status, number in refused.items()}
    return Measured(probes_ms, requests_ms, {**failures, **others})


def _times_ms(
    ask: Callable[[], int], is_over: Event, pause_s: float = 0.0
) -> tuple[list[float], dict[str, int]]:
    """Milliseconds of those answered with 200, and how many others there were by status."""
    times_ms: list[float] = []
    refused: Counter[str] = Counter()
    while not is_over.is_set():
        began_s = time.perf_counter()
        status = "no answer"
        with suppress(OSError, HTTPException):
            status = str(ask())
        if status == "200":
            times_ms.append((time.perf_counter() - began_s) * 1e3)
        else:
            refused[status] += 1
        is_over.wait(pause_s)
    return times_ms, dict(refused)


def _pause(seconds: float) -> None:
    Event().wait(seconds)


def _target(server: Server) -> Target:
    """The server as seen from our address, with a job."""
    address = urlsplit(server.url)
    assert address.hostname
    assert address.port
    body = {"model": server.model, "num_remove": 1}
    job = httpx2.post(f"{server.url}/prune-jobs", json=body).raise_for_status().json()["id"]
    return Target(address.hostname, address.port, server.model, job, US)


def markdown(rows: Sequence[Row]) -> str:
    """A row for each attack."""
    names = " / ".join("max" if q == 100 else f"p{q}" for q in _PERCENTILES)
    times = (f"liveness, {names} ms", "request, ms before → beside", "ratio", "holds")
    return markdown_table(("attack", *times), map(_cells, rows), 1)


def _cells(row: Row) -> Sequence[str]:
    percentiles = (
        np.percentile(row.attacked.probes_ms, _PERCENTILES) if row.attacked.probes_ms else _NONE
    )
    probes = " / ".join(f"{ms:.0f}" for ms in percentiles)
    before, beside = (
        f"{median(of.requests_ms):.0f}" if of.requests_ms else "none"
        for of in (row.calm, row.attacked)
    )
    refused = ", ".join(f"{number} × {status}" for status, number in row.attacked.refused.items())
    verdict = "yes" if row.holds else f"no {refused}".rstrip()
    return row.attack, probes, f"{before} → {beside}", f"{row.ratio:.2f}", verdict


if __name__ == "__main__":
    typer.run(main)
