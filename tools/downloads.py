"""How much an installation by uv downloads, said before it starts."""

import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_RESOLVE_S = 60.0
_ASK_S = 5.0  # an index for the size of one file
_NUM_THREADS = 8


def announcement(uv: str, requirements: Iterable[str], environment: Mapping[str, str]) -> str:
    """A line with the number of packages and bytes; empty where uv finds no solution."""
    command = [uv, "pip", "compile", "--quiet", "--python", sys.executable]
    try:
        resolved = subprocess.run(  # noqa: S603 - uv
            [*command, "--format", "pylock.toml", "-"],
            input="\n".join(requirements),
            env=environment,
            timeout=_RESOLVE_S,
            capture_output=True,
            text=True,
            check=True,
        )
        packages = tomllib.loads(resolved.stdout).get("packages", [])
    except (OSError, subprocess.SubprocessError, tomllib.TOMLDecodeError):
        return ""
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        sizes = [*threads.map(num_bytes, packages)]
    known = [size for size in sizes if size is not None]
    unknown = f", and {len(sizes) - len(known)} of unknown size" if len(known) < len(sizes) else ""
    needed = [size for size in known if size]
    return (
        f"Downloading at most {sum(needed) / 1e6:,.0f} MB ({sum(needed):,} bytes) in "
        f"{len(needed)} packages{unknown}, as far as they are not in uv's cache."
    )


def num_bytes(package: Mapping[str, Any]) -> int | None:
    """Of the largest file that may be chosen. 0 for files on this disk, None if it is unknown."""
    files = package.get("wheels") or [
        package[key] for key in ("sdist", "archive") if key in package
    ]
    sizes = [_size(file) for file in files]
    return None if None in sizes else max((size for size in sizes if size is not None), default=0)


def _size(file: Mapping[str, Any]) -> int | None:
    url = file.get("url", "")
    if not url.startswith(("https:", "http:")):
        return 0
    return int(file["size"]) if "size" in file else _asked(url)


def _asked(url: str) -> int | None:
    """What the server says; indexes without JSON do not."""
    request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - a package of an index
    try:
        with urllib.request.urlopen(request, timeout=_ASK_S) as answer:  # noqa: S310 - as above
            return int(answer.headers["content-length"])
    except (OSError, TypeError, ValueError):
        return None
