"""How soon web pages show their data in Debian's Chromium: of this code, and of another in turn.

``sleb up`` serves a model with a finished job and a result. A cold visit has an empty cache, a warm
one is the second in the same tab. Times begin with the navigation and end with the first frame that
has the data.
"""

import json
import shutil
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import httpx2
import typer
from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.table import Table

from app.compare.speedup import alternate
from app.results.store import ResultKind, ResultStore
from benchmarks.model import model_store
from benchmarks.reports import facts, write
from benchmarks.servers import link_model, no_server_left, sleb_up_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_CODE = Path(__file__).parents[1]
_REPORT = _CODE / "benchmarks" / "results" / "bench.json"
_JOB_TIMEOUT_S = 600
_SPEC: Mapping[str, Any] = {"num_remove": 2, "calibration": {"num_samples": 8, "seqlen": 32}}
# by page, its path and what is there once it has its data
_PAGES: Mapping[str, tuple[str, str]] = {
    "overview": ("/ui", "#list tbody tr"),
    "jobs": ("/ui/jobs", "#list tbody tr"),
    "job": ("/ui/jobs/{job}", "#rounds tbody tr"),
    "new job": ("/ui/jobs/new", "#submit"),
    "curve": ("/ui/curve?model={model}", "#rows tbody tr"),
    "compare": ("/ui/compare", "#models select"),
    "results": ("/ui/results", "#list tbody tr"),
    "benchmark": ("/ui/results/{result}", "#report table"),
    "docs": ("/docs", "#routes details"),
}
_PICTURES = frozenset({"job", "curve"})  # pages that draw a picture when they have their data
# `shown` resolves after the first frame with the data: `[first paint, data, requests, bytes]`;
# `drawn` after the first one with the picture.
_WATCH = """const until = (selector, found) => new Promise((resolve) => {
  const drawn = () => setTimeout(() => resolve(found()));
  const look = () => {
    if (!document.querySelector(selector)) return;
    watching.disconnect();
    requestAnimationFrame(drawn);
  };
  const watching = new MutationObserver(look);
  watching.observe(document, { childList: true, subtree: true });
});
window.shown = until(%s, () => {
  const loads = ["resource", "navigation"].flatMap((type) => performance.getEntriesByType(type));
  const paint = performance.getEntriesByName("first-contentful-paint")[0];
  return [paint?.startTime ?? null, performance.now(), loads.length,
    loads.reduce((sum, { transferSize }) => sum + transferSize, 0)];
});
window.drawn = until(".u-wrap canvas", () => performance.now());"""


@dataclass(frozen=True)
class _Side:
    """A service, and the paths of its pages."""

    url: str
    paths: Mapping[str, str]


def main(
    out: Annotated[Path | None, typer.Option(help="Where to write the JSON.")] = None,
    model: Annotated[str, typer.Option(help="A dense model, by name or directory.")] = (
        "smollm2-135m"
    ),
    against: Annotated[
        Path | None, typer.Option(help="Another checkout of this project, as baseline.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Visits of each page, cold and warm.")] = 7,
    pages: Annotated[str, typer.Option(help="Some pages, with commas between them.")] = "",
) -> None:
    """Measure the first paint of pages and the time until their data is shown."""
    names = pages.split(",") if pages else list(_PAGES)
    if unknown := set(names) - _PAGES.keys():
        expected = ", ".join(_PAGES)
        raise typer.BadParameter(f"unknown {sorted(unknown)}; expected some of {expected}")
    chosen = {name: _PAGES[name] for name in names}
    directory = model_store(model).path(model)
    codes = {"ours": _CODE} | ({"baseline": against.resolve()} if against else {})
    with ExitStack() as stack:
        sides = {name: _side(stack, code, directory) for name, code in codes.items()}
        driver = stack.enter_context(sync_playwright())
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        stack.callback(browser.close)
        found = _measured(browser, sides, chosen, repeats)
    report = {
        "pages": found,
        "model": model,
        **facts("pages"),
    }
    if out is not None:
        write(report, out)
    Console().print(_table(found, list(sides)))


def _side(stack: ExitStack, code: Path, model: Path) -> _Side:
    """Start the service of this code, and let it run a job."""
    data_dir = Path(stack.enter_context(TemporaryDirectory(prefix="sleb-bench-")))
    link_model(model, data_dir / "models" / model.name, "float32")
    report = json.loads(_REPORT.read_text(encoding="utf-8"))
    result = ResultStore(data_dir).keep(ResultKind.BENCH, model.name, "measured before", report)
    server = stack.enter_context(sleb_up_of(code, data_dir, model.name))
    names = {"job": _finished_job(server.url, model.name), "result": result, "model": model.name}
    paths = {name: path.format(**names) for name, (path, _) in _PAGES.items()}
    return _Side(server.url, paths)


def _finished_job(url: str, model: str) -> str:
    """The id of a job that has succeeded."""
    pause = threading.Event()
    with httpx2.Client(base_url=url, timeout=60) as client:
        answer = client.post("/prune-jobs", json={"model": model, **_SPEC}).raise_for_status()
        job = str(answer.json()["id"])
        for _ in range(_JOB_TIMEOUT_S):
            status = client.get(f"/prune-jobs/{job}").raise_for_status().json()["status"]
            if status == "succeeded":
                return job
            pause.wait(1)
    raise RuntimeError(f"job {job} has not succeeded within {_JOB_TIMEOUT_S} s: it is {status}")


def _measured(
    browser: "Browser",
    sides: Mapping[str, _Side],
    pages: Mapping[str, tuple[str, str]],
    repeats: int,
) -> dict[str, Any]:
    """All visits by page, side and kind. The first visit of each page warms up and is left out."""
    kinds = ("cold", "warm")
    found: dict[str, Any] = {
        page: {side: {kind: [] for kind in kinds} for side in sides} for page in pages
    }
    for page, (_, selector) in pages.items():
        for repeat, side in alternate(list(sides), repeats + 1):
            visits = _visits(browser, sides[side], page, selector)
            if repeat > 0:
                for kind, visit in zip(kinds, visits, strict=True):
                    found[page][side][kind].append(visit)
    return found


def _visits(
    browser: "Browser", side: _Side, name: str, selector: str
) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """A cold and a warm visit of the page."""
    context = browser.new_context(base_url=side.url)
    try:
        context.add_init_script(_WATCH % json.dumps(selector))
        page = context.new_page()
        cold = _visit(page, side.paths[name], name)
        page.goto("about:blank")
        return cold, _visit(page, side.paths[name], name)
    finally:
        context.close()


def _visit(page: "Page", path: str, name: str) -> Mapping[str, float]:
    """Milliseconds until the first paint, the data and the picture; requests and received bytes."""
    page.goto(path, wait_until="commit")
    paint_ms, data_ms, num_requests, num_bytes = page.evaluate("() => window.shown")
    picture_ms = page.evaluate("() => window.drawn") if name in _PICTURES else data_ms
    return {
        "first_paint_ms": round(paint_ms or data_ms, 1),
        "data_ms": round(data_ms, 1),
        "picture_ms": round(picture_ms, 1),
        "num_requests": num_requests,
        "received_bytes": num_bytes,
    }


def _table(found: Mapping[str, Any], sides: Sequence[str]) -> Table:
    """Medians."""
    table = Table(
        "page", "side", title="Until pages show their data, medians; from first paint on, cold"
    )
    for title in ("cold, ms", "warm, ms", "first paint, ms", "picture, ms", "requests", "KB"):
        table.add_column(title, justify="right")
    for page, by_side in found.items():
        for side in sides:
            cold, warm = by_side[side]["cold"], by_side[side]["warm"]
            table.add_row(
                page,
                side,
                _median(cold, "data_ms"),
                _median(warm, "data_ms"),
                _median(cold, "first_paint_ms"),
                _median(cold, "picture_ms") if page in _PICTURES else "",
                _median(cold, "num_requests"),
                _median(cold, "received_bytes", 1000),
            )
    return table


def _median(visits: Sequence[Mapping[str, float]], key: str, unit: float = 1) -> str:
    return f"{median(visit[key] for visit in visits) / unit:.0f}"


if __name__ == "__main__":
    with no_server_left():
        typer.run(main)
