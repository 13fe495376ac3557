"""Two services, one of which passes requests on to the other."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai

from app.config import ServeSettings
from app.engine.engine import Engine
from app.server.serve import ApiServer
from tests.support.exposition import Scrape
from tests.support.external import declare
from tests.support.serving import serving
from tests.support.waiting import wait_until


@dataclass(frozen=True)
class Both:
    """``here`` passes on to ``there``; the same requests can be sent to either."""

    here: str
    there: str
    here_server: ApiServer
    there_server: ApiServer

    def generate(self, url: str, **body: Any) -> httpx2.Response:
        model = "there" if url == self.here else "tiny"
        body = {"model": model, "prompt": "the dog", "ignore_eos": True, **body}
        return httpx2.post(f"{url}/generate", json=body)

    def scrape(self) -> Scrape:
        return Scrape(httpx2.get(f"{self.here}/metrics").text)

    def openai(self, url: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

    def num_open_there(self) -> int:
        stats = self.there_server.lifespan.state["services"].generation.engine.stats()
        return int(stats.num_running + stats.num_waiting)


@contextmanager
def both(
    settings: ServeSettings,
    redis_url: str,
    tmp_path: Path,
    engine: Engine | None = None,
    **declared: Any,
) -> Iterator[Both]:
    """``here`` has no model of its own; ``engine`` is the one there."""
    data_dir = tmp_path / "here"
    data_dir.mkdir()
    with serving(settings, redis_url, engine=engine) as (there_server, there):
        wait_until(lambda: httpx2.get(f"{there}/health/ready").is_success, "that one is ready")
        declare(data_dir, "there", f"{there}/v1", **{"model": "tiny", **declared})
        with serving(ServeSettings(data_dir=data_dir, drain_s=0), redis_url) as (server, here):
            wait_until(lambda: httpx2.get(f"{here}/health/ready").is_success, "this one is ready")
            yield Both(here, there, server, there_server)
