"""Files of compiled functions that are damaged: they are compiled again, and never run."""

import random
from pathlib import Path

from app.engine.kernels.compiled.openmp import ParallelFunction
from tests.support.compilable import count
from tests.support.compiled import counted


def files_in(folder: Path) -> list[Path]:
    return sorted([*folder.rglob("*.nbc"), *folder.rglob("*.nbi")])


def test_a_damaged_file_is_compiled_again(kept_in: Path, num_mutations: int) -> None:
    expected = counted(ParallelFunction(count))
    files = files_in(kept_in)
    assert len(files) == 2
    choose = random.Random(0)
    for each in range(num_mutations):
        file = choose.choice(files)
        good = file.read_bytes()
        bad = bytearray(good)
        for _ in range(choose.choice((1, 1, 8))):
            bad[choose.randrange(len(bad))] ^= choose.randrange(1, 256)
        bad = bad[: choose.randrange(len(bad))] if choose.random() < 0.1 else bad
        if bad == good:
            continue
        file.write_bytes(bad)
        assert not ParallelFunction(count).is_kept, "numba would read it"
        if each % 1_000 == 0:
            assert counted(ParallelFunction(count)) == expected
        else:
            file.write_bytes(good)
        assert ParallelFunction(count).is_kept


def test_a_file_that_is_missing_or_a_pipe_is_compiled_again(kept_in: Path) -> None:
    counted(ParallelFunction(count))
    for file in files_in(kept_in):
        file.unlink()
        counted(ParallelFunction(count))
        assert ParallelFunction(count).is_kept
    digest = next(kept_in.rglob("*.sha256"))
    digest.write_text("0")
    assert not ParallelFunction(count).is_kept
