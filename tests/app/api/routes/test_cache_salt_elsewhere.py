"""``cache_salt`` for models of other servers: what they are sent, and what is refused."""

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient

from app.auth.keys import KeyFile
from app.config import PrefixCache, ServeSettings
from tests.support.auth import Headers, team_keys
from tests.support.external import FakeServer, declare, fake_server
from tests.support.serving import local_api


@pytest.fixture
def fake(settings: ServeSettings) -> Iterator[FakeServer]:
    """The server of three models, and the last one is not declared to take a salt."""
    with fake_server() as found:
        declare(settings.data_dir, "salted", found.base_url, takes_cache_salt=True)
        declare(settings.data_dir, "unsalted", found.base_url, takes_cache_salt=False)
        declare(settings.data_dir, "odd", found.base_url)
        yield found


def ask(
    client: TestClient, model: str, headers: Headers | None = None, **more: Any
) -> httpx2.Response:
    body = {"model": model, "prompt": "the dog", "max_tokens": 3, **more}
    answer: Any = client.post("/v1/completions", json=body, headers=headers)
    found: httpx2.Response = answer
    return found


def sent(fake: FakeServer) -> list[str | None]:
    """The salt of each request that the server got."""
    return [asked.body.get("cache_salt") for asked in fake.asked]


def test_a_salt_is_handed_on_to_a_server_that_takes_it(
    fake: FakeServer, settings: ServeSettings, redis_url: str
) -> None:
    with local_api(settings, redis_url) as client:
        for salt in ({}, {"cache_salt": "mine"}, {"cache_salt": None}):
            assert ask(client, "salted", **salt).status_code == 200
        body = {"model": "salted", "messages": [{"role": "user", "content": "a"}]}
        client.post("/v1/chat/completions", json={**body, "cache_salt": "mine"})
        own = {"model": "salted", "prompt": "the dog", "cache_salt": "mine"}
        assert client.post("/generate", json=own).status_code == 200
    assert sent(fake) == [None, "mine", None, "mine", "mine"]


@pytest.mark.parametrize("model", ["unsalted", "odd"])
def test_a_salt_is_refused_by_name_where_a_server_is_not_declared_to_take_it(
    fake: FakeServer, settings: ServeSettings, redis_url: str, model: str
) -> None:
    with local_api(settings, redis_url) as client:
        refused = ask(client, model, cache_salt="mine")
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "cache_salt"
        assert "takes_cache_salt" in refused.json()["error"]["message"]
        own = {"model": model, "prompt": "the dog", "cache_salt": "mine"}
        answer = client.post("/generate", json=own)
        assert (answer.status_code, answer.json()["param"]) == (422, "cache_salt")
        assert ask(client, model).status_code == 200
    assert sent(fake) == [None]


@pytest.mark.parametrize("mode", ["on", "off", "shared"])
def test_tenants_are_apart_on_the_other_server_too(
    fake: FakeServer, settings: ServeSettings, redis_url: str, mode: PrefixCache
) -> None:
    keys = team_keys(KeyFile(settings.keys_file))
    with local_api(settings, redis_url, prefix_cache=mode) as client:
        for name in ("ann", "bob", "eve"):
            for salt in ({}, {"cache_salt": "mine"}):
                assert ask(client, "salted", keys[name], **salt).status_code == 200
            assert ask(client, "odd", keys[name]).status_code == 200
    ann, bob, eve = (sent(fake)[at : at + 3] for at in (0, 3, 6))
    assert ann == bob
    if mode == "shared":
        assert ann == eve == [None, "mine", None]
    else:
        *salts, of_the_odd_one = [*ann[:2], *eve]
        assert len(set(salts)) == 4
        assert of_the_odd_one is None
        assert all(salt and not {"team", "eve", "mine"} & {salt} for salt in salts)
