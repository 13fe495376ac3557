"""A client that closes its connection frees its slots at once, whatever it was waiting for."""

from typing import Any

import httpx2
import openai
import pytest

from app.config import ServeSettings
from app.server.serve import ApiServer
from tests.support.engines import gated
from tests.support.raw_requests import LONG, send
from tests.support.serving import serving
from tests.support.waiting import wait_until

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}]}
REQUESTS: list[tuple[str, int, dict[str, Any]]] = [  # with the number of answers
    ("/generate", 2, {"prompt": ["the dog", "a"], "max_new_tokens": LONG}),
    ("/generate", 1, {"prompt": "the dog", "max_new_tokens": LONG, "stream": True}),
    ("/v1/completions", 2, {"prompt": ["the dog", "a"], "max_tokens": LONG}),
    ("/v1/completions", 2, {"prompt": "the dog", "max_tokens": LONG, "n": 2, "stream": True}),
    ("/v1/chat/completions", 1, CHAT),
    ("/v1/chat/completions", 1, {**CHAT, "stream": True}),
]


def num_aborted(server: ApiServer) -> float:
    metrics = server.lifespan.state["services"].metrics
    labels = {"finished_reason": "abort", "model_name": "tiny"}
    labels |= {"variant": "dense", "traffic": "live", "engine": "own"}
    return metrics.registry.get_sample_value("sleb_request_success_total", labels) or 0


def all_left(server: ApiServer) -> bool:
    """Whether every open request of the engine has been cancelled by its route."""
    engine = server.lifespan.state["services"].generation.engine
    return all(stream._is_done for stream in engine._streams.values())


@pytest.mark.parametrize("num_steps", [0, 6], ids=["before the first token", "in the middle"])
def test_a_client_that_leaves_frees_its_slots_within_a_step(
    settings: ServeSettings, redis_url: str, num_steps: int
) -> None:
    num_expected = 0
    with gated() as engine, serving(settings, redis_url, engine=engine) as (server, url):
        wait_until(lambda: httpx2.get(f"{url}/health/ready").is_success, "the API is ready")
        wait_until(lambda: not server.server_state.connections, "no client is connected")
        for path, num_answers, body in REQUESTS:
            engine.close_after(num_steps)
            before, num_expected = engine.num_steps, num_expected + num_answers
            connection = send(url, path, body)
            wait_until(lambda: engine.is_at_gate, f"{path} is being answered")
            connection.close()
            wait_until(lambda: all_left(server), "all requests are cancelled")
            engine.gate.set()
            wait_until(lambda: num_aborted(server) == num_expected, f"{path} has ended")  # noqa: B023
            assert engine.num_steps - before <= num_steps + 1  # the step it was in
        stats = server.lifespan.state["services"].generation.engine.stats()
        assert (stats.num_running, stats.num_waiting) == (0, 0)


def test_the_client_of_openai_works_over_a_real_connection(
    settings: ServeSettings, redis_url: str
) -> None:
    user: Any = [{"role": "user", "content": "the dog"}]
    with serving(settings, redis_url) as (_, url):
        wait_until(lambda: httpx2.get(f"{url}/health/ready").is_success, "the API is ready")
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as api:
            assert [model.id for model in api.models.list()] == ["tiny"]
            ask: dict[str, Any] = {"model": "tiny", "messages": user, "temperature": 0}
            whole = api.chat.completions.create(**ask, max_tokens=9).choices[0].message.content
            chunks = api.chat.completions.create(**ask, max_tokens=9, stream=True)
            assert "".join(each.choices[0].delta.content or "" for each in chunks) == whole
