"""The client of a server that speaks OpenAI's API, and what its streams leave behind."""

import asyncio
import gc
import sys
import weakref
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import AsyncGeneratorType
from typing import Any

import pytest

from app.generation.openai_client import BackendFailed, ExternalClient, OpenAIRequest
from app.models.external import read_external_models
from tests.support.external import declare, event, fake_server, head, says_and_is_silent, text

REQUEST = OpenAIRequest("/completions", {"prompt": "a"})


@contextmanager
def begun_generators() -> Iterator[list[weakref.ref[AsyncGenerator[Any, Any]]]]:
    """The asynchronous generators that begin meanwhile, none of which the collector frees."""
    begun: list[weakref.ref[AsyncGenerator[Any, Any]]] = []
    before = sys.get_asyncgen_hooks()

    def begins(generator: AsyncGenerator[Any, Any]) -> None:
        begun.append(weakref.ref(generator))
        if before.firstiter is not None:
            before.firstiter(generator)

    gc.disable()
    sys.set_asyncgen_hooks(firstiter=begins)
    try:
        yield begun
    finally:
        sys.set_asyncgen_hooks(*before)
        gc.enable()


def is_suspended(generator: object) -> bool:
    return isinstance(generator, AsyncGeneratorType) and generator.ag_frame is not None


def test_a_failed_stream_leaves_no_generator_to_the_garbage_collector(tmp_path: Path) -> None:
    """It may run in another thread, while the event loop closes another generator of the chain."""

    async def run(client: ExternalClient) -> None:
        with begun_generators() as begun:
            with pytest.raises(BackendFailed, match="invalid event") as failure:
                async with client.stream(REQUEST) as chunks:
                    _ = [chunk async for chunk in chunks]
            for _ in range(10):  # turns of the loop, in which it closes what was dropped
                await asyncio.sleep(0)
            assert len(begun) > 3
            assert not [each for ref in begun if is_suspended(each := ref())]
        assert failure.value.__traceback__ is not None  # whose frames would keep them
        await client.aclose()

    with fake_server() as server:
        server.behave = says_and_is_silent(head(), text("a"), event([1]))
        declare(tmp_path, "odd", server.base_url)
        (model,) = read_external_models(tmp_path / "external.toml")
        asyncio.run(run(ExternalClient(model)))
