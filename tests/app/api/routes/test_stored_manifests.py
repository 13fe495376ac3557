"""Manifests that somebody else has written: a broken one is one entry, and hides no other."""

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.config import ServeSettings
from pruning.checkpoints.store import MANIFEST, CheckpointCorrupt, Manifest, parse_manifest
from tests.support.api_fixtures import publish_pruned
from tests.support.mutations import mutations
from tests.support.object_stores import folder_store
from tests.support.serving import LocalClient, local_api
from tests.support.waiting import wait_until

LISTS = ("/models", "/v1/models", "/metrics")
BATCH = 50  # manifests that are listed at once
BROKEN: dict[str, dict[str, Any]] = {
    "time": {"created_at": "x"},
    "late": {"created_at": 1e300},
    "parent": {"parent": None},
    "blocks": {"removed_blocks": [0, 0]},
    "block": {"removed_blocks": [1_000_000]},
    "depth": {"num_blocks": 10**9},
    "text": {"dtype": "\ud800"},
    "place": {"files": {"../x": {"num_bytes": 1, "sha256": "a"}}},
    "tenant": {"tenant": 5},
    "unknown": {"more": 1},
}


@pytest.fixture
def manifest(data_dir: Path) -> Manifest:
    return publish_pruned(data_dir)


@pytest.fixture
def client(manifest: Manifest, settings: ServeSettings, redis_url: str) -> Iterator[LocalClient]:
    assert manifest
    with local_api(settings, redis_url, preload=("tiny",)) as client:
        yield client


def write(data_dir: Path, name: str, text: str) -> Path:
    file = data_dir / "checkpoints" / name / MANIFEST
    file.parent.mkdir(exist_ok=True)
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    return file


def test_a_broken_manifest_is_one_entry_and_one_line(
    client: LocalClient, manifest: Manifest, data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = json.loads(manifest.to_json())
    for name, changes in BROKEN.items():
        write(data_dir, f"tiny@{name}", json.dumps({**good, **changes}))
    write(data_dir, "tiny@deep", "[" * 200_000)
    names = {f"tiny@{name}" for name in (*BROKEN, "deep")}
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            entries = {each["id"]: each for each in client.get("/models").json()["data"]}
            assert all(client.get(path).status_code == 200 for path in LISTS)
    assert {name for name, each in entries.items() if each["error"]} == names
    assert {entries[name]["variant"] for name in names} == {"pruned"}
    assert {"tiny", "tiny@-1", manifest.name} <= entries.keys() - names
    lines = [line for line in caplog.messages if "a corrupt checkpoint is not served" in line]
    assert len(lines) == len(names)
    body = {"prompt": "a", "max_new_tokens": 1}
    for name in ("tiny", "tiny@-1", manifest.name):
        assert client.post("/generate", json={**body, "model": name}).status_code == 200
    for name in names:
        assert client.post("/generate", json={**body, "model": name}).status_code == 404
        write(data_dir, name, json.dumps({**good, "name": name}))
    entries = {each["id"]: each for each in client.get("/models").json()["data"]}
    assert not any(each["error"] for each in entries.values())


def test_a_broken_manifest_of_a_store_hides_no_other(
    manifest: Manifest, settings: ServeSettings, redis_url: str, tmp_path: Path
) -> None:
    store = folder_store(tmp_path / "store")
    store.put_manifest("tiny@a", json.dumps({"created_at": "x"}).encode())
    store.put_manifest("tiny@b", b"[" * 200_000)
    store.put_manifest("tiny@c", manifest.to_json().replace(manifest.name, "tiny@c").encode())
    with local_api(settings, redis_url, checkpoint_store=store.url) as client:

        def entries() -> dict[str, Any]:
            return {each["id"]: each for each in client.get("/models").json()["data"]}

        wait_until(lambda: "tiny@c" in entries(), "the store is listed")
        assert {name for name, each in entries().items() if each["error"]} == {"tiny@a", "tiny@b"}
        assert all(client.get(path).status_code == 200 for path in LISTS)


def test_no_manifest_breaks_the_lists(
    client: LocalClient, manifest: Manifest, data_dir: Path, num_mutations: int
) -> None:
    """The routes get all that can be parsed, and each hundredth of the rest."""
    good, num_good = json.loads(manifest.to_json()), 0
    asked: dict[str, str] = {}
    for each, text in enumerate(mutations(good, num_mutations)):
        is_good = parses(text)
        num_good += is_good
        if is_good or each % 100 == 0:
            asked[f"tiny@m{each}"] = text
        if len(asked) == BATCH:
            ask(client, data_dir, manifest.name, asked)
            asked.clear()
    ask(client, data_dir, manifest.name, asked)
    assert 0 < num_good < num_mutations


def parses(text: str) -> bool:
    try:
        parse_manifest(text.encode(errors="surrogatepass"), "tiny@m")
    except CheckpointCorrupt:
        return False
    return True


def ask(client: LocalClient, data_dir: Path, good: str, texts: dict[str, str]) -> None:
    files = [write(data_dir, name, text) for name, text in texts.items()]
    for path in LISTS:
        assert client.get(path).status_code == 200, (path, list(texts.values()))
    assert good in client.get("/models").text
    for name, text in texts.items():
        body = {"model": name, "prompt": "a", "max_new_tokens": 1}
        found = [client.get(f"/models/{name}"), client.post("/generate", json=body)]
        assert not [one.text for one in found if one.status_code >= 500], text[:2_000]
    for file in files:
        file.unlink()
        file.parent.rmdir()


def test_a_manifest_of_a_million_removals_is_refused_before_it_is_read(
    client: LocalClient, manifest: Manifest, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lengths alone rule it out, and the same content is parsed once."""
    good, many = json.loads(manifest.to_json()), 10**6
    quality = {**good["quality"], "losses": [1.0] * many}
    hostile: dict[str, dict[str, Any]] = {
        "blocks": {"removed_blocks": [*range(many)], "num_blocks": many + 1},
        "removed": {"removed_blocks": [*range(many)]},
        "losses": {"quality": quality},
    }
    for name, changes in hostile.items():
        write(data_dir, f"tiny@{name}", json.dumps({**good, **changes}))
    parsed: list[str] = []

    def parse(content: bytes, place: str) -> Manifest:
        parsed.append(place)
        return parse_manifest(content, place)

    monkeypatch.setattr("app.models.published.parse_manifest", parse)
    began_s = time.process_time()
    for path in LISTS * 3:
        assert client.get(path).status_code == 200
    assert time.process_time() - began_s < 5
    assert len(parsed) == len({*parsed})
    reasons = [each["error"] for each in client.get("/models").json()["data"] if each["error"]]
    assert len(reasons) == 3
    assert all("expected" in reason for reason in reasons)
