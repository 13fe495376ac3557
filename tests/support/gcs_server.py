"""A server with the JSON API of Google Cloud Storage on loopback: a bucket for each test."""

from collections.abc import Iterator
from itertools import count

import httpx2
import pytest
from gcp_storage_emulator.server import create_server

from tests.support.processes import free_port

_number = count()


@pytest.fixture(scope="session")
def gcs_url() -> Iterator[str]:
    port = free_port()
    server = create_server("127.0.0.1", port, in_memory=True)
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop()


@pytest.fixture
def gcs_bucket(gcs_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an empty bucket, of the server that gcsfs finds by a variable."""
    name = f"bucket-{next(_number)}"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_url)
    made = httpx2.post(f"{gcs_url}/storage/v1/b", json={"name": name})
    assert made.is_success, made.text
    return name
