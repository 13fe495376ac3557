"""What the image installs, for pip: the ranges of pyproject.toml, or what requirements.lock pins.

`requirements.py all` prints the whole list, `torch` its line about torch, and `rest` the list
without torch and what only the CUDA build of torch needs: the CPU build is from another index,
whose files have other hashes.
"""

import re
import sys
import tomllib
from itertools import chain
from pathlib import Path

LOCK, PROJECT = Path("requirements.lock"), Path("pyproject.toml")
EXTRAS = (
    "datasets",
    "gcs",
    "gguf",
    "heal",
    "otel",
    "plots",
    "s3",
)  # as in `make lock`
_TORCH = re.compile(r"torch(?![\w.-])")
_OF_CUDA = re.compile(r"(triton|nvidia-(?!ml-py)|cuda-)")


def ranges(project: str) -> list[str]:
    parts = tomllib.loads(project)["project"]
    extras = (parts["optional-dependencies"][name] for name in EXTRAS)
    return [*parts["dependencies"], *chain.from_iterable(extras)]


def pinned(lock: str) -> list[str]:
    """One requirement each, with its hashes on the lines behind it."""
    return re.findall(r"^\w(?:.*\\\n)*.*$", lock, re.MULTILINE)


def chosen(part: str, requirements: list[str]) -> list[str]:
    of_torch = [each for each in requirements if _TORCH.match(each)]
    if part == "torch":
        return [each.partition("\\")[0].strip() for each in of_torch]
    if part == "rest":
        return [each for each in requirements if each not in of_torch and not _OF_CUDA.match(each)]
    return requirements


if __name__ == "__main__":
    text = LOCK.read_text(encoding="utf-8") if LOCK.exists() else None
    found = ranges(PROJECT.read_text(encoding="utf-8")) if text is None else pinned(text)
    sys.stdout.writelines(f"{each}\n" for each in chosen(sys.argv[1], found))
