"""The results of benchmarks, frontiers, evaluations and runs of stability, one file each.

A file is replaced as a whole and has the time in its name, so a list reads only what it shows.
"""

import json
import logging
import re
import secrets
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Any

from app.terminal import json_text
from pruning.records import BROKEN_BY, check_time, read_record, read_stored, reason_of, replace_file

logger = logging.getLogger(__name__)

FOLDER = "results"
_FORMAT = 1


class ResultKind(StrEnum):
    BENCH = "bench"
    STABILITY = "stability"
    EVAL = "eval"
    FRONTIER = "frontier"


_ID = re.compile(rf"\d{{8}}T\d{{6}}Z-(?:{'|'.join(ResultKind)})-[0-9a-f]{{6}}", re.ASCII)


class ResultNotFound(LookupError):
    """There is no result with this id, or its file cannot be read."""


class ResultNotKept(RuntimeError):
    """A finished measurement cannot be written. The message has its headline."""

    def __init__(self, error: OSError, headline: str) -> None:
        super().__init__(
            f"cannot save the result ({error.strerror}): free space in the data directory, "
            f"then measure again. The result was: {headline}"
        )


@dataclass(frozen=True)
class Result:
    """A finished measurement. ``report`` is what the command writes as JSON."""

    id: str
    kind: ResultKind
    model: str
    headline: str  # the most important finding, in a sentence or two
    created_at: float  # seconds since the epoch
    report: Mapping[str, Any]
    tenants: frozenset[str] = frozenset()  # whose checkpoints were measured


@dataclass(frozen=True)
class ResultPage:
    results: tuple[Result, ...]  # the newest first
    has_more: bool


class ResultStore:
    """The results of one data directory."""

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir / FOLDER

    def keep(
        self,
        kind: ResultKind,
        model: str,
        headline: str,
        report: Mapping[str, Any],
        result_id: str | None = None,
        tenants: Collection[str] = (),
    ) -> str:
        """Write a result and return its id, or replace the one of this id. Raises ``OSError``."""
        now = time.time()
        result_id = result_id or _new_id(kind, now)
        self._folder.mkdir(parents=True, exist_ok=True)
        content = {
            "format": _FORMAT,
            "kind": kind.value,
            "model": model,
            "headline": headline,
            "created_at": now,
            "tenants": sorted(tenants),
            "report": report,
        }
        replace_file(self._path(result_id), (json_text(content, indent=2) + "\n").encode())
        return result_id

    def page(self, limit: int, after: str | None = None, tenant: str | None = None) -> ResultPage:
        """Up to ``limit`` results behind the id ``after``. A file that is damaged is left out.

        So are results that the ``tenant`` may not see; None sees all.
        """
        results = tuple(islice(self._readable(after, tenant), limit + 1))
        return ResultPage(results[:limit], has_more=len(results) > limit)

    def get(self, result_id: str, tenant: str | None = None) -> Result:
        """Raises ``ResultNotFound``, also for a result that the ``tenant`` may not see."""
        result = self._read(result_id)
        if tenant is not None and not result.tenants <= {tenant}:
            raise _absent(result_id)
        return result

    def _read(self, result_id: str) -> Result:
        if _ID.fullmatch(result_id) is None:
            raise ResultNotFound(f"no result with id {result_id[:64]!r}: see GET /results")
        try:
            return _parsed(result_id, read_stored(self._path(result_id)))
        except FileNotFoundError as error:
            raise _absent(result_id) from error
        except (OSError, *BROKEN_BY) as error:
            raise ResultNotFound(
                f"cannot read the file of result {result_id} ({reason_of(error)}): remove "
                f"{FOLDER}/{result_id}.json from the data directory, and measure again"
            ) from error

    def _readable(self, after: str | None, tenant: str | None) -> Iterator[Result]:
        ids = sorted((path.stem for path in self._folder.glob("*.json")), reverse=True)
        for result_id in ids:
            if after is None or result_id < after:
                try:
                    result = self._read(result_id)
                except ResultNotFound as error:
                    logger.warning("ignored an unreadable result: %s", error)
                    continue
                if tenant is None or result.tenants <= {tenant}:
                    yield result

    def _path(self, result_id: str) -> Path:
        return self._folder / f"{result_id}.json"


def _new_id(kind: ResultKind, now: float) -> str:
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    return f"{stamp}-{kind.value}-{secrets.token_hex(3)}"


def _absent(result_id: str) -> ResultNotFound:
    return ResultNotFound(f"no result with id {result_id}: see GET /results")


def _parsed(result_id: str, content: bytes) -> Result:
    """Numbers that JSON does not know, as NaN, become None."""
    data = json.loads(content, parse_constant=lambda _: None)
    fields = {**data, "id": result_id}
    fields.pop("format", None)
    result = read_record(Result, fields)
    check_time("created_at", result.created_at)
    return result
