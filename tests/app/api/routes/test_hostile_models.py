"""Folders of models that would take all memory: each is one entry, and the others are served."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.config import ServeSettings
from pruning.models.opening import OpeningProcess
from tests.support.hostile_models import TEMPLATES, tokenizers, write_changed
from tests.support.serving import LocalClient, local_api
from tests.support.waiting import wait_until

BODY = {"prompt": "a", "max_new_tokens": 1}


@pytest.fixture
def client(
    data_dir: Path, settings: ServeSettings, redis_url: str, opening_process: OpeningProcess
) -> Iterator[LocalClient]:
    assert data_dir
    assert opening_process
    with local_api(settings, redis_url, preload=("tiny",)) as client:
        yield client


def test_the_service_answers_while_models_are_opened(client: LocalClient, data_dir: Path) -> None:
    source, models = data_dir / "models" / "tiny", data_dir / "models"
    write_changed(source, models / "grows", "tokenizer.json", tokenizers()["nested replacements"])
    write_changed(source, models / "loops", "config.json", {})
    (models / "loops" / "chat_template.jinja").unlink()
    (models / "loops" / "chat_template.jinja").write_text(TEMPLATES["loops"])
    listed: list[dict[str, str | None]] = []

    def list_models() -> None:
        entries = client.get("/models").json()["data"]
        listed.append({entry["id"]: entry["error"] for entry in entries})

    listing = threading.Thread(target=list_models)
    listing.start()
    slowest_s, num_asked = 0.0, 0
    while listing.is_alive():
        began_s = time.monotonic()
        assert client.get("/health/live").status_code == 200
        slowest_s = max(slowest_s, time.monotonic() - began_s)
        assert client.post("/generate", json={**BODY, "model": "tiny"}).status_code == 200
        num_asked += 1
    wait_until(lambda: not listing.is_alive(), "the models are listed")
    assert num_asked > 3
    assert slowest_s < 1  # idle machines: some ms
    [errors] = listed
    assert errors["tiny"] is None
    assert "times as long" in str(errors["grows"])
    assert "takes more than 3 s" in str(errors["loops"])
    for name in ("grows", "loops"):
        refused = client.post("/generate", json={**BODY, "model": name})
        assert refused.status_code == 422, refused.text
        assert client.post("/prune-jobs", json={"model": name}).status_code in (404, 422)
