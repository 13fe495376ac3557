"""A real S3 server on loopback for this process: moto's, with a bucket for each test."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import boto3
import pytest
from moto.server import ThreadedMotoServer

_number = count()


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@contextmanager
def s3_environment(url: str) -> Iterator[None]:
    """The variables by which botocore finds the server, in this process and its children."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables(url).items():
            patch.setenv(name, value)
        yield


def variables(url: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@pytest.fixture
def s3_bucket(s3_url: str) -> Iterator[str]:
    """The name of an empty bucket."""
    name = f"bucket-{next(_number)}"
    with s3_environment(s3_url):
        boto3.client("s3").create_bucket(Bucket=name)
        yield name
