"""Clients that send all kinds of requests except jobs, including invalid and abandoned ones.

Each kind of request has one expected outcome, whatever happens to workers and Redis.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from random import Random
from typing import Any

import httpx2

from tests.soak.tally import Tally

NUM_CLIENTS = 8
_THINK_S = 0.1  # maximum between a response and the next request
_ABANDON_S = 0.03  # time after which a client abandons its request
_MODELS = ("tiny", "tiny@-1", "tiny@-2")
_SHAPES: tuple[Mapping[str, Any], ...] = (
    {"max_new_tokens": 4},
    {"max_new_tokens": 24, "temperature": 1.0, "top_p": 0.9},
    {"prompt": ["the dog", "the quick brown fox", "a"], "logprobs": 2},
    {"max_new_tokens": 40, "stop": ["e", "o", "a", "i"]},
    {"max_new_tokens": 60, "timeout_s": 0.001},
)
_BAD: tuple[tuple[str, Mapping[str, Any], int], ...] = (
    ("/generate", {"model": "unknown"}, 404),
    ("/generate", {"model": "tiny@-5"}, 404),
    ("/generate", {"max_new_tokens": 100_000}, 422),
    ("/generate", {"temperature": -1}, 422),
    ("/generate", {"prompt": []}, 422),
    ("/generate", {"prompt": "x" * 5_000_000}, 413),
    ("/generate", {"colour": "red"}, 422),
    ("/compare", {"models": ["tiny"]}, 422),
    ("/prune-jobs", {"num_remove": 0}, 422),
    ("/v1/completions", {"max_tokens": -1}, 400),
)

Kind = Callable[[httpx2.Client, Random], str]


def _body(random: Random, **change: Any) -> dict[str, Any]:
    return {"model": random.choice(_MODELS), "prompt": "the dog", **change}


def _generate(client: httpx2.Client, random: Random) -> str:
    answer = client.post("/generate", json=_body(random, **random.choice(_SHAPES)))
    return _status(answer, 200)


def _stream(client: httpx2.Client, random: Random) -> str:
    body = _body(random, max_new_tokens=24, stream=True)
    with client.stream("POST", "/generate", json=body) as answer:
        events = [line for line in answer.iter_lines() if line.startswith("event: ")]
    assert events[-1:] == ["event: done"], f"a stream ended with {events[-1:]}"
    return _status(answer, 200)


def _leave_stream(client: httpx2.Client, random: Random) -> str:
    body = _body(random, max_new_tokens=200, ignore_eos=True, stream=True)
    with client.stream("POST", "/generate", json=body) as answer:
        next(answer.iter_lines())
    return f"{_status(answer, 200)}, left"


def _leave(client: httpx2.Client, random: Random) -> str:
    body = _body(random, max_new_tokens=200, ignore_eos=True)
    try:
        answer = client.post("/generate", json=body, timeout=_ABANDON_S)
    except httpx2.TimeoutException:
        return "left"
    return _status(answer, 200)


def _compare(client: httpx2.Client, random: Random) -> str:
    models = ["tiny", random.choice(_MODELS[1:])]
    body = {"models": models, "prompt": "the dog", "max_new_tokens": 8, "repeats": 2}
    return _status(client.post("/compare", json=body), 200)


def _complete(client: httpx2.Client, random: Random) -> str:
    body = _body(random, max_tokens=8)
    return _status(client.post("/v1/completions", json=body), 200)


def _bad(client: httpx2.Client, random: Random) -> str:
    path, change, status = random.choice(_BAD)
    content = json.dumps(_body(random, **change))
    headers = {"content-type": "application/json"}
    return _status(client.post(path, content=content, headers=headers), status)


def _look(client: httpx2.Client, random: Random) -> str:
    return _status(client.get(random.choice(("/metrics", "/models", "/health/ready"))), 200)


KINDS: Mapping[str, tuple[int, Kind]] = {  # relative frequency
    "generate": (8, _generate),
    "stream": (4, _stream),
    "leave a stream": (2, _leave_stream),
    "leave": (2, _leave),
    "compare": (1, _compare),
    "OpenAI's API": (2, _complete),
    "bad input": (3, _bad),
    "look": (2, _look),
}


def _status(answer: httpx2.Response, expected: int) -> str:
    if answer.status_code != expected:
        answer.read()
        raise AssertionError(f"{answer.status_code} instead of {expected}: {answer.text[:500]}")
    return str(answer.status_code)


def ask(kind: str, client: httpx2.Client, random: Random, tally: Tally) -> None:
    """Send one request and count it. An unexpected outcome is a failure."""
    began_s = time.perf_counter()
    try:
        outcome = KINDS[kind][1](client, random)
    except (AssertionError, httpx2.TransportError) as error:
        outcome = "failed"
        tally.failed(f"{kind}: {type(error).__name__} {error}")
    tally.add(kind, outcome, time.perf_counter() - began_s)


@contextmanager
def traffic(url: str, tally: Tally) -> Iterator[None]:
    """Run all clients until the end of the block."""
    is_over = threading.Event()

    def run(seed: int) -> None:
        random = Random(seed)
        weights = [weight for weight, _ in KINDS.values()]
        with httpx2.Client(base_url=url) as client:
            while not is_over.wait(random.uniform(0, _THINK_S)):
                (kind,) = random.choices([*KINDS], weights)
                ask(kind, client, random, tally)

    with ThreadPoolExecutor(NUM_CLIENTS) as threads:
        running: list[Future[None]] = [threads.submit(run, seed) for seed in range(NUM_CLIENTS)]
        try:
            yield
        finally:
            is_over.set()
    for client in running:
        client.result()
