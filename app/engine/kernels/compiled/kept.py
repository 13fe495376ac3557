"""Files of compiled functions, each with its digest beside it.

numba runs what they hold unseen, so one damaged byte could end the process. This guards against
damage; against other users, only the rights of the folder do.
"""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

from pruning.records import read_stored, replace_file

logger = logging.getLogger(__name__)

_DIGEST = ".sha256"
_MAX_BYTES = 2**28


def is_kept(function: Callable[..., Any]) -> bool:
    """Whether it was compiled into numba's directory, and its files are whole."""
    files = _files(function)
    return any(file.suffix == ".nbc" for file in files) and all(map(_is_whole, files))


def remove_damaged(function: Callable[..., Any]) -> None:
    """Remove its files if one of them is damaged, so that it is compiled again."""
    files = _files(function)
    if damaged := [file.name for file in files if not _is_whole(file)]:
        logger.warning("damaged files are compiled again: %s", ", ".join(damaged))
        for file in files:
            _digest_file(file).unlink(missing_ok=True)
            file.unlink(missing_ok=True)


def note_digests(function: Callable[..., Any]) -> None:
    """Write the digests of the files that it was just compiled into, behind ``remove_damaged``.

    Raises ``OSError``.
    """
    for file in _files(function):
        if not _is_whole(file):
            replace_file(_digest_file(file), _digest(file).encode())


def _files(function: Callable[..., Any]) -> list[Path]:
    if not numba.config.CACHE_DIR:
        return []
    name = f"{Path(function.__code__.co_filename).stem}.{function.__qualname__}-*.nb[ci]"
    return sorted(Path(numba.config.CACHE_DIR).rglob(name))


def _is_whole(file: Path) -> bool:
    try:
        return read_stored(_digest_file(file)) == _digest(file).encode()
    except OSError:
        return False


def _digest(file: Path) -> str:
    return hashlib.sha256(read_stored(file, _MAX_BYTES)).hexdigest()


def _digest_file(file: Path) -> Path:
    return file.with_name(file.name + _DIGEST)
