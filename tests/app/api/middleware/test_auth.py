"""The API with keys: who gets in, what the others are told, and what is remembered of a key."""

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import httpx2
import openai
import pytest
import redis
from fastapi.testclient import TestClient
from starlette.types import Message

from app.api.middleware import AuthMiddleware
from app.auth.keys import KeyFile, Scope, caller
from app.auth.scopes import authorizer_of
from app.commands.client import Refused, ServiceClient
from app.config import ServeSettings
from app.server.serve import log_fields
from pruning.logs import set_up_logging
from tests.support.prune_requests import JOB
from tests.support.serving import serving
from tests.support.waiting import wait_until

GENERATE = {"model": "tiny", "prompt": "the dog", "max_new_tokens": 2}
# what each scope is good for; the jobs and models of these paths are not there
CALLS: Mapping[tuple[str, str], set[str]] = {
    ("POST", "/generate"): {"generate", "admin"},
    ("POST", "/compare"): {"generate", "admin"},
    ("POST", "/evals"): {"generate", "admin"},
    ("GET", "/v1/models"): {"generate", "admin"},
    ("GET", "/v1/models/none"): {"generate", "admin"},
    ("POST", "/v1/completions"): {"generate", "admin"},
    ("POST", "/v1/chat/completions"): {"generate", "admin"},
    ("GET", "/prune-jobs"): {"jobs", "admin"},
    ("POST", "/prune-jobs"): {"jobs", "admin"},
    ("GET", "/prune-jobs/prn-1/events"): {"jobs", "admin"},
    ("GET", "/prune-jobs/prn-1/checkpoints/x"): {"jobs", "admin"},
    ("DELETE", "/prune-jobs/prn-1"): {"jobs", "admin"},
    ("GET", "/models"): {"generate", "jobs", "admin"},
    ("GET", "/models/none"): {"generate", "jobs", "admin"},
    ("GET", "/status"): {"generate", "jobs", "admin"},
    ("POST", "/models/none/load"): {"admin"},
    ("POST", "/models/none/unload"): {"admin"},
    ("GET", "/nowhere"): {"admin"},
}


@pytest.fixture
def settings(data_dir: Path) -> ServeSettings:
    return ServeSettings(data_dir=data_dir, max_num_seqs=8, max_waiting=4, drain_s=0, preload=())


@pytest.fixture
def keys(settings: ServeSettings) -> dict[str, str]:
    """One of each scope, named as the scope."""
    file = KeyFile(settings.keys_file)
    return {scope.value: file.create(scope.value, [scope]) for scope in Scope}


def auth(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_every_call_needs_its_scope(client: TestClient, keys: dict[str, str]) -> None:
    for (method, path), scopes in CALLS.items():
        for scope, key in keys.items():
            answer = client.request(method, path, headers=auth(key))
            expected = scope in scopes
            assert (answer.status_code not in (401, 403)) == expected, (method, path, scope)
            assert answer.status_code < 500
            if not expected:
                assert answer.status_code == 403
                assert "insufficient_scope" in answer.headers["www-authenticate"]
        for headers in ({}, auth("sleb_" + "x" * 43), auth(keys["admin"] + "x")):
            answer = client.request(method, path, headers=headers)
            assert answer.status_code == 401, (method, path)
            assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.usefixtures("keys")
def test_what_is_open_to_anybody(client: TestClient) -> None:
    for path in ("/health/live", "/health/ready", "/version", "/metrics", "/openapi.json", "/docs"):
        assert client.get(path).status_code == 200, path


def test_refusals_are_problems_and_on_v1_as_openai_has_them(
    client: TestClient, keys: dict[str, str]
) -> None:
    refused = client.post("/generate", content=b"{")
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.headers["x-request-id"]
    assert (refused.json()["type"], refused.json()["status"]) == ("invalid-api-key", 401)
    missing = client.post("/generate", json=GENERATE, headers=auth(keys["jobs"])).json()
    assert (missing["type"], missing["status"]) == ("scope-missing", 403)
    api = openai.OpenAI(
        base_url="http://localhost/v1", api_key="none", max_retries=0, http_client=client
    )
    with pytest.raises(openai.AuthenticationError) as wrong:
        api.models.list()
    assert (wrong.value.code, wrong.value.type) == ("invalid_api_key", "authentication_error")
    with pytest.raises(openai.PermissionDeniedError) as other:
        api.with_options(api_key=keys["jobs"]).models.list()
    assert other.value.code == "scope_missing"
    good = api.with_options(api_key=keys["generate"])
    assert good.completions.create(model="tiny", prompt="the dog", max_tokens=2).choices


async def never(*_: Any) -> NoReturn:
    raise AssertionError("this was not to be asked")


def test_a_refusal_reads_no_body_and_asks_no_route(settings: ServeSettings) -> None:
    KeyFile(settings.keys_file).create("a", [Scope.ADMIN])
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/generate", "headers": []}
    asyncio.run(AuthMiddleware(never, authorizer_of(settings))(scope, never, send))
    assert sent[0]["status"] == 401


def test_a_revocation_counts_from_the_next_request_on(
    client: TestClient, keys: dict[str, str], settings: ServeSettings
) -> None:
    assert client.get("/models", headers=auth(keys["jobs"])).status_code == 200
    KeyFile(settings.keys_file).revoke("jobs")
    assert client.get("/models", headers=auth(keys["jobs"])).status_code == 401
    assert client.get("/models", headers=auth(keys["admin"])).status_code == 200


def test_keys_are_asked_for_from_the_first_one_on(
    client: TestClient, settings: ServeSettings
) -> None:
    assert client.get("/models").status_code == 200
    assert "security" not in client.get("/openapi.json").json()["paths"]["/models"]["get"]
    KeyFile(settings.keys_file).create("a", [Scope.JOBS])
    assert client.get("/models").status_code == 401
    described = client.get("/openapi.json").json()
    assert described["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    paths = described["paths"]
    assert paths["/models"]["get"]["security"] == [{"bearer": ["admin", "generate", "jobs"]}]
    assert paths["/models/{name}/load"]["post"]["security"] == [{"bearer": ["admin"]}]
    answers = paths["/generate"]["post"]["responses"]
    assert {"401", "403"} <= answers.keys()
    assert "Too many requests" in answers["429"]["description"]
    assert "The rate limit of this API key is exceeded" in answers["429"]["description"]
    assert "Retry-After" in paths["/models"]["get"]["responses"]["429"]["headers"]
    assert "security" not in paths["/metrics"]["get"]


def test_an_idempotency_key_belongs_to_its_sender(client: TestClient, keys: dict[str, str]) -> None:
    def post(key: str, **change: Any) -> httpx2.Response:
        headers = {"Idempotency-Key": "k", **auth(key)}
        return client.post("/prune-jobs", json={**JOB, **change}, headers=headers)

    mine, again, others = post(keys["jobs"]), post(keys["jobs"]), post(keys["admin"])
    assert mine.json()["id"] == again.json()["id"] != others.json()["id"]
    assert post(keys["admin"], num_remove=1).status_code == 422
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in others.headers


def test_logs_name_the_key_and_never_show_it(
    client: TestClient,
    keys: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor the prompt, or what was answered."""
    own = logging.getLogger()
    monkeypatch.setattr(own, "handlers", [])
    before = own.level
    set_up_logging("debug", "text", log_fields)
    wrong, prompt = "sleb_" + "w" * 43, "a-secret-prompt"
    client.get("/models", headers=auth(wrong))
    client.post("/generate", json=GENERATE, headers=auth(keys["jobs"]))
    for body in ({**GENERATE, "prompt": prompt}, {**GENERATE, "prompt": prompt, "seed": -1}):
        client.post("/generate", json=body, headers=auth(keys["generate"]))
    chat = {"model": "none", "messages": [{"role": "user", "content": prompt}]}
    client.post("/v1/chat/completions", json=chat, headers=auth(keys["generate"]))
    logging.getLogger("app.tests").debug("outside")
    own.setLevel(before)
    log = capsys.readouterr().err
    assert "refused GET '/models': unknown or revoked key" in log
    assert "the key 'jobs' lacks the scope" in log
    for secret in (wrong, *keys.values(), prompt):
        assert secret not in log
    outside = next(line for line in log.splitlines() if "outside" in line)
    assert "key=" not in outside


def test_a_line_of_a_request_has_the_name_of_its_key(
    client: TestClient, keys: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    known: list[Mapping[str, str]] = []
    catalog = client.app_state["services"].generation.registry.catalog
    entries = type(catalog).entries

    def noted(self: Any) -> Any:
        known.append(log_fields())
        return entries(self)

    monkeypatch.setattr(type(catalog), "entries", noted)
    client.get("/models", headers=auth(keys["jobs"]))
    assert [line["key"] for line in known] == ["jobs"]


def test_what_comes_after_a_request_is_not_its_key_s(
    client: TestClient, settings: ServeSettings, keys: dict[str, str]
) -> None:
    seen: list[str | None] = []

    async def app(*_: Any) -> None:
        key = caller.get()
        seen.append(key.name if key else None)

    async def main() -> None:
        headers = [(b"authorization", f"Bearer {keys['jobs']}".encode())]
        scope = {"type": "http", "method": "GET", "path": "/prune-jobs", "headers": headers}
        await AuthMiddleware(app, authorizer_of(settings))(
            {**scope, "state": client.app_state}, never, never
        )
        assert caller.get() is None

    asyncio.run(main())
    assert seen == ["jobs"]


def test_the_server_survives_very_long_headers(
    settings: ServeSettings, keys: dict[str, str], redis_url: str, redis_client: redis.Redis
) -> None:
    redis_client.ping()
    with serving(settings, redis_url) as (_, url), httpx2.Client(base_url=url) as http:
        for length in (600, 60_000, 2_000_000):
            try:
                answer = http.get("/models", headers=auth("x" * length))
            except httpx2.TransportError:  # the server has closed the line: it read enough
                continue
            assert answer.status_code in (400, 401, 431), length
        wait_until(
            lambda: http.get("/models", headers=auth(keys["jobs"])).status_code == 200,
            "the API still answers",
        )
        client = ServiceClient(url, keys["jobs"])
        jobs = client.request("GET", "/prune-jobs")
        assert jobs == {"object": "list", "data": [], "has_more": False}
        client.close()
        client = ServiceClient(url)
        with pytest.raises(Refused, match="requires an API key"):
            client.request("GET", "/prune-jobs")
        client.close()
