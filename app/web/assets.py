"""The files that pages consist of: known by the digest of all of them, so cached for ever."""

import gzip
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from importlib.resources.abc import Traversable

ROOT = "/ui/assets"
IMMUTABLE = "public, max-age=31536000, immutable"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
_IMPORT = re.compile(r'^import .* from "\./([\w-]+\.js)";$', re.MULTILINE)
_PLAIN = "text/plain; charset=utf-8"  # of licences, which have no ending


@dataclass(frozen=True)
class Asset:
    content: bytes
    media_type: str

    @cached_property
    def etag(self) -> str:
        """Weak, as the compressed form has the same."""
        return f'W/"{hashlib.sha256(self.content).hexdigest()[:32]}"'

    @cached_property
    def compressed(self) -> bytes:
        return gzip.compress(self.content, mtime=0)


@dataclass(frozen=True)
class Assets:
    """All assets by name. One digest names the set, so modules import each other by plain names."""

    by_name: Mapping[str, Asset]

    @cached_property
    def digest(self) -> str:
        whole = hashlib.sha256()
        for name, asset in sorted(self.by_name.items()):
            whole.update(f"{name}\0{len(asset.content)}\0".encode())
            whole.update(asset.content)
        return whole.hexdigest()[:16]

    def modules(self, *names: str) -> tuple[str, ...]:
        """These modules and all that they import: a page asks for all of them at once."""
        found: dict[str, None] = {}
        waiting = list(names)
        while waiting:
            module = waiting.pop()
            if module not in found:
                found[module] = None
                waiting += _IMPORT.findall(self.by_name[module].content.decode())
        return tuple(found)

    def url(self, name: str) -> str:
        """Raises ``KeyError`` for a file that is not packaged."""
        self.by_name[name]
        return f"{ROOT}/{self.digest}/{name}"


@cache
def packaged_assets() -> Assets:
    """Read the files of the package once."""
    return Assets(dict(_read(files("app.web") / "static", "")))


def _read(folder: Traversable, prefix: str) -> list[tuple[str, Asset]]:
    found = []
    for entry in folder.iterdir():
        name = f"{prefix}{entry.name}"
        if entry.is_dir():
            found += _read(entry, f"{name}/")
        else:
            _, dot, ending = entry.name.rpartition(".")
            found.append((name, Asset(entry.read_bytes(), _TYPES.get(dot + ending, _PLAIN))))
    return found
