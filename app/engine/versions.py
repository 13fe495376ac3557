"""What compiled code and measured times depend on beside the processor: the source and versions."""

import hashlib
import platform
from functools import cache
from pathlib import Path

import llvmlite
import numba
import torch

ENGINE = Path(__file__).parent


@cache
def versions_digest(folder: Path = ENGINE) -> str:
    """A digest of the source in a folder and of the versions of what runs it."""
    digest = hashlib.sha256()
    versions = (platform.python_version(), numba.__version__, llvmlite.__version__)
    digest.update(repr((*versions, torch.__version__)).encode())
    for file in sorted(folder.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
