"""The files that pages consist of: known by the digest of all of them, so cached for ever.

A page needs three of them at most: its script, the style sheet, and uPlot where it has a plot.
That one is fetched with the others and started after the first frame: numbers come before pictures.
"""

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from app.web.bundle import bundle, entries

ROOT = "/ui/assets"
_FOLDER = Path(__file__).parent / "static"
IMMUTABLE = "public, max-age=31536000, immutable"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
_PLAIN = "text/plain; charset=utf-8"  # of licences, which have no ending
_ON_ALL_PAGES = "session"  # a module that runs beside that of the page
_STYLES = ("style.css", "vendor/uplot/uPlot.min.css")  # one after the other in the first
_UPLOT = "vendor/uplot/uPlot.iife.min.js"  # a script, from which a module is made


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
    """All assets by name. One digest names the set."""

    by_name: Mapping[str, Asset]

    @cached_property
    def digest(self) -> str:
        whole = hashlib.sha256()
        for name, asset in sorted(self.by_name.items()):
            whole.update(f"{name}\0{len(asset.content)}\0".encode())
            whole.update(asset.content)
        return whole.hexdigest()[:16]

    def url(self, name: str) -> str:
        """Raises ``KeyError`` for a file that is not packaged."""
        self.by_name[name]
        return f"{ROOT}/{self.digest}/{name}"


@cache
def packaged_assets() -> Assets:
    """Read the files of the package once. Its modules become one script for each page."""
    assets = {
        str(file.relative_to(_FOLDER)): Asset(file.read_bytes(), _TYPES.get(file.suffix, _PLAIN))
        for file in _FOLDER.rglob("*")
        if file.is_file()
    }
    modules = [name for name in assets if name.endswith(".js") and "/" not in name]
    sources = {name.removesuffix(".js"): assets.pop(name).content.decode() for name in modules}
    for page in entries(sources) - {_ON_ALL_PAGES}:
        script = bundle(sources, _ON_ALL_PAGES, page)
        assets[f"{page}.js"] = Asset(script.encode(), _TYPES[".js"])
    library = assets.pop(_UPLOT).content + b"\nexport { uPlot };\n"
    assets["uplot.js"] = Asset(library, _TYPES[".js"])
    style = b"".join(assets.pop(name).content for name in _STYLES)
    assets[_STYLES[0]] = Asset(style, _TYPES[".css"])
    return Assets(assets)
