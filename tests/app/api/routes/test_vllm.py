"""SLEB_ENGINE=vllm: the same API over processes of this service that speak vLLM's routes."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from app.config import ServeSettings
from tests.support.api_fixtures import publish_pruned
from tests.support.exposition import Scrape
from tests.support.processes import is_alive
from tests.support.serving import LocalClient, local_api
from tests.support.tiny_checkpoints import write_checkpoint
from tests.support.vllm_program import run_by
from tests.support.waiting import wait_until


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """Where each server leaves a file with its process id as the name."""
    path = tmp_path / "notes"
    path.mkdir()
    return path


@pytest.fixture
def vllm_settings(settings: ServeSettings, tmp_path: Path, notes: Path) -> ServeSettings:
    return run_by(settings, tmp_path, f"--test-notes {notes}", vllm_start_s=60.0)


@pytest.fixture
def api(vllm_settings: ServeSettings, redis_url: str) -> Iterator[LocalClient]:
    with local_api(vllm_settings, redis_url) as client:
        yield client


def server_pids(notes: Path) -> list[int]:
    return [int(path.name) for path in notes.iterdir() if is_alive(int(path.name))]


def publish_two(data_dir: Path) -> tuple[str, str]:
    """The names of two checkpoints: a depth within one would be exported, by a process."""
    return publish_pruned(data_dir, 3).name, publish_pruned(data_dir, 2, job="prn-2").name


def generate(api: LocalClient, **body: Any) -> httpx2.Response:
    return api.post("/generate", json={"model": "tiny", "prompt": "the dog", **body})


def model(api: LocalClient, name: str = "tiny") -> dict[str, Any]:
    found: dict[str, Any] = api.get(f"/models/{name}").json()
    return found


def num_running(api: LocalClient) -> float | None:
    labels = {"model_name": "tiny", "variant": "dense"}
    return Scrape(api.get("/metrics").text).value("sleb_num_requests_running", **labels)


def test_it_generates_with_token_ids(api: LocalClient) -> None:
    answer = generate(api, max_new_tokens=4, logprobs=1)
    assert answer.status_code == 200, answer.text
    [output] = answer.json()["outputs"]
    ids = [token["token_id"] for token in output["logprobs"]]
    assert ids == [ids[0] + step for step in range(4)]
    assert [token["logprob"] for token in output["logprobs"]] == [-each / 10 for each in ids]
    assert output["finish_reason"] == "length"
    assert "".join(token["token"] for token in output["logprobs"]) == output["text"]
    assert output["timings"]["ttft_s"] > 0


def test_a_stream_and_the_openai_routes_say_the_same(api: LocalClient) -> None:
    body = {"model": "tiny", "prompt": "the dog", "max_tokens": 5, "temperature": 0}
    whole = api.post("/v1/completions", json=body).json()
    with api.stream("POST", "/v1/completions", json=body | {"stream": True}) as response:
        lines = [line for line in response.iter_lines() if line.startswith("data: {")]
    texts = [choice["text"] for line in lines for choice in json.loads(line[6:])["choices"]]
    assert "".join(texts) == whole["choices"][0]["text"]
    assert (
        whole["choices"][0]["text"] == generate(api, max_new_tokens=5).json()["outputs"][0]["text"]
    )
    assert whole["usage"]["completion_tokens"] == 5
    assert whole["system_fingerprint"].startswith("fp_")


def test_a_chat_is_rendered_here(api: LocalClient) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
    answer = api.post("/v1/chat/completions", json=body).json()
    assert answer["usage"]["prompt_tokens"] == 2
    assert answer["choices"][0]["finish_reason"] == "length"  # where the context ends


def test_the_prompt_has_logprobs_too(api: LocalClient) -> None:
    body = {"model": "tiny", "prompt": [5, 6, 7], "echo": True, "logprobs": 1, "max_tokens": 0}
    [choice] = api.post("/v1/completions", json=body).json()["choices"]
    assert choice["logprobs"]["token_logprobs"] == [None, -0.6, -0.7]
    assert len(choice["logprobs"]["tokens"]) == 3


def test_what_vllm_lacks_is_refused_by_name(api: LocalClient) -> None:
    answer = generate(api, reproducible=True)
    assert answer.status_code == 422
    assert answer.json()["param"] == "reproducible"
    assert generate(api, max_new_tokens=100_000).json()["type"] == "prompt-too-long"


@pytest.mark.slow
def test_a_pruned_model_that_vllm_gets_wrong_is_refused(
    vllm_settings: ServeSettings, redis_url: str, data_dir: Path
) -> None:
    write_checkpoint(data_dir / "models" / "oss", "gpt_oss")
    publish_pruned(data_dir, 2, model="oss")
    with local_api(vllm_settings, redis_url) as api:
        refused = generate(api, model="oss@-2")
        assert (refused.status_code, refused.json()["type"]) == (422, "unsupported-config")
        assert "every other block of a gpt_oss" in refused.json()["detail"]
        assert model(api, "oss@-2")["server"] is None
        dense = generate(api, model="oss", max_new_tokens=2)
        assert dense.status_code == 200, dense.text


def test_states_are_told(api: LocalClient) -> None:
    assert generate(api).status_code == 200
    found = model(api)
    assert (found["backend"], found["is_loaded"]) == ("vllm", True)
    assert found["server"] == {
        "state": "ready",
        "detail": None,
        "num_restarts": 0,
        "version": "0.32.0",
    }
    assert api.get("/health/ready").json()["vllm"]["tiny"]["state"] == "ready"
    labels = {"model_name": "tiny", "variant": "dense", "traffic": "live", "engine": "vllm"}
    assert Scrape(api.get("/metrics").text).value("sleb_generation_tokens_total", **labels)
    assert num_running(api) == 0


@pytest.mark.slow
def test_a_variant_is_exported_once(
    api: LocalClient, data_dir: Path, vllm_settings: ServeSettings
) -> None:
    publish_pruned(data_dir, 3)
    answer = generate(api, model="tiny@-2", max_new_tokens=3)
    assert answer.status_code == 200, answer.text
    [exported] = (vllm_settings.vllm_dir / "exports").glob("*/model/config.json")
    written_s = exported.stat().st_mtime
    assert api.post("/models/tiny@-2/unload").status_code == 204
    assert model(api, "tiny@-2")["server"] is None
    assert generate(api, model="tiny@prn-1-2", max_new_tokens=3).status_code == 200
    assert exported.stat().st_mtime == written_s
    # a published checkpoint is read as it is
    assert generate(api, model="tiny@-3", max_new_tokens=3).status_code == 200
    assert len(list((vllm_settings.vllm_dir / "exports").iterdir())) == 1


def test_the_least_recently_used_server_is_stopped(
    api: LocalClient, data_dir: Path, notes: Path
) -> None:
    first, second = publish_two(data_dir)
    for name in ("tiny", first, "tiny", second):
        assert generate(api, model=name).status_code == 200
    assert model(api, first)["server"] is None
    assert model(api, "tiny")["is_loaded"]
    assert len(server_pids(notes)) == 2


def test_a_death_is_503_and_then_it_is_served_again(
    vllm_settings: ServeSettings, redis_url: str, notes: Path
) -> None:
    slow = f"{vllm_settings.vllm_args} --test-token-s 0.05"
    with local_api(vllm_settings, redis_url, vllm_args=slow) as api:
        api.post("/models/tiny/load")
        [pid] = server_pids(notes)
        with api.stream(
            "POST",
            "/generate",
            json={"model": "tiny", "prompt": "a", "stream": True, "max_new_tokens": 50},
        ) as response:
            lines = response.iter_lines()
            next(lines)
            os.kill(pid, signal.SIGKILL)
            rest = list(lines)
        assert any("vLLM of 'tiny'" in line and "retry the request" in line for line in rest)
        answer = generate(api)
        if answer.status_code != 200:
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) >= 1
        wait_until(lambda: generate(api).status_code == 200, "it is served again")
        assert model(api)["server"]["num_restarts"] == 1


def test_an_engine_that_dies_within_vllm_is_503_too(
    vllm_settings: ServeSettings, redis_url: str, notes: Path
) -> None:
    """vLLM reports it in the stream, and ends some seconds later."""
    args = f"{vllm_settings.vllm_args} --test-token-s 0.2 --test-outlives-s 1"
    with local_api(vllm_settings, redis_url, vllm_args=args) as api:
        api.post("/models/tiny/load")
        [pid] = server_pids(notes)
        [engine] = psutil.Process(pid).children()
        with ThreadPoolExecutor(1) as pool:
            answering = pool.submit(generate, api, max_new_tokens=59)
            wait_until(lambda: num_running(api) == 1, "it is asked")
            engine.kill()
            answer = answering.result()
        assert answer.status_code == 503, answer.text
        assert int(answer.headers["retry-after"]) >= 1
        wait_until(lambda: generate(api, max_new_tokens=1).is_success, "it is served again")
        assert model(api)["server"]["num_restarts"] == 1
        assert num_running(api) == 0


def test_a_killed_keeper_leaves_nothing_beside_the_next_server(
    vllm_settings: ServeSettings, redis_url: str, notes: Path
) -> None:
    with local_api(vllm_settings, redis_url) as api:
        api.post("/models/tiny/load")
        [pid] = server_pids(notes)
        vllm = psutil.Process(pid)
        family, kept_by = [pid, *(child.pid for child in vllm.children())], vllm.parent()
        assert kept_by is not None
        kept_by.kill()
        wait_until(lambda: model(api)["server"]["num_restarts"] == 1, "it is started again")
        wait_until(lambda: not any(map(is_alive, family)), "nothing is left of the first one")


def test_nothing_is_left_when_the_service_ends(
    vllm_settings: ServeSettings, redis_url: str, notes: Path
) -> None:
    with local_api(vllm_settings, redis_url) as api:
        assert generate(api).status_code == 200
        [pid] = server_pids(notes)
        family = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
        assert len(family) == 2
    assert not any(map(is_alive, family))


BROKEN = [
    ("--test-version 0.8.5", "vLLM 0.8.5 is too old, expected 0.20 or newer"),
    ("--test-hang", "generated no token within 1 s"),
]


@pytest.mark.parametrize(("options", "expected"), BROKEN)
def test_a_start_that_fails_is_told_in_a_sentence(
    vllm_settings: ServeSettings, redis_url: str, notes: Path, options: str, expected: str
) -> None:
    args = f"{vllm_settings.vllm_args} {options}"
    start_s = 1.0 if "hang" in options else 60.0
    with local_api(
        vllm_settings, redis_url, vllm_args=args, vllm_start_s=start_s, preload=()
    ) as api:
        answer = generate(api)
        assert answer.status_code == 503
        assert expected in answer.json()["detail"]
        assert int(answer.headers["retry-after"]) > 10
        assert model(api)["server"]["state"] == "failed"
        assert api.get("/health/ready").status_code == 200
        assert not server_pids(notes)
        assert api.post("/models/tiny/unload").status_code == 204
        assert model(api)["server"] is None


def test_a_broken_checkpoint_is_told_in_a_sentence(
    vllm_settings: ServeSettings, redis_url: str, data_dir: Path, notes: Path
) -> None:
    weights = data_dir / "models" / "tiny" / "model.safetensors"
    with local_api(vllm_settings, redis_url, preload=()) as api:
        weights.write_bytes(weights.read_bytes()[:-100])
        answer = generate(api)
    assert answer.status_code == 422
    assert "its header says" in answer.json()["detail"]
    assert not list(notes.iterdir())


@pytest.mark.parametrize(
    "said", ["no kernel implements the layer", "Engine core initialization failed: it was killed"]
)
def test_what_vllm_says_of_a_model_that_it_cannot_load_is_told(
    vllm_settings: ServeSettings, redis_url: str, said: str
) -> None:
    """Its last error, and no warning of another one."""
    refuse = f"--test-refuse '{said}'"
    with local_api(vllm_settings, redis_url, preload=(), vllm_args=refuse) as api:
        detail = generate(api).json()["detail"]
    assert detail.startswith("vLLM is not serving 'tiny': vLLM exited with code 1 before it")
    assert f"ValueError: {said}" in detail
    log = vllm_settings.vllm_dir / "logs" / "tiny.log"
    assert str(log) in detail
    assert "Traceback" in log.read_text()


def test_too_little_memory_is_told_before_anything_starts(
    vllm_settings: ServeSettings, redis_url: str, notes: Path
) -> None:
    with local_api(vllm_settings, redis_url, preload=(), kv_cache_bytes=2**50) as api:
        detail = generate(api).json()["detail"]
    assert "bytes in vLLM for weights and cache, but only" in detail
    assert not list(notes.iterdir())


def test_a_comparison_says_engine_and_version(api: LocalClient, data_dir: Path) -> None:
    publish_pruned(data_dir, 3)
    body = {"models": ["tiny", "tiny@-3"], "prompt": ["the dog"], "max_new_tokens": 16}
    answer = api.post("/compare", json=body | {"repeats": 3})
    assert answer.status_code == 200, answer.text
    assert not (data_dir / "speedups.json").exists(), "these are speeds of the own engine"
    found = answer.json()
    assert (found["engine"]["name"], found["engine"]["version"]) == ("vllm", "0.32.0")
    [result] = found["results"]
    assert result["agreement"] == 1
    assert result["logprob_gap"] == 0
    ids = [output["mean_logprob"] for output in found["prompts"][0]["outputs"]]
    assert ids[0] == ids[1] < 0


def test_an_evaluation_reads_its_windows_in_vllm(api: LocalClient, data_dir: Path) -> None:
    publish_pruned(data_dir, 3)
    body = {"model": "tiny@-3", "texts": ["prose"], "num_windows": 2, "seqlen": 16}
    answer = api.post("/evals", json=body)
    assert answer.status_code == 200, answer.text
    report = answer.json()["report"]
    assert (report["engine"]["name"], report["engine"]["version"]) == ("vllm", "0.32.0")
    [text] = report["texts"]
    assert text["ratio"] == 1  # a token's logprob there depends on its id alone
    assert text["perplexity"] == text["dense_perplexity"] > 1
    labels = {"model_name": "tiny@-3", "variant": "pruned", "traffic": "bench", "engine": "vllm"}
    metrics = Scrape(api.get("/metrics").text)
    assert metrics.value("sleb_prompt_tokens_total", **labels) == 2 * 16
    answer = api.post("/evals", json=body | {"seqlen": 4096})
    assert "this model supports windows of 2 to" in answer.json()["detail"]


def test_more_models_than_run_at_once_are_not_compared(api: LocalClient, data_dir: Path) -> None:
    body = {"models": ["tiny", *publish_two(data_dir)], "prompt": ["the dog"]}
    answer = api.post("/compare", json=body)
    assert answer.status_code == 422
    assert "SLEB_VLLM_SERVERS" in answer.json()["detail"]


def unknown_family(data_dir: Path) -> None:
    """Give the data directory a model of a family that the engine of this service refuses."""
    shutil.copytree(data_dir / "models" / "tiny", data_dir / "models" / "foreign")
    config = data_dir / "models" / "foreign" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "no_such_type"}))


def test_a_family_that_the_engine_refuses_goes_to_vllm(
    vllm_settings: ServeSettings, redis_url: str, data_dir: Path
) -> None:
    unknown_family(data_dir)
    with local_api(vllm_settings, redis_url, preload=("tiny",)) as api:
        assert generate(api, model="foreign").status_code == 200
        found = model(api, "foreign")
        assert (found["backend"], found["error"]) == ("vllm", None)
        ids = [card["id"] for card in api.get("/v1/models").json()["data"]]
        assert "foreign" in ids


def test_without_vllm_the_error_names_it(client: LocalClient, data_dir: Path) -> None:
    unknown_family(data_dir)
    answer = generate(client, model="foreign")
    assert answer.status_code == 422
    assert "SLEB_VLLM" in answer.json()["detail"]
