"""``/tokenize`` and ``/detokenize`` have the bodies of vLLM's routes, and load no weights."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tokenizers.processors import TemplateProcessing

from app.config import ServeSettings
from tests.support.serving import local_api
from tests.support.tiny_directory import MAX_POSITIONS, tiny_tokenizer

TEXT = "naïve 数学 🦊 the dog"
MESSAGES = [{"role": "user", "content": "the "}, {"role": "assistant", "content": "dog"}]


@pytest.fixture
def cold_client(settings: ServeSettings, redis_url: str) -> Iterator[TestClient]:
    with local_api(settings, redis_url, preload=[]) as client:
        yield client


@pytest.mark.parametrize("name", ["tiny", "tiny+int8"])
def test_tokens_and_their_text(name: str, cold_client: TestClient) -> None:
    expected = tiny_tokenizer()(TEXT).input_ids
    answer = cold_client.post("/tokenize", json={"model": name, "prompt": TEXT})
    assert answer.json() == {
        "count": len(expected),
        "max_model_len": MAX_POSITIONS,
        "tokens": expected,
        "token_strs": None,
    }
    again = cold_client.post("/detokenize", json={"model": name, "tokens": expected})
    assert again.json() == {"prompt": TEXT}
    special = cold_client.post("/detokenize", json={"model": name, "tokens": [0, *expected, 1]})
    assert special.json() == {"prompt": f"<s>{TEXT}</s>"}
    assert not cold_client.app_state["services"].generation.registry.weight_bytes()


def test_messages_go_through_the_chat_template(cold_client: TestClient) -> None:
    asked = {"model": "tiny", "messages": MESSAGES, "return_token_strs": True}
    answer = cold_client.post("/tokenize", json=asked).json()
    assert answer["tokens"] == tiny_tokenizer()("the dog").input_ids
    assert "".join(answer["token_strs"]) == "the dog"


def test_special_tokens_may_be_left_out(settings: ServeSettings, redis_url: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer.save_pretrained(settings.models_dir / "tiny")
    with local_api(settings, redis_url, preload=[]) as client:
        asked = {"model": "tiny", "prompt": "the dog"}
        [begin, *rest] = client.post("/tokenize", json=asked).json()["tokens"]
        assert begin == 0
        bare = client.post("/tokenize", json={**asked, "add_special_tokens": False})
        assert bare.json()["tokens"] == rest


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/tokenize", {"model": "none", "prompt": "a"}, 404),
        ("/tokenize", {"model": "tiny"}, 422),
        ("/tokenize", {"model": "tiny", "prompt": "a", "messages": MESSAGES}, 422),
        ("/tokenize", {"model": "tiny", "prompt": "a " * 9_999}, 422),
        ("/detokenize", {"model": "tiny", "tokens": []}, 422),
        ("/detokenize", {"model": "tiny", "tokens": [-1]}, 422),
    ],
)
def test_bad_bodies_are_refused(
    path: str, body: dict[str, Any], status: int, cold_client: TestClient
) -> None:
    assert cold_client.post(path, json=body).status_code == status


def test_ids_beyond_the_vocabulary_have_no_text(cold_client: TestClient) -> None:
    answer = cold_client.post("/detokenize", json={"model": "tiny", "tokens": [2**32 - 1]})
    assert answer.status_code == 200
    assert answer.json() == {"prompt": ""}
