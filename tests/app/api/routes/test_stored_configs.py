"""Configs of models that somebody else has written: a broken one is one entry, and ends nothing."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from app.config import ServeSettings
from tests.support.mutations import mutations
from tests.support.serving import LocalClient, local_api
from tests.support.tiny import tiny_model
from tests.support.tiny_directory import tiny_tokenizer

LISTS = ("/models", "/v1/models", "/metrics")
BATCH = 25  # models that are listed at once
BODY = {"prompt": "a", "max_new_tokens": 1}
JOB = {"num_remove": 1, "dry_run": True}
NO_ROOM = 507  # says what is missing


@pytest.fixture
def client(data_dir: Path, settings: ServeSettings, redis_url: str) -> Iterator[LocalClient]:
    assert data_dir
    with local_api(settings, redis_url, preload=("tiny",)) as client:
        yield client


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
def test_no_config_breaks_what_others_ask_for(
    client: LocalClient, data_dir: Path, tmp_path: Path, kind: str, num_mutations: int
) -> None:
    """The numbers are shared among three families."""
    source = tmp_path / "source"
    tiny_model(kind).save_pretrained(source)
    tiny_tokenizer().save_pretrained(source)
    config = json.loads((source / "config.json").read_text())
    waiting: dict[str, str] = {}
    num_loaded = 0
    for number, text in enumerate(mutations(config, num_mutations // 3)):
        waiting[f"m{number}"] = text
        if len(waiting) == BATCH:
            num_loaded += ask(client, source, data_dir / "models", waiting)
            waiting.clear()
    num_loaded += ask(client, source, data_dir / "models", waiting)
    assert num_loaded


def ask(client: LocalClient, source: Path, models: Path, texts: Mapping[str, str]) -> int:
    """How many of these models have answered."""
    for name, text in texts.items():
        (models / name).mkdir()
        for file in source.iterdir():
            if file.name != "config.json":
                os.link(file, models / name / file.name)
        config = models / name / "config.json"
        config.write_text(text, encoding="utf-8", errors="surrogatepass")
    for path in LISTS:
        found = client.get(path)
        assert found.status_code == 200, (path, list(texts.values()))
    assert client.post("/generate", json={**BODY, "model": "tiny"}).status_code == 200
    num_loaded = sum(own_routes(client, name, text) for name, text in texts.items())
    assert client.post("/generate", json={**BODY, "model": "tiny"}).status_code == 200
    for name in texts:
        shutil.rmtree(models / name)
    return num_loaded


def own_routes(client: LocalClient, name: str, text: str) -> bool:
    """Whether the model answers. If not, the answer says why."""
    answers = [
        client.get(f"/models/{name}"),
        client.post("/prune-jobs", json={**JOB, "model": name}),
        client.post("/generate", json={**BODY, "model": name}),
        client.post(f"/models/{name}/unload"),
    ]
    refused = [each for each in answers if each.status_code >= 500 and each.status_code != NO_ROOM]
    assert not refused, (text[:2_000], [each.text for each in refused])
    return answers[2].status_code == 200
