"""Small files of the data directory that somebody has damaged: what reads them has one error."""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from app.auth.keys import InvalidKeyFile, KeyFile, Scope
from app.auth.sessions import GENERATIONS, Sessions, SessionsNotKept
from app.engine.autotuning import Autotuner, Choice
from app.engine.kernels.compiled.compilation import CompilationState, kept_state
from app.engine.kernels.compiled.openmp import compiled_folder
from app.models.aliases import Aliases, InvalidAliasFile
from app.models.measured_speedups import FILE, Measurand, MeasuredSpeedup, MeasuredSpeedups
from pruning.models import inspection_record
from pruning.models.store import ModelStore
from tests.support.mutations import mutations
from tests.support.tiny_directory import write_tiny_model

Read = Callable[[], object]


def keys_in(folder: Path) -> tuple[Path, Read]:
    keys = KeyFile(folder / "keys.json")
    keys.create("a", [Scope.JOBS, Scope.ADMIN], rate_per_min=5, tenant="b")

    def read() -> object:
        with suppress(InvalidKeyFile):
            return json.dumps([[key.name, key.created_at, key.expires_at] for key in keys.known()])
        return None

    return folder / "keys.json", read


def aliases_in(folder: Path) -> tuple[Path, Read]:
    aliases = Aliases(folder)
    aliases.set("chat", "tiny@-1")

    def read() -> object:
        with suppress(InvalidAliasFile):
            return "".join(map(str, aliases.all().items())).encode()
        return None

    return folder / "aliases.json", read


def speedups_in(folder: Path) -> tuple[Path, Read]:
    speedups = MeasuredSpeedups(folder)
    speedups.record("tiny", {Measurand(1): MeasuredSpeedup(1.5, 1.4, 1.6, "decode", 1.0)})

    def read() -> object:
        found = speedups.of("tiny", 1)
        return found and f"{found} {found.measured_at} {found.scenario}".encode()

    return folder / FILE, read


def inspections_in(folder: Path) -> tuple[Path, Read]:
    write_tiny_model(folder / "tiny")
    expected = ModelStore(folder).inspect("tiny")

    def read() -> object:
        found = ModelStore(folder).inspect("tiny")
        assert (found.name, found.path) == (expected.name, expected.path)
        return found

    return folder / inspection_record.FILE, read


def kernels_in(folder: Path) -> tuple[Path, Read]:
    file = folder / "tuning.json"
    tuner = Autotuner(file)
    tuner.record("a 1x2 float32 cpu", Choice("slow", {"slow": 1.5, "fast": 0.5}))
    tuner.save()

    def read() -> object:
        known = Autotuner(file)
        assert known.kernel("a 1x2 float32 cpu", ["other", "fast"]) in ("other", "fast")
        found = known.choices
        assert all(choice.seconds[choice.kernel] > 0 for choice in found.values())
        return json.dumps([[key, choice.seconds] for key, choice in found.items()]).encode()

    return file, read


def compilation_in(folder: Path) -> tuple[Path, Read]:
    state = compiled_folder(folder) / "state.json"
    state.parent.mkdir()
    state.write_text(json.dumps(asdict(CompilationState("failed", "no memory", 1.5))))
    return state, lambda: (found := kept_state(folder)) and f"{found.reason}{found}".encode()


def sessions_in(folder: Path) -> tuple[Path, Read]:
    keys = KeyFile(folder / "keys.json")
    keys.create("a", [Scope.JOBS])
    sessions = Sessions(keys, folder / "sessions.secret")
    session = sessions.begin(keys.known()[0])
    sessions.end(session)
    cookie = sessions.cookie(session)

    def read() -> object:
        found = sessions.find(cookie)
        with suppress(SessionsNotKept):
            assert sessions.find(sessions.cookie(session)) == session  # a sign-in
        return found or "ended"

    return folder / GENERATIONS, read


KINDS: Mapping[str, Callable[[Path], tuple[Path, Read]]] = {
    "keys": keys_in,
    "aliases": aliases_in,
    "speed-ups": speedups_in,
    "inspections": inspections_in,
    "kernels": kernels_in,
    "compilation": compilation_in,
    "sessions": sessions_in,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_has_one_error(tmp_path: Path, kind: str, num_mutations: int) -> None:
    file, read = KINDS[kind](tmp_path)
    record: Any = json.loads(file.read_text())
    assert read() is not None
    for text in mutations(record, num_mutations // 10 if kind == "inspections" else num_mutations):
        file.write_text(text, encoding="utf-8", errors="surrogatepass")
        try:
            read()
        except Exception as error:
            raise AssertionError(text[:2_000]) from error


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", KINDS)
def test_a_pipe_in_the_place_of_a_file_is_an_error_too(tmp_path: Path, kind: str) -> None:
    file, read = KINDS[kind](tmp_path)
    file.unlink()
    os.mkfifo(file)
    read()
