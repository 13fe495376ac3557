"""Compiles the simulated device when it is first needed, once for each version of it and torch."""

import subprocess
from functools import cache
from hashlib import sha256
from pathlib import Path

import platformdirs
import pytest
import torch
from filelock import FileLock

from tests.support.debian import tool

SOURCE = Path(__file__).with_name("device.cpp")


@cache
def library() -> Path:
    """The compiled device. Skips the test without a compiler, or fails in CI.

    Skips it with a torch for CUDA or ROCm too, whose own kernels are where those of the device go.
    """
    if torch.backends.cuda.is_built():
        pytest.skip(
            f"torch {torch.__version__} is built for GPUs, and the simulated GPU needs one that "
            "is built for the CPU"
        )
    compiler = tool("g++", "g++")
    parts = [
        torch.__version__,
        *(part.read_text() for part in sorted(SOURCE.parent.glob("*.[ch]*"))),
    ]
    digest = sha256("".join(parts).encode()).hexdigest()[:16]
    folder = platformdirs.user_cache_path("sleb-serve-tests")
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / f"simcuda-{digest}.so"
    with FileLock(folder / "simcuda.lock"):  # of all processes, one compiles
        if not made.exists():
            unfinished = made.with_suffix(".unfinished")
            compile_device(compiler, unfinished)
            unfinished.rename(made)
    return made


def compile_device(compiler: str, made: Path) -> None:
    """Takes about five seconds."""
    root = Path(torch.__file__).parent
    command = [
        compiler, "-O1", "-std=c++20", "-fPIC", "-shared", f"-I{root / 'include'}", str(SOURCE),
        "-o", str(made), f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10",
    ]  # fmt: skip
    compiled = subprocess.run(command, capture_output=True, text=True, check=False)
    if compiled.returncode != 0:
        raise RuntimeError(f"the simulated device cannot be compiled:\n{compiled.stderr}")
