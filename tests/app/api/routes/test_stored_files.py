"""Pipes where files are expected, and damaged results: refused at once, and they hide nothing."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.config import ServeSettings
from app.results.store import FOLDER, ResultKind, ResultStore
from pruning.checkpoints.store import MANIFEST
from pruning.jobs.store import JobStore
from tests.support.api_fixtures import publish_pruned
from tests.support.job_lives import SPEC
from tests.support.mutations import mutations
from tests.support.serving import LocalClient, local_api

LISTS = ("/models", "/v1/models", "/metrics", "/results")
BODY = {"prompt": "a", "max_new_tokens": 1}


@pytest.fixture
def client(data_dir: Path, settings: ServeSettings, redis_url: str) -> Iterator[LocalClient]:
    assert data_dir
    with local_api(settings, redis_url, preload=("tiny",)) as client:
        yield client


def replaced_by_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_pipe_in_a_model_is_refused_at_once(
    client: LocalClient, data_dir: Path, name: str
) -> None:
    shutil.copytree(data_dir / "models" / "tiny", data_dir / "models" / "bad")
    replaced_by_pipe(data_dir / "models" / "bad" / name)
    assert all(client.get(path).status_code == 200 for path in LISTS)
    assert client.post("/generate", json={**BODY, "model": "bad"}).status_code in (404, 422)
    assert client.post("/generate", json={**BODY, "model": "tiny"}).status_code == 200


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", [MANIFEST, "config.json", "model.safetensors"])
def test_a_pipe_in_a_checkpoint_is_refused_at_once(
    client: LocalClient, data_dir: Path, name: str
) -> None:
    manifest = publish_pruned(data_dir)
    replaced_by_pipe(data_dir / "checkpoints" / manifest.name / name)
    shutil.rmtree(data_dir / "models" / "tiny")  # only its own weights are left
    assert all(client.get(path).status_code == 200 for path in LISTS)
    answer = client.post("/generate", json={**BODY, "model": manifest.name})
    assert answer.status_code in (404, 422), answer.text
    assert client.get(f"/checkpoints/{manifest.name}/files/{name}").status_code < 500


def test_a_link_in_a_checkpoint_shows_no_other_file(
    client: LocalClient, data_dir: Path, job_store: JobStore
) -> None:
    """Also for somebody who writes the manifest."""
    secret = data_dir / "secret.txt"
    secret.write_text("a secret")
    manifest = publish_pruned(data_dir, job=(job := job_store.create(SPEC)).id)
    path = data_dir / "checkpoints" / manifest.name
    (path / "notes.txt").symlink_to(secret)
    (path / "beside").symlink_to(data_dir)
    fields = json.loads(manifest.to_json())
    entry = {"num_bytes": 8, "sha256": "0" * 64}
    fields["files"] |= {"notes.txt": entry, "beside/secret.txt": entry}
    (path / MANIFEST).write_text(json.dumps(fields))
    for file in ("notes.txt", "beside/secret.txt"):
        answer = client.get(f"/prune-jobs/{job.id}/checkpoints/{file}")
        assert answer.status_code == 422, answer.text
        assert "secret" not in answer.text.replace("beside/secret.txt", "")
    config = client.get(f"/prune-jobs/{job.id}/checkpoints/config.json")
    assert config.content == (path / "config.json").read_bytes()


@pytest.mark.timeout(60)
def test_a_pipe_as_a_result_is_left_out(client: LocalClient, data_dir: Path) -> None:
    results = ResultStore(data_dir)
    good = results.keep(ResultKind.BENCH, "tiny", "faster", {})
    bad = results.keep(ResultKind.BENCH, "tiny", "faster", {})
    replaced_by_pipe(data_dir / FOLDER / f"{bad}.json")
    assert [each["id"] for each in client.get("/results").json()["data"]] == [good]
    assert client.get(f"/results/{bad}").status_code == 404


def test_no_result_breaks_the_list(client: LocalClient, data_dir: Path, num_mutations: int) -> None:
    results = ResultStore(data_dir)
    report: dict[str, Any] = {"runs": [{"a": 1.5, "b": [1, 2]}], "text": "x"}
    good = results.keep(ResultKind.BENCH, "tiny", "faster", report)
    file = data_dir / FOLDER / f"{good}.json"
    record = json.loads(file.read_text())
    changed = file.with_name(f"{good[:-1]}{'0' if good[-1] != '0' else '1'}.json")
    num_good = 0
    late = json.dumps({**record, "created_at": 10**400})  # no float is so large
    for each, text in enumerate((late, *mutations(record, num_mutations))):
        changed.write_text(text, encoding="utf-8", errors="surrogatepass")
        is_good = changed.stem in [result.id for result in results.page(2).results]
        num_good += is_good
        if each % 100 == 0 or (is_good and num_good % 10 == 1):  # most can be read
            listed = client.get("/results")
            assert listed.status_code == 200, text[:2_000]
            assert good in [result["id"] for result in listed.json()["data"]]
            one = client.get(f"/results/{changed.stem}")
            assert one.status_code == (200 if is_good else 404), text[:2_000]
    assert 0 < num_good < num_mutations
