"""The routes of the web page: frames without data, and their assets.

A frame is the same for every caller, so it needs no key. What it shows comes from the REST API.
"""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from app.web.assets import IMMUTABLE, ROOT, packaged_assets

# No inline code, no other server, and no text that becomes markup.
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)


@dataclass(frozen=True)
class Page:
    """A frame: its template, the words of its title and of its link, and the module it runs."""

    path: str
    name: str  # of the template and of the module
    title: str
    is_linked: bool = True  # in the navigation
    needs: str | None = None  # the scope without which it shows nothing
    reads: tuple[str, ...] = ()  # what its module asks for first, which the browser can do earlier


PAGES = (
    Page("/ui", "overview", "Overview", reads=("/status", "/models")),
    Page("/ui/jobs", "jobs", "Jobs", needs="jobs", reads=("/prune-jobs?limit=20",)),
    Page("/ui/jobs/new", "new_job", "New job", False, "jobs", ("/openapi.json", "/models")),
    Page(
        "/ui/jobs/{job_id}",
        "job",
        "Job",
        is_linked=False,
        needs="jobs",
        reads=("/prune-jobs/{job_id}", "/prune-jobs/{job_id}/checkpoints"),
    ),
    Page("/ui/curve", "curve", "Curve", needs="jobs", reads=("/models", "/prune-jobs?limit=100")),
    Page("/ui/results", "results", "Results", needs="jobs", reads=("/results?limit=20",)),
    Page("/ui/results/{result_id}", "result", "Result", False, "jobs", ("/results/{result_id}",)),
    Page("/ui/compare", "compare", "Side by side", needs="generate", reads=("/models",)),
    Page("/ui/sign-in", "sign_in", "Sign in", is_linked=False),
    # where FastAPI has a page of its own, which loads its code from another server
    Page("/docs", "docs", "REST API", reads=("/openapi.json",)),
)

router = APIRouter(include_in_schema=False)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("app.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["asset"] = packaged_assets().url
    environment.globals["pages"] = [page for page in PAGES if page.is_linked]
    return environment


@router.get("/")
async def root() -> Response:
    return RedirectResponse("/ui")


@router.get(ROOT + "/{digest}/{name:path}")
async def asset(digest: str, name: str, request: Request) -> Response:
    """404 for another digest: a page of another release asks for files that are not here."""
    assets = packaged_assets()
    wanted = assets.by_name.get(name)
    if wanted is None or digest != assets.digest:
        return Response("no such file: load the page again\n", 404, media_type="text/plain")
    headers = {"Cache-Control": IMMUTABLE, "ETag": wanted.etag, "Vary": "Accept-Encoding"}
    if _is_known(request, wanted.etag):
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["Content-Encoding"] = "gzip"
        return Response(wanted.compressed, headers=headers, media_type=wanted.media_type)
    return Response(wanted.content, headers=headers, media_type=wanted.media_type)


def _frame_of(page: Page) -> Callable[[Request], Awaitable[Response]]:
    async def frame(request: Request) -> Response:
        template = _environment().get_template(f"{page.name}.html")
        ids = request.path_params
        encoded = {name: quote(value, safe="") for name, value in ids.items()}
        # a filter changes what the list asks for, and nothing is to be read in vain
        is_filtered = "status" in request.query_params
        reads = [] if is_filtered else [path.format(**encoded) for path in page.reads]
        return _html(request, template.render(page=page, reads=[*reads, "/session"], **ids))

    return frame


for _page in PAGES:
    router.add_api_route(_page.path, _frame_of(_page), name=f"page_{_page.name}")


@router.get("/ui/{path:path}")
async def unknown(path: str, request: Request) -> Response:
    template = _environment().get_template("unknown.html")
    page = Page(f"/ui/{path}", "unknown", "No such page")
    return _html(request, template.render(page=page, reads=[]), 404)


def _html(request: Request, html: str, status: int = 200) -> Response:
    """Browsers ask each time whether it has changed, as it names assets of this release."""
    etag = f'W/"{hashlib.sha256(html.encode()).hexdigest()[:32]}"'
    headers = {"Cache-Control": "no-cache", "ETag": etag, "Content-Security-Policy": CSP}
    if status == 200 and _is_known(request, etag):
        return Response(status_code=304, headers=headers)
    return Response(html, status, headers, media_type="text/html")


def _is_known(request: Request, etag: str) -> bool:
    known = request.headers.get("if-none-match", "")
    return etag in (tag.strip() for tag in known.split(","))
