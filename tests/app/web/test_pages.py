"""What browsers get from the pages: no inline code, no other server, and files cached by digest."""

import hashlib
import re
from collections.abc import Iterator
from html.parser import HTMLParser

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from packaging.version import Version

from app.web import routes
from app.web.assets import packaged_assets
from app.web.routes import CSP, PAGES
from tests.support.pages import ROOT

STATIC = ROOT / "app" / "web" / "static"
HOSTILE = "<img src=x onerror=alert(1)>'\"\u202e"
PATHS = [re.sub(r"\{\w+\}", "prn-1", page.path) for page in PAGES]


class Tags(HTMLParser):
    """Collects all tags with their attributes, and the text of scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.lasttag in ("script", "style"):
            self.inline += data.strip()

    def links(self) -> list[str]:
        found = [attrs.get(name) for _, attrs in self.tags for name in ("src", "href", "action")]
        return [link for link in found if link]


@pytest.fixture(scope="module")
def pages() -> Iterator[TestClient]:
    """The pages alone: they need no other part of the service."""
    app = FastAPI(docs_url=None, redoc_url=None)
    app.include_router(routes.router)
    with TestClient(app) as client:
        yield client


@pytest.mark.parametrize("path", [*PATHS, "/ui/nowhere"])
def test_a_frame_has_no_inline_code_and_no_foreign_link(pages: TestClient, path: str) -> None:
    answer = pages.get(path)
    assert answer.headers["content-security-policy"] == CSP
    assert answer.headers["content-type"].startswith("text/html")
    found = Tags(answer.text)
    assert not found.inline
    for tag, attrs in found.tags:
        assert not [name for name in attrs if name.startswith("on") or name == "style"], (
            tag,
            attrs,
        )
    for link in found.links():
        assert link.startswith(("/", "#")), link
        assert not link.startswith("//"), link
        if link.startswith("/ui/assets/"):
            assert pages.get(link).status_code == 200, link


def test_the_policy_allows_nothing_inline() -> None:
    assert "unsafe" not in CSP
    assert CSP.startswith("default-src 'none';")
    assert "frame-ancestors 'none'" in CSP


def test_hostile_text_in_a_path_is_escaped(pages: TestClient) -> None:
    for path in ("/ui/{}", "/ui/jobs/{}", "/ui/jobs/new/{}"):
        answer = pages.get(path.format(HOSTILE.replace("/", "%2F")))
        assert "onerror" in answer.text
        assert "<img src=x" not in answer.text
        assert all("onerror" not in attrs for _, attrs in Tags(answer.text).tags)


def test_a_page_that_is_not_there_is_404_and_leads_on(pages: TestClient) -> None:
    answer = pages.get("/ui/nowhere")
    assert answer.status_code == 404
    assert "/ui" in Tags(answer.text).links()


def test_frames_are_checked_each_time_and_assets_never(pages: TestClient) -> None:
    frame = pages.get("/ui")
    assert frame.headers["cache-control"] == "no-cache"
    known = {"If-None-Match": frame.headers["etag"]}
    assert pages.get("/ui", headers=known).status_code == 304
    url = packaged_assets().url("style.css")
    asset = pages.get(url, headers={"Accept-Encoding": "gzip"})
    assert "immutable" in asset.headers["cache-control"]
    assert asset.headers["content-encoding"] == "gzip"
    assert asset.text.startswith((STATIC / "style.css").read_text())
    plain = pages.get(url, headers={"Accept-Encoding": "identity"})
    assert (plain.content, plain.headers["etag"]) == (asset.content, asset.headers["etag"])
    known = {"If-None-Match": f'"other", {asset.headers["etag"]}'}
    assert pages.get(url, headers=known).status_code == 304


def test_only_packaged_files_of_this_release_are_given_out(pages: TestClient) -> None:
    digest = packaged_assets().digest
    for rest in (
        f"{'0' * 16}/style.css",
        f"{digest}/none.js",
        f"{digest}/../routes.py",
        f"{digest}/..%2froutes.py",
        f"{digest}/%2fetc%2fpasswd",
    ):
        assert pages.get(f"/ui/assets/{rest}").status_code == 404, rest


def test_pages_are_small() -> None:
    """All files together, compressed."""
    sizes = [len(asset.compressed) for asset in packaged_assets().by_name.values()]
    assert sum(sizes) <= 200_000


def test_modules_parse_no_markup_and_ask_no_other_server() -> None:
    """The policy forbids it as well; this says where."""
    forbidden = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function"
        r"|localStorage|https?://"
    )
    for path in STATIC.glob("*.js"):
        text = path.read_text().replace('"http://www.w3.org/2000/svg"', "")  # names a namespace
        assert not forbidden.findall(text), path.name


def test_a_page_asks_at_once_for_all_that_it_needs(pages: TestClient) -> None:
    """A browser pays for every request, and again for one that an answer has to name first."""
    for page, path in zip(PAGES, PATHS, strict=True):
        found = Tags(pages.get(path).text)
        scripts = [str(attrs["src"]) for tag, attrs in found.tags if tag == "script"]
        links = [attrs for tag, attrs in found.tags if tag == "link"]
        styles = [attrs["href"] for attrs in links if attrs["rel"] == "stylesheet"]
        names = [script.partition(f"{packaged_assets().digest}/")[2] for script in scripts]
        assert names == [f"{page.name}.js"]
        assert len(styles) == 1
        code = pages.get(scripts[0]).text
        later = [attrs["href"] for attrs in links if attrs["rel"] == "modulepreload"]
        assert ('import(byId("uplot").href)' in code) == (len(later) == 1)
        for url in later:
            assert str(url).endswith("/uplot.js")
            assert "export { uPlot };" in pages.get(str(url)).text
        code = code.replace('import(byId("uplot").href)', "")
        assert not re.search(r"^\s*import\b|\bimport\(", code, re.MULTILINE)
        read = [attrs["href"] for attrs in links if attrs["rel"] == "preload"]
        reads = [re.sub(r"\{\w+\}", "prn-1", each) for each in page.reads]
        assert read == [*reads, "/session"]
    assert "/prune-jobs" not in pages.get("/ui/jobs?status=failed").text.split("</head>")[0]


def test_vendored_files_are_those_of_the_table() -> None:
    table = (STATIC / "vendor" / "README.md").read_text()
    rows = re.findall(r"^\| `(\S+)` \| \S+ (\S+) \| \S+ \| `(\w{64})` \|$", table, re.MULTILINE)
    code = {
        str(path.relative_to(STATIC / "vendor"))
        for path in (STATIC / "vendor").rglob("*")
        if path.suffix in (".js", ".css")
    }
    assert {name for name, _, _ in rows} == code
    for name, version, digest in rows:
        path = STATIC / "vendor" / name
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
        assert Version(version)
        assert (path.parent / "LICENSE").is_file()
