"""A client of the API that asks for localhost: without keys no other name is answered."""

from fastapi import FastAPI
from fastapi.testclient import TestClient


class LocalClient(TestClient):
    def __init__(self, app: FastAPI, *, raise_server_exceptions: bool = True) -> None:
        super().__init__(
            app, base_url="http://localhost", raise_server_exceptions=raise_server_exceptions
        )
