"""``POST /generate`` against what transformers generates, and against all that is not a request."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.generation.output import OutputStream
from pruning.models.store import LoadedModel
from tests.support.api_fixtures import publish_pruned
from tests.support.exposition import Scrape
from tests.support.generate_requests import PROMPTS, generate, oracle
from tests.support.tiny_directory import MAX_POSITIONS
from tests.support.waiting import wait_until


@pytest.mark.parametrize("num_removed", [0, 1, 3])
def test_answers_are_the_tokens_of_generate(
    client: TestClient, data_dir: Path, tiny_loaded: LoadedModel, num_removed: int
) -> None:
    manifest = publish_pruned(data_dir)
    name = f"tiny@-{num_removed}" if num_removed else "tiny"
    found = generate(client, model=name, prompt=PROMPTS, max_new_tokens=12, return_token_ids=True)
    assert found["variant"] == ("pruned" if num_removed else "dense")
    for output, prompt in zip(found["outputs"], PROMPTS, strict=True):
        expected = oracle(tiny_loaded, prompt, manifest.keep_after(num_removed), 12)
        assert output["token_ids"] == expected
        assert output["completion_tokens"] == len(expected)
        assert output["prompt_tokens"] == len(tiny_loaded.tokenizer(prompt).input_ids)
        text = tiny_loaded.tokenizer.decode(expected, skip_special_tokens=True)
        assert output["text"] == text


def test_timings_add_up(client: TestClient) -> None:
    for output in generate(client, prompt=PROMPTS, max_new_tokens=8, ignore_eos=True)["outputs"]:
        timings = output["timings"]
        assert 0 <= timings["queue_s"] <= timings["ttft_s"] <= timings["e2e_s"]
        assert timings["ttft_s"] + 7 * timings["tpot_s"] == pytest.approx(timings["e2e_s"])
        assert output["finish_reason"] == "length"
        assert output["completion_tokens"] == 8


def test_an_answer_that_is_not_streamed_is_made_without_deltas(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OutputStream, "take_delta", lambda _: pytest.fail("a delta was made"))
    outputs = generate(client, prompt=PROMPTS, max_new_tokens=4, ignore_eos=True)["outputs"]
    assert [output["completion_tokens"] for output in outputs] == [4] * len(PROMPTS)


def test_one_token_has_no_time_per_output_token(client: TestClient) -> None:
    (output,) = generate(client, max_new_tokens=1, ignore_eos=True)["outputs"]
    assert output["timings"]["tpot_s"] is None


def test_a_seed_gives_the_same_text_whatever_else_is_in_the_batch(client: TestClient) -> None:
    sampling = {"temperature": 1.5, "seed": 7, "max_new_tokens": 10}
    alone = generate(client, prompt="the dog", **sampling)["outputs"][0]["text"]
    among = generate(client, prompt=[*PROMPTS, "the dog"], **sampling)["outputs"][3]["text"]
    other = generate(client, prompt="the dog", **{**sampling, "seed": 8})["outputs"][0]["text"]
    assert alone == among
    assert alone != other


def test_text_ends_in_front_of_a_stop_string(client: TestClient) -> None:
    whole = generate(client, max_new_tokens=20, ignore_eos=True)["outputs"][0]["text"]
    stop = whole[5:7]
    (output,) = generate(client, max_new_tokens=20, ignore_eos=True, stop=stop)["outputs"]
    assert output["text"] == whole[: whole.index(stop)]
    assert output["finish_reason"] == "stop"
    assert output["completion_tokens"] <= 20


def test_a_new_job_s_variants_appear_at_once_and_share_the_dense_weights(
    client: TestClient, data_dir: Path
) -> None:
    registry = client.app_state["services"].generation.registry
    generate(client)
    before = registry.weight_bytes()
    assert client.post("/generate", json={"model": "tiny@-1", "prompt": "a"}).status_code == 404
    manifest = publish_pruned(data_dir)
    for name in ("tiny@-1", "tiny@-2", "tiny@-3", manifest.name, f"{manifest.name}-2"):
        generate(client, model=name, max_new_tokens=4)
    assert registry.weight_bytes() == before


def test_a_checkpoint_without_its_parent_is_served_from_its_own_weights(
    client: TestClient, data_dir: Path, tiny_loaded: LoadedModel
) -> None:
    manifest = publish_pruned(data_dir)
    (data_dir / "models" / "tiny").rename(data_dir / "models" / ".gone")
    found = generate(client, model=manifest.name, max_new_tokens=6, return_token_ids=True)
    expected = oracle(tiny_loaded, "the dog", manifest.keep, 6)
    assert found["outputs"][0]["token_ids"] == expected
    response = client.post("/generate", json={"model": f"{manifest.name}-2", "prompt": "a"})
    assert response.status_code == 404
    assert "needs its dense model 'tiny'" in response.json()["detail"]


BAD: list[tuple[dict[str, Any], int]] = [
    ({"model": "other"}, 404),
    ({"model": "tiny@-1"}, 404),
    ({"model": "../tiny"}, 404),
    ({"model": "tiny@"}, 404),
    ({"model": "@-1"}, 404),
    ({"model": "tiny\0"}, 404),
    ({"model": ""}, 422),
    ({"model": None}, 422),
    ({"prompt": ""}, 422),
    ({"prompt": []}, 422),
    ({"prompt": ["a", ""]}, 422),
    ({"prompt": ["a"] * 13}, 422),
    ({"prompt": ["a"] * 257}, 422),
    ({"prompt": 7}, 422),
    ({"prompt": "the dog " * MAX_POSITIONS}, 422),
    ({"max_new_tokens": MAX_POSITIONS}, 422),
    ({"max_new_tokens": 0}, 422),
    ({"max_new_tokens": -1}, 422),
    ({"max_new_tokens": 10**30}, 422),
    ({"max_new_tokens": 1.5}, 422),
    ({"temperature": -0.1}, 422),
    ({"temperature": 1e300}, 422),
    ({"top_p": 0}, 422),
    ({"top_p": 1.1}, 422),
    ({"top_k": -1}, 422),
    ({"seed": -1}, 422),
    ({"seed": 2**64}, 422),
    ({"stop": ""}, 422),
    ({"stop": ["x"] * 17}, 422),
    ({"no_such_field": 1}, 422),
]


@pytest.mark.parametrize(("change", "status"), BAD)
def test_a_bad_request_is_a_clear_4xx(
    client: TestClient, change: dict[str, Any], status: int
) -> None:
    response = client.post("/generate", json={"model": "tiny", "prompt": "the dog", **change})
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == status
    assert len(problem["detail"]) > 10
    assert client.get("/health/ready").status_code == 200
    generate(client, max_new_tokens=1)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"model": "tiny", "prompt": "a", "temperature": NaN}', 422),
        (b'{"model": "tiny", "prompt": "a", "temperature": Infinity}', 422),
        (b'{"model": "tiny", "prompt": "\\ud800"}', 422),
        (b'{"model": "tiny", "prompt": ["a", "\\ud800"]}', 422),
        (b'{"model": "tiny", "prompt": "a", "stop": ["\\ud800"]}', 422),
        (b'{"model": "tiny", "prompt": "a", "\\ud800": 1}', 422),
        (b'{"model": "tiny", "prompt": "\xff"}', 400),
        (b'{"model": "tiny", "prompt": ' + b"[" * 40_000 + b"]" * 40_000 + b"}", 400),
        (b"{", 422),
        (b"[]", 422),
        (b"null", 422),
        (b"\xff\xfe", 422),
        (b"", 422),
        (b'{"model": "tiny", "prompt": "' + b"a" * 10_000_000 + b'"}', 413),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_bad_body_is_a_clear_4xx(client: TestClient, body: bytes, status: int) -> None:
    headers = {"content-type": "application/json"}
    response = client.post("/generate", content=body, headers=headers)
    assert response.status_code == status, response.text[:500]
    assert response.headers["content-type"] == "application/problem+json"
    assert len(response.text) < 2000
    generate(client, max_new_tokens=1)


def test_more_than_may_wait_is_refused_whole_with_advice_when_to_come_back(
    client: TestClient,
) -> None:
    body = {"model": "tiny", "prompt": ["the dog"] * 12, "max_new_tokens": 250, "ignore_eos": True}
    each = {"model_name": "tiny", "variant": "dense"}
    with ThreadPoolExecutor() as pool:
        running = pool.submit(client.post, "/generate", json=body)
        wait_until(
            lambda: (
                Scrape(client.get("/metrics").text).value("sleb_num_requests_running", **each) == 8
            ),
            "all slots taken",
        )
        response = client.post("/generate", json={"model": "tiny", "prompt": "the dog"})
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) >= 1
        assert running.result().status_code == 200
    generate(client, max_new_tokens=1)
    each = {"model_name": "other", "variant": "unknown"}  # it was not parsed
    each |= {"traffic": "live", "engine": "unknown", "reason": "queue_full"}
    assert Scrape(client.get("/metrics").text).value("sleb_admission_rejections_total", **each) == 1
