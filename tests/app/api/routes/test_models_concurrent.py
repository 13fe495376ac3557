"""While one model is being read, only the requests for it wait."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient

from app.config import ServeSettings
from pruning.models.store import LoadedModel, ModelStore, NotAModel
from tests.support.api_fixtures import publish_pruned
from tests.support.generate_requests import generate
from tests.support.model_requests import load, model, num_bytes, unload
from tests.support.serving import local_api
from tests.support.tiny_directory import write_tiny_model
from tests.support.waiting import wait_until

MANY = 48  # more than the event loop has threads


class SlowStore:
    """Reads the model named slow only when its gate opens, and fails on it if told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate = Event()
        self.has_begun = Event()
        self.is_broken = False
        self.num_reads = 0  # of the slow model
        self.reading: list[str] = []
        self.was_shared = False  # whether two were ever read at once
        read = ModelStore.load

        def load(store: ModelStore, name: str, **options: Any) -> LoadedModel:
            self.was_shared |= bool(self.reading)
            self.reading.append(name)
            try:
                if name == "slow":
                    self._hold_up()
                return read(store, name, **options)
            finally:
                self.reading.remove(name)

        monkeypatch.setattr(ModelStore, "load", load)

    def _hold_up(self) -> None:
        self.num_reads += 1
        self.has_begun.set()
        assert self.gate.wait(100)
        if self.is_broken:
            raise NotAModel("the disk has a hole")


@pytest.fixture
def store(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowStore]:
    for seed, name in enumerate(("slow", "third"), start=1):
        write_tiny_model(data_dir / "models" / name, seed=seed)
    store = SlowStore(monkeypatch)
    yield store
    store.gate.set()


@pytest.fixture
def client(
    settings: ServeSettings,
    redis_url: str,
    redis_client: redis.Redis,
    store: SlowStore,
    tiny_loaded: LoadedModel,
) -> Iterator[TestClient]:
    """With room for three models at most."""
    redis_client.ping()
    room = 3 * num_bytes(tiny_loaded)
    with local_api(settings, redis_url, preload=("tiny",), max_weight_bytes=room) as client:
        yield client
        store.gate.set()


def test_a_loaded_model_is_served_while_another_is_read_once_for_all_who_ask(
    client: TestClient, store: SlowStore, data_dir: Path
) -> None:
    publish_pruned(data_dir)
    with ThreadPoolExecutor(MANY) as pool:
        try:
            waiting = [pool.submit(load, client, "slow") for _ in range(MANY)]
            assert store.has_begun.wait(100)
            for name in ("tiny", "tiny@-1", "tiny@-2"):
                generate(client, model=name, max_new_tokens=3)
            assert not model(client, "slow")["is_loaded"]
            assert 'sleb_model_weight_bytes{model_name="tiny"}' in client.get("/metrics").text
            assert unload(client, "tiny").status_code == 204
            assert not any(future.done() for future in waiting)
        finally:
            store.gate.set()
        assert {future.result().status_code for future in waiting} == {200}
    assert store.num_reads == 1
    generate(client, model="slow")


def test_a_third_model_is_read_after_the_second(client: TestClient, store: SlowStore) -> None:
    """As loading changes global state of torch, no two do at once."""
    with ThreadPoolExecutor() as pool:
        try:
            waiting = [pool.submit(load, client, name) for name in ("slow", "third")]
            wait_until(lambda: num_loading() == 2, "both have begun")
        finally:
            store.gate.set()
        assert [future.result().status_code for future in waiting] == [200, 200]
    assert not store.was_shared


def num_loading() -> int:
    return sum(thread.name == "load" for thread in threading.enumerate())


def test_what_is_being_read_has_its_room_and_cannot_be_unloaded(
    client: TestClient, store: SlowStore, data_dir: Path
) -> None:
    write_tiny_model(data_dir / "models" / "fourth")
    with ThreadPoolExecutor() as pool:
        try:
            waiting = pool.submit(load, client, "slow")
            assert store.has_begun.wait(100)
            answer = unload(client, "slow")
            assert (answer.status_code, answer.json()["type"]) == (409, "model-loading")
            also = pool.submit(load, client, "third")
            wait_until(lambda: num_loading() == 2, "both have begun")
            assert load(client, "fourth").status_code == 507
        finally:
            store.gate.set()
        assert waiting.result().status_code == also.result().status_code == 200
    assert unload(client, "slow").status_code == 204
    assert load(client, "fourth").status_code == 200


def test_a_failure_is_told_to_all_who_wait_and_forgotten(
    client: TestClient, store: SlowStore
) -> None:
    store.is_broken = True
    with ThreadPoolExecutor() as pool:
        try:
            waiting = [pool.submit(load, client, "slow") for _ in range(4)]
            assert store.has_begun.wait(100)
        finally:
            store.gate.set()
        for future in waiting:
            assert future.result().status_code == 422
            assert "a hole" in future.result().json()["detail"]
    store.is_broken = False
    assert load(client, "slow").status_code == 200


def test_who_gives_up_waiting_takes_nothing_from_the_others(
    client: TestClient, store: SlowStore
) -> None:
    generator = client.app_state["services"].generation.generator

    async def give_up() -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                await generator.load("slow")

    with ThreadPoolExecutor() as pool:
        try:
            waiting = pool.submit(load, client, "slow")
            assert store.has_begun.wait(100)
            assert client.portal is not None
            client.portal.call(give_up)
        finally:
            store.gate.set()
        assert waiting.result().status_code == 200
    assert store.num_reads == 1
