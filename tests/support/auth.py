"""Addresses beyond this machine, and keys as headers of requests."""

from collections.abc import Mapping
from pathlib import Path

from app.auth.keys import KeyFile, Scope
from app.config import ServeSettings

Headers = Mapping[str, str]
ELSEWHERE = ("0.0.0.0", "::", "192.0.2.1")  # noqa: S104 - is not listened on


def settings_of(data_dir: Path, **given: object) -> ServeSettings:
    return ServeSettings(data_dir=data_dir, **given)  # type: ignore[arg-type]  # pydantic checks


def bearer(key: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", f"Bearer {key}".encode())]


def team_keys(file: KeyFile) -> dict[str, Headers]:
    """Two keys of one team, one of another tenant, and an admin."""
    scopes = [Scope.JOBS, Scope.GENERATE]
    made = {
        "ann": file.create("ann", scopes, tenant="team"),
        "bob": file.create("bob", scopes, tenant="team"),
        "eve": file.create("eve", scopes),
        "root": file.create("root", [Scope.ADMIN]),
    }
    return {name: {"Authorization": f"Bearer {key}"} for name, key in made.items()}
