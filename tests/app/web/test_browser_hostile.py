"""Markup in names, results and jobs that others have written: pages show it as text."""

import hashlib
import importlib
import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import pytest
import redis

from app.config import ServeSettings
from app.models.aliases import FILE
from app.results.store import ResultKind, ResultStore
from app.web.routes import PAGES
from pruning.checkpoints.store import MANIFEST
from pruning.jobs import transitions
from pruning.jobs.conditions import Conditions
from pruning.jobs.job import JobError
from pruning.jobs.keys import RECORD
from pruning.jobs.store import JobStore
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.prune import PruneSpec, Repair
from tests.support.api_fixtures import publish_pruned
from tests.support.browser import browser_page
from tests.support.external import DONE, declare, fake_server, head, says, text, usage
from tests.support.job_lives import succeed
from tests.support.serving import serving
from tests.support.tiny_directory import edit_config, write_tiny_model

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

HIT = "document.title='hit'"
IMAGE = f'<img src=x onerror="{HIT}">'
MARKUP = f'{IMAGE}<script>{HIT}</script>"><svg onload={HIT}>\u202e<a href="javascript:{HIT}">a</a>'


def write_names(data_dir: Path) -> None:
    """An alias and a manifest that are broken, and whose reasons quote them."""
    aliases = {IMAGE: "tiny", "good": IMAGE}
    (data_dir / FILE).write_text(json.dumps({"format": 1, "aliases": aliases}))
    manifest = publish_pruned(data_dir)
    file = data_dir / "checkpoints" / "tiny@bad" / MANIFEST
    file.parent.mkdir()
    file.write_text(json.dumps({**json.loads(manifest.to_json()), "created_at": IMAGE}))


def write_results(data_dir: Path) -> dict[ResultKind, str]:
    """One result of each kind, with markup in every text of it."""
    speedup = {"ratio": 1.2, "low": 1.1, "high": 1.3, "verdict": MARKUP, "reason": MARKUP}
    row = {"scenario": MARKUP, "variant": MARKUP, "time": MARKUP, "speedup": speedup}
    bench = {"num_blocks": 6, "results": [{**row, "dense_s": 0.3, "variant_s": 0.2, "ideal": 1.2}]}
    run = {"text": MARKUP, "seed": 1, "removals": [{"block": 2}]}
    stability = {"num_blocks": 6, "dense_perplexities": {}, "runs": [run], "depths": []}
    measured = {"dense_perplexity": 20.0, "perplexity": 30.0, "perplexity_low": None, "ratio": 1.5}
    held_out = {"text": MARKUP, "num_windows": 1, "seqlen": MARKUP, "ratio_low": None, **measured}
    reports: dict[ResultKind, dict[str, Any]] = {
        ResultKind.BENCH: bench,
        ResultKind.EVAL: {"model": MARKUP, "texts": [held_out]},
        ResultKind.STABILITY: {**stability, "picked": [], "conclusions": [MARKUP]},
    }
    store = ResultStore(data_dir)
    return {kind: store.keep(kind, MARKUP, MARKUP, report) for kind, report in reports.items()}


def write_job(store: JobStore, client: redis.Redis) -> str:
    path = CalibrationSpec(Dataset.FILE, num_samples=4, seqlen=8, path=MARKUP)
    job_id = store.create(PruneSpec("tiny", 2, calibration=path)).id
    store.start(job_id, MARKUP)
    store.record(job_id, transitions.warned(MARKUP))
    store.fail(job_id, JobError("broken", MARKUP, MARKUP))
    client.hset(RECORD.format(id=job_id), "pruned_model", f"tiny@{IMAGE}")
    return job_id


def write_checkpoint(data_dir: Path, store: JobStore) -> str:
    """A job whose checkpoint has markup in its texts, in its domains and as its card."""
    calibration = CalibrationSpec(Dataset.SELF, num_samples=4, seqlen=12)
    job_id = store.create(PruneSpec("tiny", 2), conditions=Conditions(owner=MARKUP)).id
    spec = PruneSpec("tiny", 2, calibration=calibration, repair=Repair.NONE)
    manifest = json.loads(publish_pruned(data_dir, job=job_id, spec=spec).to_json())
    folder = data_dir / "checkpoints" / f"tiny@{job_id}"
    card = f"<!doctype html><html><body>{MARKUP}</body></html>".encode()
    (folder / "README.md").write_bytes(card)
    manifest["files"]["README.md"] |= {
        "num_bytes": len(card),
        "sha256": hashlib.sha256(card).hexdigest(),
    }
    quality = manifest["quality"]
    quality |= {"evaluated_on": MARKUP, "warnings": [MARKUP]}
    for number, domain in enumerate(quality["domains"]):
        domain |= {"domain": f"{number} {MARKUP}", "source": MARKUP}
    (folder / MANIFEST).write_text(json.dumps({**manifest, "repair_notes": [MARKUP]}))
    succeed(store, job_id, folder.name)
    return job_id


def write_models(models_dir: Path) -> None:
    """Models whose name, and whose architecture, are markup."""
    for name in ("odd", IMAGE):
        write_tiny_model(models_dir / name.replace("/", ""))
    edit_config(models_dir / "odd", model_type=IMAGE, architectures=[IMAGE])


def shows(page: "Page", path: str, *parts: str) -> None:
    """The page has each of these texts, and has made nothing of them."""
    page.goto(path)
    for part in parts:
        page.locator("main").get_by_text(part, exact=False).first.wait_for(state="attached")
    has_made_nothing(page)


def has_made_nothing(page: "Page") -> None:
    made = page.locator("img[src=x], [onload], [onerror], a[href^=java]")
    assert made.count() == 0, page.url
    assert page.title() != "hit", page.url


def test_markup_that_models_and_clients_send_is_text(
    data_dir: Path, redis_url: str, redis_client: redis.Redis
) -> None:
    """Prompts, outputs of this service's models and of other servers, labels, an unknown path."""
    assert redis_client.ping()
    with fake_server() as fake:
        fake.behave = says(head(), text(MARKUP), text("", "stop"), usage(1, 1), DONE)
        declare(data_dir, "ext", fake.base_url)
        settings = ServeSettings(data_dir=data_dir, drain_s=0)
        with serving(settings, redis_url) as (_, url), browser_page(url) as (page, watched):
            watched.may_fail = True
            query = {"model": ["tiny", "ext"], "prompt": [MARKUP], "max_new_tokens": 4}
            page.goto(f"/ui/compare?{urlencode(query, doseq=True)}")
            page.get_by_role("button", name="Generate").click()
            page.locator("#outputs .output mark").first.wait_for()  # what differs
            outputs = page.locator("#outputs .output").all_text_contents()
            assert any(MARKUP in output for output in outputs)
            has_made_nothing(page)
            shows(page, f"/ui/{quote(IMAGE)}", IMAGE)
            assert (watched.complaints, watched.foreign) == ([], [])


def test_markup_of_others_is_text(
    data_dir: Path, redis_url: str, redis_client: redis.Redis, job_store: JobStore
) -> None:
    write_names(data_dir)
    results = write_results(data_dir)
    job_id = write_job(job_store, redis_client)
    settings = ServeSettings(data_dir=data_dir, drain_s=0)
    with serving(settings, redis_url) as (_, url), browser_page(url) as (page, watched):
        watched.may_fail = True  # there are no such models
        shows(page, "/ui", IMAGE, "tiny@bad")
        shows(page, "/ui/results", MARKUP)
        for result in results.values():
            shows(page, f"/ui/results/{result}", MARKUP)
        shows(page, "/ui/jobs", f"…{job_id[-6:]}")
        shows(page, f"/ui/jobs/{job_id}", MARKUP)
        for path in ("/ui/curve", "/ui/jobs/new", "/ui/compare"):
            shows(page, f"{path}?{urlencode({'model': MARKUP, 'prompt': MARKUP})}")
        assert (watched.complaints, watched.foreign) == ([], [])


def test_markup_of_models_cards_and_tenants_is_text_on_every_page(
    data_dir: Path, redis_url: str, redis_client: redis.Redis, job_store: JobStore
) -> None:
    assert redis_client.ping()
    write_models(data_dir / "models")
    job_id = write_checkpoint(data_dir, job_store)
    result = write_results(data_dir)[ResultKind.EVAL]
    texts = {"/ui": ["odd"], "/ui/jobs/{job_id}": [MARKUP], "/ui/results": [MARKUP]}
    settings = ServeSettings(data_dir=data_dir, drain_s=0)
    with serving(settings, redis_url) as (_, url), browser_page(url) as (page, watched):
        watched.may_fail = True  # such as the models of other names
        query = urlencode(
            {"model": f"tiny@{job_id}", "prompt": MARKUP, "next": f"javascript:{HIT}"}
        )
        for each in PAGES:
            path = each.path.format(job_id=job_id, result_id=result)
            page.goto(f"{path}?{query}", wait_until="networkidle")
            shows(page, f"{path}?{query}", *texts.get(each.path, []))
        files = page.request.get(f"/prune-jobs/{job_id}/checkpoints").json()["data"][0]["files"]
        [card] = [file["url"] for file in files if file["name"] == "README.md"]
        with suppress(playwright_error()):  # the browser may save what it does not show
            page.goto(card)
        has_made_nothing(page)
        answer = page.request.get(card)
        assert MARKUP in answer.text()
        assert "html" not in answer.headers["content-type"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert (watched.complaints, watched.foreign) == ([], [])


def playwright_error() -> type[Exception]:
    found: type[Exception] = importlib.import_module("playwright.sync_api").Error
    return found
