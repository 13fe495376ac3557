"""``POST /compare``: what it says of texts, against transformers, and what it says of times."""

import time
from collections.abc import Callable
from itertools import chain, count
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
import torch
from fastapi.testclient import TestClient

from app.config import ServeSettings
from app.engine.engine import Engine
from app.engine.scheduling.scheduler import EngineLimits
from pruning.models.store import LoadedModel
from tests.support.api_fixtures import publish_pruned
from tests.support.comparisons import MODELS, PROMPTS, Noting, compare
from tests.support.engines import gated
from tests.support.exposition import Scrape
from tests.support.raw_requests import send
from tests.support.serving import local_api, serving
from tests.support.waiting import wait_until


@pytest.fixture(autouse=True)
def _published(data_dir: Path) -> None:
    publish_pruned(data_dir)


def generated(client: TestClient, model: str, **body: Any) -> list[dict[str, Any]]:
    asked = {"model": model, "prompt": PROMPTS, "max_new_tokens": 12, "return_token_ids": True}
    response = client.post("/generate", json={**asked, **body})
    outputs: list[dict[str, Any]] = response.json()["outputs"]
    return outputs


@torch.inference_mode()
def mean_logprob(loaded: LoadedModel, prompt: str, answer: list[int]) -> float:
    ids = torch.tensor([loaded.tokenizer(prompt).input_ids + answer])
    logprobs = loaded.model(ids).logits[0, :-1].float().log_softmax(dim=-1)
    return float(logprobs.gather(1, ids[0, 1:, None])[-len(answer) :].mean())


def test_texts_and_divergence_are_those_of_generate(
    client: TestClient, tiny_loaded: LoadedModel
) -> None:
    found = compare(client)
    assert (found["baseline"], found["models"], found["seed"]) == ("tiny", MODELS, None)
    alone = {model: generated(client, model) for model in MODELS}
    num_different = 0
    for index, compared in enumerate(found["prompts"]):
        theirs = alone["tiny"][index]["token_ids"]
        assert compared["prompt_tokens"] == alone["tiny"][index]["prompt_tokens"]
        for model, output in zip(MODELS, compared["outputs"], strict=True):
            expected = alone[model][index]
            for field in ("text", "finish_reason", "completion_tokens"):
                assert output[field] == expected[field]
            ours, parted = expected["token_ids"], output["first_divergence"]
            assert output["variant"] == ("dense" if model == "tiny" else "pruned")
            if ours == theirs:
                assert (output["agreement"], parted) == (1, None)
                continue
            num_different += 1
            at = parted["position"]
            assert ours[:at] == theirs[:at]
            for side, ids in (("model", ours), ("baseline", theirs)):
                token = {"token_id": ids[at], "token": tiny_loaded.tokenizer.decode(ids[at])}
                assert parted[side] == token
            assert output["agreement"] == at / max(len(ours), len(theirs))
    assert num_different


def test_what_the_dense_model_thinks_of_each_text(
    client: TestClient, tiny_loaded: LoadedModel
) -> None:
    found = compare(client, baseline="tiny@-3")
    assert [each["model"] for each in found["results"]] == ["tiny", "tiny@-1"]
    for index, prompt in enumerate(PROMPTS):
        outputs = found["prompts"][index]["outputs"]
        for model, output in zip(MODELS, outputs, strict=True):
            answer = generated(client, model)[index]["token_ids"]
            expected = mean_logprob(tiny_loaded, prompt, answer)
            assert output["mean_logprob"] == pytest.approx(expected, abs=1e-4)
            gap = output["mean_logprob"] - outputs[2]["mean_logprob"]
            assert output["logprob_gap"] == pytest.approx(gap)


@pytest.mark.parametrize("model", ["tiny", "tiny@-2"])
def test_a_model_is_equal_to_itself(client: TestClient, model: str) -> None:
    body = {"temperature": 0.9, "repeats": 12, "ignore_eos": True, "prompt": "the dog"}
    found = compare(client, models=[model, model], **body)
    assert isinstance(found["seed"], int)
    (result,) = found["results"]
    assert (result["agreement"], result["logprob_gap"]) == (1, 0)
    (prompt,) = found["prompts"]
    assert [each["first_divergence"] for each in prompt["outputs"]] == [None, None]
    for kind in ("tpot", "ttft", "e2e"):
        speedup = result[kind]
        assert speedup["low"] <= speedup["ratio"] <= speedup["high"]
        assert speedup["verdict"] in ("no difference", "undecided")


def test_variants_take_turns(
    settings: ServeSettings, redis_url: str, redis_client: redis.Redis
) -> None:
    redis_client.ping()
    engine = Noting()
    with local_api(settings, redis_url, engine) as client:
        compare(client, models=["tiny", "tiny@-1"], prompt="the dog", repeats=4)
    sides = ["tiny", "tiny@-1", "tiny"]  # with the control
    turns = [sides, ["tiny@-1", "tiny", "tiny"], ["tiny", "tiny", "tiny@-1"], sides]
    assert engine.added == [*sides, *chain.from_iterable(turns)]  # one each to warm up


def test_with_even_steps_a_model_is_as_fast_as_itself(
    settings: ServeSettings, redis_url: str, redis_client: redis.Redis
) -> None:
    redis_client.ping()
    # later than any request arrives, in binary fractions: rounding would be a difference
    later_s, ticks = round(time.monotonic()) + 1000, count()
    clock: Callable[[], float] = lambda: later_s + next(ticks) / 1024  # noqa: E731
    engine = Engine(EngineLimits(max_num_seqs=8), clock=clock)
    with local_api(settings, redis_url, engine) as client:
        (result,) = compare(client, models=["tiny", "tiny"], ignore_eos=True)["results"]
    assert result["tpot"]["ratio"] == pytest.approx(1.0)
    assert result["tpot"]["low"] <= 1.0 + 1e-9
    assert result["tpot"]["high"] >= 1.0 - 1e-9
    assert result["tpot"]["verdict"] == "no difference"


def test_with_a_seed_every_model_draws_the_same_numbers(client: TestClient) -> None:
    body: dict[str, Any] = {"temperature": 1.0, "seed": 7}
    found = compare(client, models=["tiny", "tiny@-1"], **body)
    assert found["seed"] == 7
    for column, model in enumerate(["tiny", "tiny@-1"]):
        texts = [each["outputs"][column]["text"] for each in found["prompts"]]
        assert texts == [each["text"] for each in generated(client, model, **body)]


def test_every_repeat_has_timings_and_one_has_no_interval(client: TestClient) -> None:
    found = compare(client, repeats=3, ignore_eos=True)
    for prompt in found["prompts"]:
        for output in prompt["outputs"]:
            assert len(output["timings"]) == 3
            for timings in output["timings"]:
                assert 0 <= timings["queue_s"] < timings["ttft_s"] < timings["e2e_s"]
    once = compare(client, repeats=1, ignore_eos=True)
    for result in once["results"]:
        speedup = result["tpot"]
        assert (speedup["low"], speedup["high"]) == (None, None)
        assert speedup["verdict"] == "undecided"
    for result in found["results"]:
        column = MODELS.index(result["model"])
        sums = [
            sum(
                timings["tpot_s"]
                for prompt in found["prompts"]
                for timings in prompt["outputs"][each]["timings"]
            )
            for each in (0, column)
        ]
        assert result["tpot"]["ratio"] == pytest.approx(sums[0] / sums[1])


def test_a_shorter_answer_is_no_speed_up(client: TestClient) -> None:
    stop = generated(client, "tiny@-3")[0]["token_ids"][1]  # soon in one answer, not in the other
    body = {"stop_token_ids": [stop], "ignore_eos": True, "prompt": PROMPTS[0], "repeats": 2}
    found = compare(client, models=["tiny", "tiny@-3"], **body)
    lengths = [each["completion_tokens"] for each in found["prompts"][0]["outputs"]]
    assert lengths[0] != lengths[1]
    (result,) = found["results"]
    assert result["e2e"]["verdict"] == "undecided"
    assert "differ in length" in result["e2e"]["reason"]


def test_one_token_has_no_time_per_token(client: TestClient) -> None:
    for result in compare(client, max_new_tokens=1)["results"]:
        assert result["tpot"] is None
        assert result["ttft"] is not None


def test_it_is_counted_as_bench_traffic(client: TestClient) -> None:
    compare(client)
    scrape = Scrape(client.get("/metrics").text)
    labels = {"model_name": "tiny@-3", "variant": "pruned", "finished_reason": "length"}
    name = "sleb_request_success_total"
    counted = sum(
        scrape.value(name, **{**labels, "traffic": "bench", "finished_reason": reason}) or 0
        for reason in ("length", "stop")
    )
    assert counted == 1 + 2 * len(PROMPTS)  # a short one to warm up
    assert 'traffic="live"' not in client.get("/metrics").text


@pytest.mark.parametrize(
    ("body", "status", "type_"),
    [
        ({"models": ["tiny", "none"]}, 404, "model-not-found"),
        ({"models": ["tiny", "tiny@-9"]}, 404, "model-not-found"),
        ({"models": ["tiny"]}, 422, "invalid-request"),
        ({"models": ["tiny"] * 9}, 422, "invalid-request"),
        ({"repeats": 0}, 422, "invalid-request"),
        ({"repeats": 64}, 422, "not-comparable"),  # 2 prompts, 3 models
        ({"prompt": ["a"] * 129, "models": ["tiny"] * 2, "repeats": 1}, 422, "not-comparable"),
        ({"prompt": ["a"] * 128, "models": ["tiny"] * 2, "repeats": 1}, 422, "request-refused"),
        ({"baseline": "tiny@-2"}, 422, "not-comparable"),
        ({"model": "tiny"}, 422, "invalid-request"),
        ({"temperature": -1}, 422, "invalid-sampling"),
        ({"max_new_tokens": 5000}, 422, "prompt-too-long"),
        (
            {"prompt": ["the dog"] * 13, "models": ["tiny"] * 2, "repeats": 1},
            422,
            "request-refused",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(
    client: TestClient, body: dict[str, Any], status: int, type_: str
) -> None:
    asked = {"models": MODELS, "prompt": PROMPTS, **body}
    response = client.post("/compare", json=asked)
    assert (response.status_code, response.json()["type"]) == (status, type_), response.text


def test_variants_of_different_models_are_refused(client: TestClient, data_dir: Path) -> None:
    (data_dir / "models" / "other").symlink_to(data_dir / "models" / "tiny")
    response = client.post("/compare", json={"models": ["tiny", "other"], "prompt": "the dog"})
    assert (response.status_code, response.json()["type"]) == (422, "not-comparable")


@pytest.mark.parametrize("num_steps", [0, 4, 30], ids=["at first", "in the first", "later"])
def test_a_client_that_leaves_ends_it(
    settings: ServeSettings, redis_url: str, num_steps: int
) -> None:
    body = {"models": MODELS, "prompt": PROMPTS, "max_new_tokens": 60, "ignore_eos": True}
    with gated(num_steps) as engine, serving(settings, redis_url, engine=engine) as (server, url):
        wait_until(lambda: httpx2.get(f"{url}/health/ready").is_success, "the API is ready")
        wait_until(lambda: not server.server_state.connections, "no client is connected")
        connection = send(url, "/compare", {**body, "repeats": 20}, common={})
        wait_until(lambda: engine.is_at_gate, "it has begun")
        connection.close()
        wait_until(lambda: not server.server_state.connections, "the server has noticed")
        before = engine.num_steps
        engine.gate.set()
        each = server.lifespan.state["services"].generation.engine
        wait_until(lambda: not each.stats().num_running, "the engine is idle")
        assert engine.num_steps - before <= 2
        assert httpx2.get(f"{url}/health/ready").is_success
