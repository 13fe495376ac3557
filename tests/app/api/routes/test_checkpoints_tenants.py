"""The checkpoint of a job belongs to the tenant of the job: to others it does not exist."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.auth.keys import KeyFile
from app.config import ServeSettings
from app.models.aliases import Aliases
from app.results.store import ResultKind, ResultStore
from pruning.checkpoints.store import MANIFEST, read_manifest
from pruning.jobs.conditions import Conditions
from pruning.jobs.store import JobStore
from pruning.spec.prune import PruneSpec
from tests.support.api_fixtures import publish_pruned
from tests.support.auth import Headers, team_keys
from tests.support.exposition import Scrape
from tests.support.job_lives import succeed
from tests.support.serving import local_api
from tests.support.shadow_traffic import share_of_controls
from tests.support.waiting import wait_until

GENERATE = {"prompt": "the dog", "max_new_tokens": 2}


@pytest.fixture
def settings(data_dir: Path) -> ServeSettings:
    return ServeSettings(data_dir=data_dir, drain_s=0, preload=())


@pytest.fixture
def keys(settings: ServeSettings) -> dict[str, Headers]:
    return team_keys(KeyFile(settings.keys_file))


def publish(data_dir: Path, job_store: JobStore, tenant: str | None, num_remove: int = 3) -> str:
    """Publish what the worker publishes for a job of the tenant; returns its name."""
    job = job_store.create(PruneSpec("tiny", num_remove), conditions=Conditions(owner=tenant))
    publish_pruned(data_dir, num_remove, job=job.id)
    succeed(job_store, job.id)
    path = data_dir / "checkpoints" / job.checkpoint_name
    (path / MANIFEST).write_text(replace(read_manifest(path), tenant=tenant).to_json())
    return job.checkpoint_name


def test_a_checkpoint_and_its_variants_do_not_exist_for_others(
    client: TestClient, keys: Mapping[str, Headers], data_dir: Path, job_store: JobStore
) -> None:
    """Told apart from a name that was never given by nothing but the name."""
    name = publish(data_dir, job_store, "team")
    Aliases(data_dir).set("prod", name)
    missing = f"tiny@prn-{'0' * 21}"
    for variant in (name, f"{name}-2", f"{name}+raw", f"{name}+int8", "prod", "tiny@-1"):
        other = variant.replace(name, missing).replace("prod", "none").replace("@-1", "@-9")
        for who, status in (("ann", 200), ("bob", 200), ("root", 200), ("eve", 404)):
            asked = [
                client.post("/generate", json={**GENERATE, "model": variant}, headers=keys[who]),
                client.get(f"/models/{variant}", headers=keys[who]),
                client.get(f"/v1/models/{variant}", headers=keys[who]),
            ]
            assert [answer.status_code for answer in asked] == [status] * 3, (variant, who)
        if variant == "tiny@-1":
            continue
        for path in ("/models/{}", "/v1/models/{}"):
            refusal = client.get(path.format(variant), headers=keys["eve"])
            unknown = client.get(path.format(other), headers=keys["eve"])
            assert refusal.text.replace(name, missing).replace("prod", "none") == unknown.text
    pair = {**GENERATE, "models": ["tiny", name], "repeats": 1}
    assert client.post("/compare", json=pair, headers=keys["bob"]).status_code == 200
    assert client.post("/compare", json=pair, headers=keys["eve"]).status_code == 404
    heal = {"model": name, "heal": {"num_tokens": 64}}
    refusal = client.post("/heal-jobs", json=heal, headers=keys["eve"])
    unknown = client.post("/heal-jobs", json={**heal, "model": missing}, headers=keys["eve"])
    assert refusal.status_code == unknown.status_code == 404
    assert refusal.text.replace(name, missing) == unknown.text


def test_no_list_shows_the_checkpoint_of_another_tenant(
    client: TestClient, keys: Mapping[str, Headers], data_dir: Path, job_store: JobStore
) -> None:
    name = publish(data_dir, job_store, "team")
    Aliases(data_dir).set("prod", name)
    results = ResultStore(data_dir)
    about = results.keep(ResultKind.BENCH, "tiny", f"{name}: faster", {}, tenants=["team"])
    shared = results.keep(ResultKind.STABILITY, "tiny", "stable", {})
    own = job_store.create(PruneSpec("tiny", 1), conditions=Conditions(owner="eve")).id
    for who, is_seen in (("bob", True), ("root", True), ("eve", False)):
        for path in ("/models", "/v1/models", "/results"):
            answer = client.get(path, headers=keys[who])
            assert (name in answer.text) is is_seen, (path, who)
            assert is_seen or "prod" not in answer.text
        assert client.get(f"/results/{about}", headers=keys[who]).is_success is is_seen
        assert client.get(f"/results/{shared}", headers=keys[who]).is_success
        dry = {"model": "tiny", "num_remove": 3, "dry_run": True}
        estimate = client.post("/prune-jobs", json=dry, headers=keys[who])
        assert estimate.is_success
        assert name.partition("@")[2] not in estimate.text or is_seen
    # neither in the message about a checkpoint of one's own that is not there yet
    refusal = client.get(f"/prune-jobs/{own}/checkpoints/config.json", headers=keys["eve"])
    assert refusal.status_code == 404
    assert name not in refusal.text


def test_the_newest_order_is_the_newest_that_a_key_sees(
    client: TestClient, keys: Mapping[str, Headers], data_dir: Path, job_store: JobStore
) -> None:
    shared = publish(data_dir, job_store, None, num_remove=1)

    def depths(who: str) -> list[str]:
        data: list[dict[str, Any]] = client.get("/models", headers=keys[who]).json()["data"]
        return sorted(model["id"] for model in data if "@-" in model["id"])

    def meaning(who: str) -> str:
        answer = client.get("/models/tiny@-1", headers=keys[who]).json()
        return str(answer["checkpoint"])

    assert {who: meaning(who) for who in keys} == dict.fromkeys(keys, shared)
    of_team = publish(data_dir, job_store, "team", num_remove=3)
    of_eve = publish(data_dir, job_store, "eve", num_remove=2)
    expected = {"ann": of_team, "bob": of_team, "eve": of_eve, "root": of_eve}
    assert {who: meaning(who) for who in keys} == expected
    assert depths("bob") == ["tiny@-1", "tiny@-2", "tiny@-3"]
    assert depths("eve") == ["tiny@-1", "tiny@-2"]


def test_requests_are_replayed_on_what_their_key_sees(
    settings: ServeSettings,
    redis_url: str,
    keys: Mapping[str, Headers],
    data_dir: Path,
    job_store: JobStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    share_of_controls(monkeypatch, 0.0)  # a control needs no counterpart
    publish(data_dir, job_store, "team")
    changes: dict[str, Any] = {"shadow_share": 1.0, "shadow_direction": "@-1"}

    def dropped(client: TestClient) -> float:
        scrape, labels = Scrape(client.get("/metrics").text), {"live_model": "tiny"}
        name = "sleb_shadow_dropped_total"
        return scrape.value(name, **labels, reason="no_counterpart") or 0

    with local_api(settings, redis_url, **changes) as client:
        for who, number in (("ann", 0), ("eve", 1)):
            body = {**GENERATE, "model": "tiny"}
            assert client.post("/generate", json=body, headers=keys[who]).is_success
            done = {"live_model": "tiny", "shadow_model": "tiny@-1"}

            def told(client: TestClient = client, done: dict[str, str] = done) -> float:
                scrape = Scrape(client.get("/metrics").text)
                return dropped(client) + (scrape.value("sleb_shadow_done_total", **done) or 0)

            wait_until(lambda: told() == number + 1, "it was replayed or dropped")  # noqa: B023
            assert dropped(client) == number


def test_what_a_running_job_has_found_is_of_its_tenant(
    client: TestClient, keys: Mapping[str, Headers], job_store: JobStore
) -> None:
    job = job_store.create(PruneSpec("tiny", 2), conditions=Conditions(owner="team"))
    succeed(job_store, job.id)  # before anything is published
    prefix = f"{job.checkpoint_name}-1"
    for who, status in (("ann", 200), ("root", 200), ("eve", 404)):
        body = {**GENERATE, "model": prefix}
        assert client.post("/generate", json=body, headers=keys[who]).status_code == status, who
