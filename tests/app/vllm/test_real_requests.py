"""Parameters of requests, as the real vLLM and the engine of this service understand them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ByteSize

from app.config import ServeSettings
from tests.support.pages import ROOT
from tests.support.serving import LocalClient, local_api
from tests.support.tiny_directory import tiny_tokenizer, write_tiny_model

PROGRAM = shutil.which(ROOT / "build" / "vllm" / "bin" / "vllm")
PROMPTS = ["the quick brown fox", "the lazy dog jumps over the dog", "7 foxes"]
SCHEMA = {
    "type": "object",
    "properties": {"days": {"enum": [1, 2, 3]}, "warm": {"type": "boolean"}},
    "required": ["days", "warm"],
    "additionalProperties": False,
}
WANTED = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA}}
# greedy, so both engines choose the same tokens
GREEDY: dict[str, dict[str, Any]] = {
    "plain": {},
    "presence": {"presence_penalty": 1.5},
    "frequency": {"frequency_penalty": 0.7},
    "repetition": {"repetition_penalty": 1.3},
    "bias": {"logit_bias": {"40": 50.0}, "presence_penalty": 2.0},
    "prompt": {"echo": True, "logprobs": 2, "max_tokens": 0},
    "logprobs": {"logprobs": 3},
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="vLLM is not installed: make vllm"),
    pytest.mark.timeout(3000),
]


def test_requests_mean_the_same_in_vllm_and_in_the_engine(tmp_path: Path, redis_url: str) -> None:
    """One start of vLLM for all of them."""
    write_tiny_model(tmp_path / "models" / "tiny", head_dim=32)
    settings = ServeSettings(data_dir=tmp_path, drain_s=0, tune="off", threads=1, preload=())
    with local_api(settings, redis_url) as api:
        expected = {name: complete(api, **body) for name, body in GREEDY.items()}
    changes: dict[str, Any] = {"engine": "vllm", "vllm": PROGRAM and Path(PROGRAM)}
    changes |= {"vllm_args": "--enforce-eager --dtype float32", "vllm_servers": 1}
    changes |= {"kv_cache_bytes": ByteSize(2**30), "vllm_start_s": 1500.0}
    plain = expected["plain"]
    with local_api(settings.model_copy(update=changes), redis_url) as api:
        for name, body in GREEDY.items():
            is_same(name, complete(api, **body), expected[name], plain)
        sampled_keeps_its_schema(api)
        ends_before_a_stop_string(api, plain["choices"][0]["text"])
        follows_its_seed(api)
        streams(api, plain["choices"][0]["text"])


def complete(api: LocalClient, **body: Any) -> dict[str, Any]:
    asked = {"model": "tiny", "prompt": PROMPTS, "temperature": 0, "max_tokens": 12}
    asked["logprobs"] = 1
    answer = api.post("/v1/completions", json=asked | body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def outputs(answer: dict[str, Any]) -> list[tuple[list[str], str]]:
    """By their tokens: vLLM leaves out the bytes of a character that an output ends within."""
    choices = answer["choices"]
    return [(choice["logprobs"]["tokens"], choice["finish_reason"]) for choice in choices]


def is_same(
    name: str, found: dict[str, Any], expected: dict[str, Any], plain: dict[str, Any]
) -> None:
    assert outputs(found) == outputs(expected), name
    assert found["usage"]["completion_tokens"] == expected["usage"]["completion_tokens"], name
    if name not in ("plain", "prompt", "logprobs"):
        assert outputs(expected) != outputs(plain), f"{name} has an effect"
    for theirs, ours in zip(found["choices"], expected["choices"], strict=True):
        assert ours["text"].startswith(theirs["text"].rstrip("\ufffd")), name
        known = [each or 0.0 for each in ours["logprobs"]["token_logprobs"]]
        given = [each or 0.0 for each in theirs["logprobs"]["token_logprobs"]]
        assert given == pytest.approx(known, abs=1e-3), name


def sampled_keeps_its_schema(api: LocalClient) -> None:
    """White space is allowed anywhere, of which a random model would write nothing else."""
    tokenizer = tiny_tokenizer()
    blank = [at for at in range(len(tokenizer)) if not str(tokenizer.decode([at])).strip()]
    body = {"response_format": WANTED, "logit_bias": {str(at): -100.0 for at in blank}}
    sampled = complete(api, **body, max_tokens=60, temperature=1.0, seed=3)
    for choice in sampled["choices"]:
        found = json.loads(choice["text"])
        assert found["days"] in (1, 2, 3)
        assert isinstance(found["warm"], bool)
        assert choice["finish_reason"] == "stop"


def ends_before_a_stop_string(api: LocalClient, whole: str) -> None:
    stop = whole[len(whole) // 2 :][:2]
    [choice] = complete(api, prompt=PROMPTS[:1], stop=[stop])["choices"]
    assert choice["text"] == whole[: whole.index(stop)]
    assert choice["finish_reason"] == "stop"


def follows_its_seed(api: LocalClient) -> None:
    sampled = {"temperature": 1.0, "top_p": 0.95, "top_k": 50, "min_p": 0.001}
    first, again = (outputs(complete(api, **sampled, seed=7)) for _ in range(2))
    assert first == again
    assert outputs(complete(api, **sampled, seed=8)) != first


def streams(api: LocalClient, whole: str) -> None:
    body = {"model": "tiny", "prompt": PROMPTS[0], "temperature": 0, "max_tokens": 12}
    with api.stream("POST", "/v1/completions", json=body | {"stream": True}) as response:
        lines = [line for line in response.iter_lines() if line.startswith("data: {")]
    parts = [each["text"] for line in lines for each in json.loads(line[6:])["choices"]]
    assert "".join(parts) == whole
    assert len(parts) > 1
