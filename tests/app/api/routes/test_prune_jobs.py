"""Jobs over HTTP: taken or refused at once, found again, cancelled; worked on by a real worker."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient

from app.config import ServeSettings
from pruning.worker.task import run_job
from tests.support.prune_requests import JOB, submit
from tests.support.serving import local_api
from tests.support.tiny_directory import MAX_POSITIONS

pytestmark = pytest.mark.usefixtures("nothing_preloaded")


def test_a_job_is_taken_and_can_be_found(client: TestClient) -> None:
    response = client.post("/prune-jobs", json={**JOB, "metadata": {"team": "platform"}})
    assert response.status_code == 202
    job = response.json()
    assert response.headers["location"] == job["urls"]["self"] == f"/prune-jobs/{job['id']}"
    assert int(response.headers["retry-after"]) > 0
    assert (job["object"], job["status"], job["attempt"]) == ("prune_job", "queued", 0)
    assert job["metadata"] == {"team": "platform"}
    assert client.get(job["urls"]["self"]).json() == job
    assert 'sleb_prune_jobs{state="queued"} 1.0' in client.get("/metrics").text


def test_a_worked_job_becomes_a_variant(
    client: TestClient, data_dir: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLEB_DATA_DIR", str(data_dir))
    monkeypatch.setenv("SLEB_REDIS_URL", redis_url)
    job = submit(client)
    run_job(job["id"])
    job = client.get(job["urls"]["self"]).json()
    assert job["status"] == "succeeded"
    assert job["progress"] == {"evaluations_done": 7, "evaluations_total": 7, "ratio": 1.0}
    assert len(job["removed_blocks"]) == len(job["losses"]) == 2
    assert job["created_at"] <= job["started_at"] <= job["finished_at"]
    model = client.get(f"/models/{job['pruned_model']}").json()
    assert model["removed_blocks"] == job["removed_blocks"]
    assert model["num_blocks"] == 4
    names = [entry["id"] for entry in client.get("/models").json()["data"]]
    assert names == ["tiny", "tiny@-1", "tiny@-2", job["pruned_model"]]


def test_lists_are_pages_newest_first(client: TestClient) -> None:
    ids = [submit(client)["id"] for _ in range(5)][::-1]
    first = client.get("/prune-jobs", params={"limit": 3}).json()
    assert [job["id"] for job in first["data"]] == ids[:3]
    assert first["has_more"]
    rest = client.get("/prune-jobs", params={"limit": 3, "after": ids[2]}).json()
    assert [job["id"] for job in rest["data"]] == ids[3:]
    assert not rest["has_more"]
    assert client.get("/prune-jobs", params={"status": "running"}).json()["data"] == []


def test_a_waiting_job_can_be_cancelled_once(client: TestClient) -> None:
    job = submit(client)
    cancelled = client.post(job["urls"]["cancel"])
    assert cancelled.status_code == 202
    assert cancelled.json()["status"] == "cancelled"
    again = client.post(job["urls"]["cancel"])
    assert again.status_code == 409
    assert again.json()["type"].endswith("illegal-transition")


BAD: list[tuple[dict[str, Any], int, str]] = [
    ({"model": "other"}, 404, "existing models"),
    ({"model": "/etc"}, 404, "existing models"),
    ({"model": "odd"}, 422, "safetensors"),
    ({"num_remove": 5}, 422, "only 4 can be removed"),
    ({"num_remove": 10**40}, 422, "can be removed"),
    ({"num_remove": 0}, 422, "1 or more"),
    ({"num_remove": -3}, 422, "1 or more"),
    ({"num_remove": 2.5}, 422, "integer"),
    ({"num_remove": "two"}, 422, "integer"),
    ({"num_remove": None}, 422, "exactly one"),
    ({"sparsity": 0.2}, 422, "exactly one"),
    ({"num_remove": None, "sparsity": 1.5}, 422, "between 0 and 1"),
    ({"num_remove": None, "max_perplexity_ratio": 1.0}, 422, "above 1"),
    ({"num_remove": None, "target_speedup": 0.9}, 422, "above 1"),
    ({"num_remove": None, "target_speedup": 10**400}, 422, "valid number"),
    ({"num_remove": None, "target_speedup": 3.5}, 422, "gives at most 3"),
    ({"num_remove": None, "target_bytes": 10}, 422, "cannot be reached"),
    ({"num_remove": None, "target_bytes": 10**9}, 422, "needs no removal"),
    ({"num_remove": None, "target_speedup": 1.5, "max_perplexity_ratio": 2}, 422, "exactly one"),
    ({"num_remove": None, "target_speedup": 1.5, "protect_last": 5}, 422, "only 0 can be removed"),
    ({"search": "fast"}, 422, "staged"),
    ({"resident": "disk"}, 422, "stream"),
    ({"calibration": {"dataset": "self"}, "resident": "stream"}, 422, "the default"),
    ({"protect_first": -1}, 422, "0 or more"),
    ({"protect_first": 6}, 422, "only 0 can be removed"),
    ({"dtype": "int4"}, 422, "dtype"),
    ({"metadata": {"k" * 65: "v"}}, 422, "64"),
    ({"surprise": True}, 422, "unknown field"),
    ({"calibration": {"seqlen": MAX_POSITIONS + 1}}, 422, "context length"),
    ({"calibration": {"num_samples": 10**12}}, 422, "num_samples"),
    ({"calibration": {"dataset": "the-web"}}, 422, "calibration/dataset"),
    ({"calibration": {"dataset": "file"}}, 422, "path"),
    ({"calibration": {"dataset": "file", "path": "none.txt"}}, 422, "texts folder"),
    ({"calibration": {"dataset": "file", "path": "../models/tiny/config.json"}}, 422, "texts"),
    ({"calibration": {"dataset": "file", "path": "/etc/passwd"}}, 422, "texts folder"),
    ({"calibration": {"dataset": "file", "path": "link"}}, 422, "texts folder"),
    ({"calibration": {"dataset": "file", "path": "a\0b"}}, 422, "null"),
    ({"calibration": {"dataset": "file", "path": "a" * 300}}, 422, "texts folder"),
    ({"calibration": {"dataset": "file", "path": "loop"}}, 422, "texts folder"),
    ({"calibration": {"dataset": "file", "path": "short"}}, 422, "128 tokens, but 32 are needed"),
    ({"calibration": {"dataset": "file", "path": "empty"}}, 422, "contains no text"),
    ({"calibration": {"dataset": "file", "path": "latin"}}, 422, "not UTF-8"),
    (
        {"calibration": {"dataset": "documentation", "num_samples": 100000, "seqlen": 64}},
        422,
        "100000 are needed",
    ),
    ({"gate": {"max_perplexity_ratio_of": {"poems": 2}}}, 422, "no text of domain 'poems'"),
    ({"model": "mute"}, 422, "the tokenizer of"),
    ({"calibration": {"dataset": "file", "path": "large"}}, 422, "SLEB_MAX_TEXT_BYTES"),
    ({"calibration": [{"dataset": "file", "path": "large"}]}, 422, "calibration.0.path"),
    ({"calibration": {"weight": 2}}, 422, "calibration/weight: unknown field"),
    ({"calibration": "text"}, 422, "/calibration: "),
    ({"calibration": []}, 422, "at least 1 item"),
    ({"calibration": [{"dataset": "c4"}, {"dataset": "self", "weight": 0}]}, 422, "above 0"),
    ({"calibration": [{"dataset": "c4"}, {"dataset": "self", "weight": -1}]}, 422, "above 0"),
    ({"calibration": [{"dataset": "the-web"}]}, 422, "calibration/0/dataset"),
    ({"calibration": [{"dataset": "c4"}, {}]}, 422, "calibration/1/dataset"),
    ({"calibration": {"path": "a.txt"}}, 422, "dataset 'file'"),
    ({"calibration": {"num_samples": 1}}, 422, "too small for 2 sources"),
    (
        {"calibration": [{"dataset": "c4"}, {"dataset": "self", "seqlen": 9}]},
        422,
        "must have the same value",
    ),
    (
        {"calibration": [{"dataset": "c4"}, {"dataset": "self", "num_samples": 0}]},
        422,
        "expected 1 to",
    ),
    (
        {"calibration": [{"dataset": name, "num_samples": 1} for name in ("c4", "self")]},
        422,
        "too small",
    ),
    ({"calibration": [{"dataset": "self"}, {"dataset": "self"}]}, 422, "increase its weight"),
    ({"calibration": [{"dataset": "self"}], "resident": "stream"}, 422, "the default"),
    ({"calibration": [{"dataset": "code", "seqlen": MAX_POSITIONS + 1}]}, 422, "context length"),
    ({"metric": "l2"}, 422, "one_shot"),
    ({"metric": "cosine", "search": "staged"}, 422, "search=exact"),
]


@pytest.mark.parametrize(("change", "status", "word"), BAD)
def test_a_job_that_can_never_run_is_refused_and_leaves_nothing(
    client: TestClient, data_dir: Path, change: dict[str, Any], status: int, word: str
) -> None:
    (data_dir / "models" / "odd").mkdir()
    (data_dir / "models" / "odd" / "config.json").write_text('{"model_type": "llama"}')
    shutil.copytree(data_dir / "models" / "tiny", data_dir / "models" / "mute")
    (data_dir / "models" / "mute" / "tokenizer.json").write_text("{")
    (data_dir / "texts").mkdir()
    (data_dir / "texts" / "link").symlink_to("/etc/passwd")
    (data_dir / "texts" / "loop").symlink_to("loop")
    (data_dir / "texts" / "short").write_text("lazy dogs\n" * 90)
    (data_dir / "texts" / "empty").write_text(" \n")
    (data_dir / "texts" / "latin").write_bytes(b"caf\xe9")
    (data_dir / "texts" / "large").touch()
    os.truncate(data_dir / "texts" / "large", 256 * 2**20 + 1)
    response = client.post("/prune-jobs", json={**JOB, **change})
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert word in json.dumps(response.json())
    assert client.get("/prune-jobs").json()["data"] == []


@pytest.mark.parametrize(
    ("text", "word", "field"),
    [
        ("", "contains no text", "path"),
        ("hello world", "gives 0 windows of 16 tokens, but 4 are needed", "num_samples"),
    ],
)
@pytest.mark.parametrize("dry_run", [True, False])
def test_a_file_of_too_little_text_is_refused_by_a_dry_run_too(
    client: TestClient, data_dir: Path, text: str, word: str, field: str, *, dry_run: bool
) -> None:
    (data_dir / "texts").mkdir()
    (data_dir / "texts" / "short.txt").write_text(text)
    calibration = {"dataset": "file", "path": "short.txt", "num_samples": 4, "seqlen": 16}
    body = {**JOB, "calibration": calibration, "dry_run": dry_run}
    response = client.post("/prune-jobs", json=body)
    assert response.status_code == 422, response.text
    assert word in response.json()["detail"]
    assert response.json()["param"] == f"calibration.{field}"
    mix = [{"dataset": "prose", "num_samples": 8, "seqlen": 16}, {**calibration, "num_samples": 8}]
    response = client.post("/prune-jobs", json={**body, "calibration": mix})
    assert response.json()["param"] == f"calibration.1.{field}"
    assert client.get("/prune-jobs").json()["data"] == []


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("target", ["sparsity", "max_perplexity_ratio", "target_speedup"])
def test_numbers_that_json_does_not_know_are_refused(
    client: TestClient, target: str, number: str
) -> None:
    body = f'{{"model": "tiny", "{target}": {number}}}'
    headers = {"content-type": "application/json"}
    response = client.post("/prune-jobs", content=body, headers=headers)
    assert response.status_code == 422
    assert response.json()["param"] == target


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"num_remove": None}, "num_remove"),
        ({"target_speedup": 1.5}, "target_speedup"),
        ({"num_remove": None, "max_perplexity_ratio": 0.5}, "max_perplexity_ratio"),
        ({"num_remove": None, "max_perplexity_ratio": 1e307}, "max_perplexity_ratio"),
        ({"heal": {"alpha": 1e307}}, "heal.alpha"),
        ({"num_remove": None, "target_speedup": 3.5}, "target_speedup"),
        ({"calibration": {"dataset": "self"}, "resident": "stream"}, "calibration.dataset"),
        ({"metric": "one_shot", "search": "staged"}, "search"),
        ({"calibration": {"seqlen": 1}}, "calibration.seqlen"),
        (
            {"calibration": [{"dataset": "self"}, {"dataset": "c4", "seqlen": 1}]},
            "calibration.1.seqlen",
        ),
        ({"calibration": [{"dataset": "file", "path": "none.txt"}]}, "calibration.0.path"),
        (
            {"calibration": [{"dataset": "self"}, {"dataset": "c4", "weight": 0}]},
            "calibration.1.weight",
        ),
    ],
)
def test_a_refusal_names_the_setting_at_fault(
    client: TestClient, change: dict[str, Any], param: str
) -> None:
    assert client.post("/prune-jobs", json={**JOB, **change}).json()["param"] == param


@pytest.mark.parametrize("target", [{"max_perplexity_ratio": 1.5}, {"target_speedup": 1.1}])
def test_a_job_is_taken_with_every_setting_of_the_search(
    client: TestClient, data_dir: Path, target: dict[str, float]
) -> None:
    (data_dir / "texts").mkdir()
    (data_dir / "texts" / "a.txt").write_text("lazy dogs\n" * 9000)
    change = {**target, "search": "staged", "resident": "stream", "num_remove": None}
    spec = submit(client, **change, calibration={"dataset": "file", "path": "a.txt"})["spec"]
    assert spec.items() >= change.items()


@pytest.mark.parametrize("weight", ["NaN", "Infinity", "-Infinity"])
def test_a_weight_is_a_number(client: TestClient, weight: str) -> None:
    calibration = f'[{{"dataset": "self", "weight": {weight}}}]'
    body = f'{{"model": "tiny", "num_remove": 1, "calibration": {calibration}}}'
    headers = {"content-type": "application/json"}
    response = client.post("/prune-jobs", content=body, headers=headers)
    assert response.status_code == 422
    assert response.json()["param"] == "calibration.0.weight"


def test_a_mix_of_texts_and_another_metric_are_taken(client: TestClient, data_dir: Path) -> None:
    (data_dir / "texts").mkdir()
    (data_dir / "texts" / "a.txt").write_text("lazy dogs\n" * 9000)
    mix = [
        {"dataset": "file", "path": "a.txt", "weight": 2.5, "seed": 3},
        {"dataset": "self", "seed": 4},
    ]
    spec = submit(client, calibration=mix, metric="one_shot")["spec"]
    assert spec["metric"] == "one_shot"
    file, own = spec["calibration"]
    assert (file["path"], file["weight"], file["seed"]) == (
        str(data_dir / "texts" / "a.txt"),
        2.5,
        3,
    )
    assert (own["dataset"], own["weight"], own["seed"]) == ("self", 1.0, 4)


def test_the_api_description_explains_the_targets(client: TestClient) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    fields = schemas["PruneJobBody"]["properties"]
    names = ("num_remove", "sparsity", "max_perplexity_ratio", "target_speedup", "search", "metric")
    for name in (*names, "calibration"):
        assert fields[name]["description"], name


@pytest.mark.parametrize("job_id", ["prn-1", "prn-" + "0" * 21, "%00", "a" * 300, "é"])
def test_an_unknown_job_is_404(client: TestClient, job_id: str) -> None:
    for method, path in (("GET", ""), ("POST", "/cancel")):
        assert client.request(method, f"/prune-jobs/{job_id}{path}").status_code == 404


def test_a_file_of_the_texts_folder_is_taken(client: TestClient, data_dir: Path) -> None:
    (data_dir / "texts").mkdir()
    (data_dir / "texts" / "a.txt").write_text("lazy dogs\n" * 9000)
    job = submit(client, calibration={"dataset": "file", "path": "a.txt"})
    assert job["spec"]["calibration"]["path"] == str(data_dir / "texts" / "a.txt")


def test_without_its_store_the_api_says_so_and_generates_on(
    settings: ServeSettings, tmp_path: Path
) -> None:
    with local_api(settings, f"unix://{tmp_path}/none.sock") as client:
        response = client.post("/prune-jobs", json=JOB)
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) >= 1
        body = {"model": "tiny", "prompt": "the dog", "max_new_tokens": 2}
        assert client.post("/generate", json=body).status_code == 200
        assert client.get("/metrics").status_code == 200


def test_the_queue_holds_the_job_of_an_accepted_request(
    client: TestClient, redis_client: redis.Redis
) -> None:
    job = submit(client)
    assert any(job["id"].encode() in key for key in redis_client.keys("rq:job:*"))
