"""Fair shares over HTTP: many prompts of one tenant do not keep those of another waiting."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import pytest

from app.auth.keys import KeyFile
from app.config import ServeSettings
from app.engine.scheduling.sequence import Request, TokenEvent
from app.engine.step import NEVER, Interruption
from tests.support.auth import team_keys
from tests.support.engines import GatedEngine
from tests.support.serving import serving
from tests.support.waiting import wait_until

NUM_PROMPTS = 40
LONG = 12  # tokens: longer than the prompts of the flood


class Noting(GatedEngine):
    """Knows whose requests it has ended, in this order."""

    def __init__(self) -> None:
        super().__init__(max_num_seqs=2)
        self.ended: list[str | None] = []
        self._kinds: dict[str, str | None] = {}

    def add(self, request: Request) -> None:
        is_long = len(request.prompt_ids) > LONG
        self._kinds[request.request_id] = "long" if is_long else request.tenant
        super().add(request)

    def step(self, interruption: Interruption = NEVER) -> list[TokenEvent]:
        events = super().step(interruption)
        ends = [event.request_id for event in events if event.finish_reason is not None]
        self.ended += [self._kinds[each] for each in ends]
        return events


@contextmanager
def noting() -> Iterator[Noting]:
    engine = Noting()
    try:
        yield engine
    finally:
        engine.gate.set()


@pytest.mark.parametrize(("other", "is_fair"), [("eve", True), ("bob", False)])
def test_one_tenant_s_flood_does_not_keep_another_waiting(
    settings: ServeSettings, redis_url: str, other: str, is_fair: bool
) -> None:
    """The other one's prompt is longer, so within a tenant it comes behind the shorter ones."""
    keys = team_keys(KeyFile(settings.keys_file))
    roomy = settings.model_copy(update={"max_waiting": 2 * NUM_PROMPTS})
    with noting() as engine, serving(roomy, redis_url, engine=engine) as (server, url):
        wait_until(lambda: httpx2.get(f"{url}/health/ready").is_success, "the API is ready")
        backend = server.lifespan.state["services"].generation.engine
        answers: list[int] = []

        def ask(key: str, prompts: list[str]) -> None:
            body = {"model": "tiny", "prompt": prompts, "max_new_tokens": 4, "ignore_eos": True}
            answer = httpx2.post(f"{url}/generate", json=body, headers=keys[key])
            answers.append(answer.status_code)

        threads = []
        for key, prompts in (("ann", ["the dog"] * NUM_PROMPTS), (other, ["the dog and " * LONG])):
            before = backend.admission.num_waiting_tokens
            threads.append(threading.Thread(target=ask, args=(key, prompts)))
            threads[-1].start()
            wait_until(lambda: backend.admission.num_waiting_tokens > before, "they wait")  # noqa: B023
        engine.gate.set()
        for thread in threads:
            thread.join(60)
        assert answers == [200, 200]
        assert len(engine.ended) == NUM_PROMPTS + 1
        assert set(engine.ended) == {"team", "long"}
        place = engine.ended.index("long")
        assert place <= 4 if is_fair else place >= 16
