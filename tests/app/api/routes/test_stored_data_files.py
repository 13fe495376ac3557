"""Small files of the data directory that somebody damages while the API runs, or before it starts.

A route answers as before if the file is not about its record. What is about it may be refused.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.auth.keys import KeyFile, Scope
from app.auth.sessions import GENERATIONS
from app.config import ServeSettings
from app.models.aliases import FILE as ALIASES
from app.models.aliases import Aliases
from app.models.measured_speedups import FILE as SPEEDUPS
from app.models.measured_speedups import Measurand, MeasuredSpeedup, MeasuredSpeedups
from app.results.store import ResultKind, ResultStore
from pruning.models.inspection_record import FILE as INSPECTIONS
from pruning.models.store import ModelStore
from tests.support.api_fixtures import publish_pruned
from tests.support.mutations import mutations
from tests.support.quick import slow_but
from tests.support.serving import LocalClient, local_api

KEYS = "keys.json"
LIVE = (KEYS, ALIASES, SPEEDUPS, GENERATIONS)  # read while the API runs
INSPECTED = f"models/{INSPECTIONS}"
AT_START = (KEYS, ALIASES, INSPECTED)
BODY = {"model": "tiny", "prompt": "a", "max_new_tokens": 1}
JOB = {"model": "tiny", "num_remove": 1, "dry_run": True}
PRUNED = "tiny@prn-1"
Ask = Callable[[LocalClient], tuple[int, str]]


def getting(path: str) -> Ask:
    return lambda client: ((found := client.get(path)).status_code, found.text)


def posting(path: str, body: dict[str, object]) -> Ask:
    return lambda client: ((found := client.post(path, json=body)).status_code, found.text)


ASKED: dict[str, Ask] = {
    path: getting(path)
    for path in (
        "/models", "/models/tiny", f"/models/{PRUNED}", "/v1/models", "/v1/models/tiny",
        "/results", "/prune-jobs", "/status", "/metrics", "/ui", "/session", "/health/live",
    )
} | {
    "/generate": posting("/generate", BODY),
    "/generate pruned": posting("/generate", {**BODY, "model": PRUNED}),
    "/v1/completions": posting("/v1/completions", {"model": "tiny", "prompt": "a"}),
    "/prune-jobs dry": posting("/prune-jobs", JOB),
}  # fmt: skip
ABOUT = {  # what may be refused, as the file is about it
    KEYS: (401, 403, 429),  # of any route: the caller is in it
    GENERATIONS: (401,),
}


@pytest.fixture
def data(data_dir: Path) -> Path:
    publish_pruned(data_dir)
    measured = MeasuredSpeedup(1.5, 1.4, 1.6, "decode", 1.0)
    MeasuredSpeedups(data_dir).record("tiny", {Measurand(1): measured, Measurand(3): measured})
    ResultStore(data_dir).keep(ResultKind.BENCH, "tiny", "faster", {"runs": [1]})
    return data_dir


@pytest.fixture
def key(data: Path) -> str:
    keys = KeyFile(data / KEYS)
    keys.create("other", [Scope.GENERATE], rate_per_min=5, tenant="b", expires_at=2e9)
    return keys.create("root", [Scope.ADMIN])


@pytest.fixture
def client(key: str, settings: ServeSettings, redis_url: str) -> Iterator[LocalClient]:
    with local_api(settings, redis_url, preload=("tiny",)) as client:
        sign_in(client, key)
        client.delete("/session", headers={"Origin": "http://localhost"})  # makes its file
        client.headers["Authorization"] = f"Bearer {key}"
        assert client.put("/models/chat", json={"target": "tiny@-1"}).status_code == 200
        assert all(ask(client)[0] == 200 for ask in ASKED.values())
        yield client


def sign_in(client: LocalClient, key: str) -> None:
    client.headers["Origin"] = "http://localhost"
    assert client.post("/session", json={"key": key}).status_code == 200


@pytest.mark.parametrize("name", slow_but(LIVE, "aliases.json", "keys.json"))
def test_no_file_breaks_a_route_of_another_record(
    client: LocalClient, data: Path, key: str, name: str, num_mutations: int
) -> None:
    """Each changed file is read by one route or another, in turn."""
    if name == GENERATIONS:  # by the cookie
        sign_in(client, key)
        del client.headers["Authorization"]
    file = data / name
    good = file.read_text()
    asked = list(ASKED.items())
    for number, text in enumerate(mutations(json.loads(good), num_mutations)):
        file.write_text(text, encoding="utf-8", errors="surrogatepass")
        of_turn = asked if number % 50 == 0 else [asked[number % len(asked)]]
        for route, ask in of_turn:
            status, answer = ask(client)
            assert status == 200 or status in ABOUT.get(name, ()), (route, answer, text[:2_000])
    file.write_text(good)
    if name == GENERATIONS:
        client.headers["Authorization"] = f"Bearer {key}"
    assert all(ask(client)[0] == 200 for ask in ASKED.values())


@pytest.mark.parametrize("name", AT_START)
def test_no_file_keeps_the_api_from_starting(
    data: Path, key: str, settings: ServeSettings, redis_url: str, name: str, num_mutations: int
) -> None:
    """A start takes long, so one of fifty stands for all."""
    ModelStore(data / "models").inspect("tiny")
    Aliases(data).set("chat", "tiny@-1")
    file = data / name
    for number, text in enumerate(mutations(json.loads(file.read_text()), num_mutations)):
        if number % 50 == 0:
            file.write_text(text, encoding="utf-8", errors="surrogatepass")
            with local_api(settings, redis_url, preload=("tiny",)) as client:
                client.headers["Authorization"] = f"Bearer {key}"
                status, answer = ASKED["/generate"](client)
                assert status == 200 or status in ABOUT.get(name, ()), (answer, text[:2_000])
