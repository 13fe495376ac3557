"""The pages by keyboard alone: every flow, with a focus that is seen and never lost."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from app.auth.keys import KeyFile, Scope
from app.config import ServeSettings
from pruning.jobs.job import JobError
from pruning.jobs.store import JobStore
from pruning.spec.prune import PruneSpec
from tests.support.api_fixtures import publish_pruned
from tests.support.browser import browser_page
from tests.support.job_lives import succeed
from tests.support.serving import serving
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MAX_TABS = 80
# the focused element: whether it has an outline, lies within the window, and is covered by nothing
SEEN = """() => {
  const node = document.activeElement, box = node.getBoundingClientRect();
  if (node === document.body) return true;
  const { outlineStyle, outlineWidth } = getComputedStyle(node);
  const [x, y] = [box.x + Math.min(box.width, 60) / 2, box.y + Math.min(box.height, 60) / 2];
  const top = document.elementFromPoint(x, y); // null outside of the window
  const parts = [node, ...(node.labels ?? [])];
  return outlineStyle !== "none" && parseFloat(outlineWidth) >= 2 && top !== null
    && (top.contains(node) || parts.some((part) => part.contains(top)));
}"""


def tab_to(page: "Page", selector: str, key: str = "Tab") -> None:
    """Press Tab until the element has the focus. Everything on the way has to be seen."""
    for _ in range(MAX_TABS):
        page.keyboard.press(key)
        focused = page.evaluate("() => document.activeElement.outerHTML.slice(0, 200)")
        assert page.evaluate(SEEN), focused
        if page.evaluate("(wanted) => document.activeElement.matches(wanted)", selector):
            return
    raise AssertionError(f"{selector} is not reached")


def focused_words(page: "Page") -> str:
    found = page.evaluate("() => document.activeElement.textContent")
    assert isinstance(found, str)
    return found


def wait_for_focus(page: "Page", words: str) -> None:
    wait_until(lambda: focused_words(page) == words, f"{words} has the focus")


@pytest.fixture
def settings(data_dir: Path) -> ServeSettings:
    return ServeSettings(data_dir=data_dir, drain_s=0)


def test_a_job_is_submitted_paused_cancelled_retried_and_deleted(
    settings: ServeSettings, redis_url: str, job_store: JobStore
) -> None:
    with serving(settings, redis_url) as (_, url), browser_page(url) as (page, watched):
        page.goto("/ui/jobs")
        page.get_by_text("No jobs yet").wait_for()
        tab_to(page, ".skip")
        page.keyboard.press("Enter")
        assert page.evaluate("() => document.activeElement.id") == "main"
        tab_to(page, "a[href='/ui/jobs/new']")
        page.keyboard.press("Enter")
        page.get_by_text("6 blocks, of which 4 can be removed").wait_for()
        tab_to(page, "#num_remove")
        page.keyboard.type("2")
        page.get_by_text("unknown: no similar job has run here yet").wait_for()
        page.keyboard.press("Enter")
        page.locator(".status", has_text="queued").wait_for()
        [job] = job_store.list(2).jobs

        tab_to(page, "[data-key=pause]")
        page.keyboard.press("Enter")
        page.locator(".status", has_text="paused").wait_for()
        wait_for_focus(page, "Resume")
        assert page.locator("#said").inner_text() == "pause requested"
        tab_to(page, "[data-key=cancel]")
        page.keyboard.press("Enter")
        wait_for_focus(page, "Keep it")
        page.keyboard.press("Escape")
        wait_for_focus(page, "Cancel")
        page.keyboard.press("Enter")
        wait_for_focus(page, "Keep it")
        tab_to(page, "dialog .danger", "Shift+Tab")
        page.keyboard.press("Space")
        page.locator(".status", has_text="cancelled").wait_for()
        wait_for_focus(page, "Retry")
        page.keyboard.press("Enter")
        page.locator(".status", has_text="queued").wait_for()
        wait_for_focus(page, "Pause")
        job_store.start(job.id, "w")  # the page follows it again
        page.locator(".status", has_text="running").wait_for()
        job_store.fail(job.id, JobError("disk_full", "no room"))
        page.get_by_text("Failed: disk_full").wait_for()
        assert page.locator("#events").get_by_text("retried").count() == 1
        wait_for_focus(page, "Retry")
        tab_to(page, "[data-key=delete]")
        page.keyboard.press("Enter")
        wait_for_focus(page, "Keep it")
        tab_to(page, "dialog .danger", "Shift+Tab")
        page.keyboard.press("Enter")
        page.get_by_text("No jobs yet").wait_for()
        assert job_store.list(1).jobs == ()
        assert (watched.complaints, watched.foreign, job.model) == ([], [], "tiny")


def compare(page: "Page") -> None:
    """Generate for two prompts side by side, then compare the speed."""
    page.get_by_label("variant 2").wait_for()
    tab_to(page, "#another")
    page.keyboard.press("Enter")
    assert page.evaluate("() => document.activeElement.id") == "prompt-2"
    page.keyboard.type("the dog")
    tab_to(page, "#max_new_tokens")
    page.keyboard.press("Control+A")
    page.keyboard.type("4")
    tab_to(page, "#run")
    page.keyboard.press("Enter")
    page.locator("#outputs .facts").nth(3).wait_for()
    wait_for_focus(page, "Generate")
    tab_to(page, "#verdict")
    page.keyboard.press("Enter")
    page.locator("#result table").wait_for()
    wait_for_focus(page, "Compare speed")


def test_a_variant_of_the_curve_is_loaded_exported_measured_and_compared(
    settings: ServeSettings, redis_url: str, job_store: JobStore
) -> None:
    job = job_store.create(PruneSpec("tiny", num_remove=2)).id
    publish_pruned(settings.data_dir, 2, job=job)
    succeed(job_store, job, f"tiny@{job}")
    shutil.copytree(settings.models_dir / "tiny", settings.models_dir / "zoo")
    with serving(settings, redis_url) as (_, url), browser_page(url) as (page, watched):
        page.goto("/ui/curve?model=tiny")
        page.locator("#rows tbody tr").nth(1).wait_for()
        assert page.locator("#model").input_value() == "tiny"
        texts = page.locator("#domain option").all_inner_texts()
        assert page.locator("#domain").input_value() == texts[0] != texts[-1]
        tab_to(page, "#rows [data-key]")
        page.keyboard.press("Enter")
        wait_for_focus(page, "Without 1 block")
        tab_to(page, "#picked button")
        page.keyboard.press("Enter")
        wait_for_focus(page, "Loaded")
        loaded = page.evaluate("() => fetch('/models/tiny@-1').then((answer) => answer.json())")
        assert loaded["is_loaded"]
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        tab_to(page, "#picked [aria-label^=Copy]")
        page.keyboard.press("Enter")
        wait_for_focus(page, "Copied")
        copied = page.evaluate("() => navigator.clipboard.readText()")
        assert copied == f"sleb export tiny@{job}-1 DIRECTORY"
        tab_to(page, "#csv", "Shift+Tab")
        with page.expect_download() as downloading:
            page.keyboard.press("Enter")
        assert f"tiny@{job}-2," in Path(downloading.value.path()).read_text()
        tab_to(page, "#measure", "Shift+Tab")
        page.keyboard.press("Enter")
        page.get_by_text("outputs of 32 tokens").wait_for()
        wait_for_focus(page, "Measure speed")
        assert page.locator("#axis").input_value() == "speed"
        tab_to(page, "#picked a")
        page.keyboard.press("Enter")
        compare(page)

        page.goto("/docs")
        page.get_by_text("/heal-jobs").wait_for()
        tab_to(page, "#find")
        page.keyboard.type("idempotency heal")
        page.get_by_text(" found", exact=False).wait_for()
        tab_to(page, "#create_heal_job > summary")
        page.keyboard.press("Enter")
        page.get_by_text("Idempotency-Key (header)").wait_for()
        assert (watched.complaints, watched.foreign) == ([], [])


def test_what_is_read_stays_when_a_page_is_drawn_again(
    settings: ServeSettings, redis_url: str, job_store: JobStore
) -> None:
    first = job_store.create(PruneSpec("tiny", num_remove=2)).id
    with serving(settings, redis_url) as (_, url), browser_page(url) as (page, watched):
        page.goto("/ui/jobs")
        link = page.get_by_title(first)
        link.wait_for()
        assert link.inner_text() == f"…{first[-6:]}"
        page.evaluate("() => getSelection().selectAllChildren(document.querySelector('#list td'))")
        for _ in range(2):  # the same again
            with page.expect_response("**/prune-jobs?*"):
                pass
        assert page.evaluate("() => String(getSelection())") == "tiny"

        rows = page.locator("#list tbody tr")
        for number, selector in enumerate(("#list [role=region]", f"#list [href$={first}]"), 1):
            tab_to(page, selector)
            job_store.create(PruneSpec("tiny", num_remove=1))
            rows.nth(number).wait_for()
            assert page.evaluate("(wanted) => document.activeElement.matches(wanted)", selector)
            assert page.evaluate(SEEN)
        assert (watched.complaints, watched.foreign) == ([], [])


def test_a_visitor_signs_in_and_out(settings: ServeSettings, redis_url: str) -> None:
    key = KeyFile(settings.keys_file).create("reader", [Scope.JOBS])
    with serving(settings, redis_url) as (_, url), browser_page(url) as (page, watched):
        watched.may_fail = True  # requests are refused before the sign-in
        page.goto("/ui/jobs")
        page.get_by_label("API key").wait_for()
        wait_until(lambda: page.evaluate("() => document.activeElement.id") == "key", "it is ready")
        page.keyboard.type("sleb_wrong")
        page.keyboard.press("Enter")
        page.get_by_role("alert").get_by_text("This key is unknown or has expired").wait_for()
        page.keyboard.type(key)
        page.keyboard.press("Enter")
        page.get_by_text("reader (jobs)").wait_for()
        tab_to(page, "#session button")
        page.keyboard.press("Enter")
        page.get_by_label("API key").wait_for()
        assert (watched.complaints, watched.foreign) == ([], [])
