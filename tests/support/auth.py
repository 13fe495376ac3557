"""Addresses beyond this machine, and a key as the header of a request."""

from pathlib import Path

from app.config import ServeSettings

ELSEWHERE = ("0.0.0.0", "::", "192.0.2.1")  # noqa: S104 - is not listened on


def settings_of(data_dir: Path, **given: object) -> ServeSettings:
    return ServeSettings(data_dir=data_dir, **given)  # type: ignore[arg-type]  # pydantic checks


def bearer(key: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", f"Bearer {key}".encode())]
