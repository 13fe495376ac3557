"""Prefixes are served from the moment they are found, under the names that they keep."""

import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from fastapi.testclient import TestClient

from app.config import ServeSettings
from pruning.jobs import transitions
from pruning.jobs.deletion import SteadyClock
from pruning.jobs.store import JobStore
from pruning.models.blocks import view
from pruning.models.store import LoadedModel
from pruning.removal import Removal
from pruning.spec.prune import PruneSpec
from pruning.worker.task import JobObserver, run_job
from tests.support.api_fixtures import publish_pruned
from tests.support.generate_requests import generate, oracle
from tests.support.prune_requests import submit
from tests.support.serving import local_api
from tests.support.waiting import wait_until

LOSSES = (2.5, 3.0)


@pytest.fixture
def job(client: TestClient, job_store: JobStore) -> dict[str, Any]:
    """That runs, and has removed the blocks 3 and 1 so far."""
    submitted = submit(client)
    attempt = job_store.start(submitted["id"], "w").attempt
    found = [
        Removal(step, block, loss, 2.25, None, None, None, {block: loss}, {block: 1})
        for step, block, loss in ((1, 3, LOSSES[0]), (2, 1, LOSSES[1]))
    ]
    job_store.record(submitted["id"], transitions.removed(found), attempt)
    return submitted


def status_of(client: TestClient, model: str) -> int:
    body = {"model": model, "prompt": "the dog", "max_new_tokens": 1}
    return client.post("/generate", json=body).status_code


def ids(client: TestClient) -> list[str]:
    return [model["id"] for model in client.get("/models").json()["data"]]


def test_a_running_job_lists_what_it_has_found(client: TestClient, job: dict[str, Any]) -> None:
    name = f"tiny@{job['id']}"
    [checkpoint] = client.get(job["urls"]["checkpoints"]).json()["data"]
    assert (checkpoint["id"], checkpoint["is_published"]) == (name, False)
    assert (checkpoint["files"], checkpoint["created_at"]) == ([], None)
    assert (checkpoint["removed_blocks"], checkpoint["num_blocks"]) == ([3, 1], 4)
    assert checkpoint["prefixes"] == [
        {
            "model": f"{name}-{k}",
            "num_removed": k,
            "removed_block": block,
            "loss": LOSSES[k - 1],
            "perplexity": None,
            "domains": [],
            "predicted_speedup": None,
            "measured_speedup": None,
            "repair": None,
        }
        for k, block in ((1, 3), (2, 1))
    ]
    assert client.get(f"{job['urls']['checkpoints']}/config.json").status_code == 404


def test_prefixes_are_views_of_the_dense_parent(
    client: TestClient, job: dict[str, Any], tiny_loaded: LoadedModel
) -> None:
    registry = client.app_state["services"].generation.registry
    generate(client)
    before = registry.weight_bytes()
    for k, keep in ((1, (0, 1, 2, 4, 5)), (2, (0, 2, 4, 5))):
        name = f"tiny@{job['id']}-{k}"
        found = generate(client, model=name, max_new_tokens=8, return_token_ids=True)
        assert found["outputs"][0]["token_ids"] == oracle(tiny_loaded, "the dog", keep, 8)
        assert found["variant"] == "pruned"
        assert not registry.catalog.resolve(name).is_whole_checkpoint
    assert registry.weight_bytes() == before


def test_the_catalog_marks_them(client: TestClient, job: dict[str, Any]) -> None:
    """They are neither the current order nor a checkpoint until they are published."""
    name = f"tiny@{job['id']}"
    assert ids(client) == ["tiny", f"{name}-1", f"{name}-2"]
    model = client.get(f"/models/{name}-2").json()
    assert model["is_published"] is False
    assert model["checkpoint"] is model["num_parameters"] is None
    assert (model["parent"], model["removed_blocks"], model["num_blocks"]) == ("tiny", [3, 1], 4)
    assert model["losses"] == [2.25, *LOSSES]
    assert client.get("/models/tiny").json()["is_published"]
    for unknown in (name, f"{name}-3", f"{name}-0", "tiny@-1", f"other@{job['id']}-1"):
        assert status_of(client, unknown) == 404, unknown


def test_what_they_mean_stays_when_they_are_published(
    client: TestClient, data_dir: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for by a client whenever the worker has found one more. Only their repair is new."""
    monkeypatch.setenv("SLEB_DATA_DIR", str(data_dir))
    monkeypatch.setenv("SLEB_REDIS_URL", redis_url)
    job = submit(client, repair="ridge")
    before: dict[str, Any] = {}
    write = JobObserver.removed

    def ask(name: str) -> dict[str, Any]:
        (output,) = generate(client, model=name, max_new_tokens=8)["outputs"]
        return {"text": output["text"], **client.get(f"/models/{name}").json()}

    def removed(observer: JobObserver, removal: Removal) -> None:
        write(observer, removal)
        name = f"tiny@{job['id']}-{removal.step}"
        before[name] = ask(name)
        assert before[name]["is_published"] is False
        assert before[name]["repair"] is None
        assert ask(f"{name}+raw")["text"] == before[name]["text"]

    monkeypatch.setattr(JobObserver, "removed", removed)
    run_job(job["id"])
    assert list(before) == [f"tiny@{job['id']}-{k}" for k in (1, 2)]
    for name, found in before.items():
        assert client.get(f"/models/{name}").json()["repair"]["raw"] == f"{name}+raw"
        now = ask(f"{name}+raw")
        assert now["is_published"]
        for key in ("text", "removed_blocks", "losses", "num_blocks", "dtype", "parent"):
            assert now[key] == found[key]
    assert ids(client) == ["tiny", "tiny@-1", "tiny@-2", f"tiny@{job['id']}"]


def test_a_cancelled_job_keeps_what_it_has_found_until_it_is_deleted(
    client: TestClient, job: dict[str, Any], job_store: JobStore
) -> None:
    client.post(job["urls"]["cancel"])
    job_store.stopped(job["id"])
    name = f"tiny@{job['id']}-2"
    assert status_of(client, name) == 200
    assert len(client.get(job["urls"]["checkpoints"]).json()["data"][0]["prefixes"]) == 2
    assert ids(client) == ["tiny"]
    assert client.delete(job["urls"]["self"]).status_code == 204
    assert status_of(client, name) == 404


def test_without_its_dense_parent_nothing_can_be_served(
    client: TestClient, job: dict[str, Any], data_dir: Path
) -> None:
    (data_dir / "models" / "tiny").rename(data_dir / "away")
    assert client.get(job["urls"]["checkpoints"]).json()["data"] == []
    assert status_of(client, f"tiny@{job['id']}-1") == 404
    assert ids(client) == []


def test_published_names_do_not_need_the_job_store(
    settings: ServeSettings, data_dir: Path, tmp_path: Path
) -> None:
    name = publish_pruned(data_dir).name
    with local_api(settings, f"unix://{tmp_path}/none.sock") as client:
        for published in ("tiny", "tiny@-1", name, f"{name}-2"):
            assert status_of(client, published) == 200
        assert ids(client) == ["tiny", "tiny@-1", "tiny@-2", "tiny@-3", name]
        assert status_of(client, "tiny@none-1") == 404
        unknown = f"tiny@prn-{'0' * 21}-1"
        answer = client.post("/generate", json={"model": unknown, "prompt": "a"})
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert client.get(f"/models/{unknown}").status_code == 503


def test_the_store_is_not_asked_for_published_names(
    client: TestClient, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = publish_pruned(data_dir).name
    monkeypatch.setattr(JobStore, "get", lambda *_: pytest.fail("asked"))
    for published in ("tiny", "tiny@-1", name, f"{name}-2"):
        assert status_of(client, published) == 200


def test_a_model_that_was_replaced_by_a_smaller_one_has_no_such_prefixes(
    tiny_loaded: LoadedModel, client: TestClient, job: dict[str, Any], data_dir: Path
) -> None:
    view(tiny_loaded.model, (0, 1, 2)).save_pretrained(data_dir / "models" / "tiny")
    assert client.get(job["urls"]["checkpoints"]).json()["data"] == []


@pytest.mark.parametrize("keep_s", [None, 60.0])
def test_the_api_sweeps_away_what_is_due(
    settings: ServeSettings,
    data_dir: Path,
    redis_url: str,
    job_store: JobStore,
    keep_s: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(SteadyClock, "now", lambda _: time.time() + 120)  # two minutes later
    job = job_store.cancel(job_store.create(PruneSpec("tiny", 1)).id)
    (data_dir / "checkpoints" / ".staging" / f"left-{uuid4().hex}").mkdir(parents=True)
    with local_api(settings, redis_url, keep_jobs_s=keep_s) as client:
        staging = data_dir / "checkpoints" / ".staging"
        wait_until(lambda: not list(staging.iterdir()), "the leftover is swept")
        if keep_s is not None:
            wait_until(lambda: client.get(f"/prune-jobs/{job.id}").status_code == 404, "it is gone")
    assert [found.id for found in job_store.list().jobs] == ([] if keep_s else [job.id])
