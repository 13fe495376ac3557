"""The tool parsers of the real vLLM, with a model that always calls a tool."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ByteSize
from transformers import AutoConfig, AutoModelForCausalLM

from app.config import ServeSettings
from tests.support.pages import ROOT
from tests.support.serving import LocalClient, local_api
from tests.support.tiny_directory import MAX_POSITIONS, tiny_tokenizer

PROGRAM = shutil.which(ROOT / "build" / "vllm" / "bin" / "vllm")
ARGS = "--enforce-eager --dtype float32 --enable-auto-tool-choice --tool-call-parser hermes"
PARTS = ("<tool_call>", '{"name": "weather", "arguments": {"days": 3}}', "</tool_call>")
PARAMETERS = {"type": "object", "properties": {"days": {"type": "integer"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="vLLM is not installed: make vllm"),
    pytest.mark.timeout(3000),
]


def write_calling_model(path: Path) -> None:
    """A llama whose blocks add nothing: each token decides the next one.

    After any text come the parts of a call, which are tokens of their own, and the end.
    """
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(list(PARTS))
    config = AutoConfig.for_model(
        "llama",
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=MAX_POSITIONS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    chain = [tokenizer.convert_tokens_to_ids(part) for part in PARTS]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
        embeddings, head = model.model.embed_tokens.weight, model.lm_head.weight
        embeddings.zero_()
        head.zero_()
        embeddings[:, 0] = 1
        for at, token_id in enumerate(chain):
            embeddings[token_id] = torch.eye(32)[at + 1]
        for at, token_id in enumerate([*chain, tokenizer.eos_token_id]):
            head[token_id, at] = 1
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data_dir = tmp_path_factory.mktemp("tools")
    write_calling_model(data_dir / "models" / "caller")
    return data_dir


@pytest.fixture
def api(data_dir: Path, redis_url: str) -> Iterator[LocalClient]:
    assert PROGRAM is not None
    settings = ServeSettings(
        data_dir=data_dir,
        engine="vllm",
        vllm=Path(PROGRAM),
        vllm_args=ARGS,
        vllm_servers=1,
        kv_cache_bytes=ByteSize(2**30),
        preload=(),
        threads=1,
        drain_s=0,
        tune="off",
    )
    with local_api(settings, redis_url) as client:
        yield client


def test_the_parser_finds_the_call_that_the_model_makes(api: LocalClient) -> None:
    asked: dict[str, Any] = {
        "model": "caller",
        "messages": [{"role": "user", "content": "the dog"}],
        "temperature": 0,
        "max_completion_tokens": 16,
        "tools": TOOLS,
    }
    raw = api.post("/v1/chat/completions", json={**asked, "tool_choice": "none"})
    assert raw.status_code == 200, raw.text
    assert raw.json()["choices"][0]["message"]["content"] == "".join(PARTS)

    answer = api.post("/v1/chat/completions", json=asked)
    assert answer.status_code == 200, answer.text
    [choice] = answer.json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    [call] = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"]) == {"days": 3}
    assert answer.json()["usage"] == raw.json()["usage"]  # it was sent the same token ids

    stream = api.post("/v1/chat/completions", json={**asked, "stream": True})
    chunks = [json.loads(line[6:]) for line in stream.text.splitlines() if line[6:7] == "{"]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    calls = [part for delta in deltas for part in delta.get("tool_calls", ())]
    assert calls[0]["function"]["name"] == "weather"
    assert json.loads("".join(part["function"]["arguments"] for part in calls)) == {"days": 3}
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"

    named = {"type": "function", "function": {"name": "weather"}}
    forced = api.post("/v1/chat/completions", json={**asked, "tool_choice": named})
    assert forced.status_code == 200, forced.text
    assert forced.json()["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "weather"
