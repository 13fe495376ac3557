"""The forms in a browser: texts of a job and mixes of them, and several prompts side by side."""

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from app.config import ServeSettings
from pruning.jobs.store import JobStore
from pruning.spec.calibration import CalibrationMix, CalibrationSpec, Dataset
from pruning.spec.prune import PruneSpec
from tests.support.api_fixtures import publish_pruned
from tests.support.browser import browser_page
from tests.support.serving import serving

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TEXT = re.compile(r"^text \d$")  # of a mix
# an output has the focus, as somebody who scrolls it has given it, before any text is there
GENERATE_AND_FOCUS = """() => {
  document.getElementById("run").click();
  document.querySelectorAll("#outputs .output")[3].focus();
}"""


def sent(page: "Page") -> dict[str, Any]:
    """The body of the request that the form makes."""
    command = str(page.locator("#curl").text_content())
    found: dict[str, Any] = json.loads(command.partition("-d '")[2].removesuffix("'"))
    return found


def submit(page: "Page", jobs: JobStore, before: int) -> PruneSpec:
    """Submit the form; returns what the only new job is to do."""
    page.get_by_role("button", name="Submit the job").click()
    page.locator(".status", has_text="queued").wait_for()
    found = jobs.list(before + 2).jobs
    assert len(found) == before + 1
    return found[0].spec


def test_a_job_takes_a_text_of_the_folder_or_the_mix_of_another_job(
    settings: ServeSettings, redis_url: str, job_store: JobStore
) -> None:
    settings.texts_dir.mkdir(parents=True, exist_ok=True)
    text = settings.texts_dir / "notes.txt"
    text.write_text("the dog sleeps and the fox jumps over the lazy dog. " * 400)
    with serving(settings, redis_url) as (_, url), browser_page(url) as (page, watched):
        page.goto("/ui/jobs/new?model=tiny")
        page.get_by_text("6 blocks, of which 4 can be removed").wait_for()
        page.locator("#advanced > summary").click()
        path = page.locator("[id='calibration.path']")
        assert not path.is_visible()
        page.locator("#num_remove").fill("1")
        page.locator("[id='calibration.num_samples']").fill("4")
        page.locator("[id='calibration.seqlen']").fill("16")
        page.locator("[id='calibration.dataset']").select_option("file")
        watched.may_fail = True  # no such file
        path.fill("none.txt")
        error = page.locator("[id='calibration.path-error']")
        error.get_by_text("add the file to the folder").wait_for()
        assert path.get_attribute("aria-invalid") == "true"
        page.get_by_role("button", name="Submit the job").click()
        page.get_by_role("alert").get_by_text("add the file to the folder").wait_for()
        assert page.evaluate("() => document.activeElement.id") == "calibration.path"
        assert job_store.list(1).jobs == ()
        path.fill("notes.txt")
        page.get_by_text("unknown: no similar job has run here yet").wait_for()
        assert error.inner_text() == ""
        watched.may_fail = False
        calibration = {"dataset": "file", "path": "notes.txt", "num_samples": 4, "seqlen": 16}
        assert sent(page) == {"model": "tiny", "num_remove": 1, "calibration": calibration}
        found = submit(page, job_store, 0)
        assert found.calibration == CalibrationSpec(
            Dataset.FILE, num_samples=4, seqlen=16, path=str(text)
        )

        prose = CalibrationSpec(Dataset.PROSE, num_samples=6, seqlen=32, seed=3)
        notes = replace(prose, dataset=Dataset.FILE, seed=4, path=str(text))
        mix = CalibrationMix((prose, notes), (1.0, 2.0))
        mixed = job_store.create(PruneSpec("tiny", num_remove=2, calibration=mix)).id
        page.goto(f"/ui/jobs/{mixed}")
        page.get_by_role("link", name="New job like this").click()
        page.get_by_text("6 blocks, of which 4 can be removed").wait_for()
        page.locator("#advanced > summary").click()
        chosen = page.locator("[id='calibration.dataset'] option:checked")
        assert chosen.inner_text() == "a mix of texts"
        rows = page.get_by_role("group", name=TEXT)
        assert rows.count() == 2
        assert rows.nth(1).get_by_label("path").input_value() == str(text)
        assert not path.is_visible()
        page.get_by_text("unknown: no similar job has run here yet").wait_for()
        assert [source.get("weight") for source in sent(page)["calibration"]] == [None, 2]
        assert submit(page, job_store, 2).calibration == mix
        assert (watched.complaints, watched.foreign) == ([], [])


def test_a_mix_of_texts_is_made_from_nothing_and_errors_are_beside_their_fields(
    settings: ServeSettings, redis_url: str, job_store: JobStore
) -> None:
    with serving(settings, redis_url) as (_, url), browser_page(url) as (page, watched):
        page.goto("/ui/jobs/new?model=tiny")
        page.get_by_text("6 blocks, of which 4 can be removed").wait_for()
        page.locator("#advanced > summary").click()
        watched.may_fail = True  # estimates are refused
        page.locator("#num_remove").fill("5")
        error = page.locator("#num_remove-error")
        error.get_by_text("cannot remove 5 of 6 blocks").wait_for()
        assert page.locator("#num_remove").get_attribute("aria-invalid") == "true"
        page.locator("#num_remove").fill("2")
        page.locator("[id='calibration.num_samples']").fill("7")
        page.locator("[id='calibration.seqlen']").fill("16")
        page.locator("[id='calibration.dataset']").select_option("a mix of texts")
        page.get_by_role("button", name="Add a text").press("Enter")
        rows = page.get_by_role("group", name=TEXT)
        assert rows.count() == 3
        assert page.evaluate("() => document.activeElement.id") == "calibration.2.dataset"
        rows.nth(2).get_by_label("dataset").select_option("code")
        again = page.locator("[id='calibration.2.dataset-error']")
        again.get_by_text("this text is already in the mix").wait_for()
        rows.nth(2).get_by_label("dataset").select_option("file")
        rows.nth(2).get_by_label("path").fill("none.txt")
        missing = page.locator("[id='calibration.2.path-error']")
        missing.get_by_text("add the file to the folder").wait_for()
        settings.texts_dir.mkdir(parents=True, exist_ok=True)
        (settings.texts_dir / "empty.txt").write_text(" ")
        rows.nth(2).get_by_label("path").fill("empty.txt")
        missing.get_by_text("contains no text").wait_for()
        (settings.texts_dir / "short.txt").write_text("hello world")
        rows.nth(2).get_by_label("path").fill("short.txt")
        page.locator("[id='calibration.num_samples-error']").get_by_text("2 are needed").wait_for()
        rows.nth(1).get_by_label("weight").fill("0")
        page.locator("[id='calibration.1.weight-error']").get_by_text("above 0").wait_for()
        rows.nth(1).get_by_label("weight").fill("2.5")
        rows.nth(2).get_by_role("button", name="Remove text 3").press("Enter")
        page.get_by_text("unknown: no similar job has run here yet").wait_for()
        assert page.evaluate("() => document.activeElement.innerText") == "Add a text"
        common = {"num_samples": 7, "seqlen": 16}
        page.locator("#tasks").fill("gen_key, none")
        page.locator("#tasks-error").get_by_text("unknown tasks: none").wait_for()
        page.locator("#tasks").fill("gen_key, gen_json")
        page.get_by_text("unknown: no similar job has run here yet").wait_for()
        assert sent(page)["calibration"] == [
            {"dataset": "prose", **common},
            {"dataset": "code", "weight": 2.5, **common},
        ]
        watched.may_fail = False
        sources = [
            CalibrationSpec(each, num_samples=7, seqlen=16)
            for each in (Dataset.PROSE, Dataset.CODE)
        ]
        found = submit(page, job_store, 0)
        assert found.calibration == CalibrationMix(tuple(sources), (1.0, 2.5))
        assert found.tasks == ("gen_key", "gen_json")
        assert (watched.complaints, watched.foreign) == ([], [])


def test_several_prompts_are_generated_in_turn_and_each_variant_is_compared(
    settings: ServeSettings, redis_url: str
) -> None:
    publish_pruned(settings.data_dir, 2)
    prompts = ["the dog", "", "naïve 🦊 数学"]
    with serving(settings, redis_url) as (_, url), browser_page(url) as (page, watched):
        page.goto("/ui/compare")
        page.get_by_label("variant 2").wait_for()
        page.get_by_role("button", name="Add a variant").click()
        page.get_by_label("variant 3").select_option("tiny@-1")
        page.get_by_label("prompt 1").fill(prompts[0])
        for number, prompt in enumerate(prompts[1:], 2):
            page.get_by_role("button", name="Add a prompt").click()
            page.get_by_label(f"prompt {number}").fill(prompt)
        page.get_by_label("max_new_tokens").fill("6")
        page.evaluate(GENERATE_AND_FOCUS)
        page.locator("#outputs .facts").nth(5).wait_for()
        assert page.evaluate("() => document.activeElement.matches('#outputs .output')")
        sections = page.locator("#outputs > section")
        shown = [prompt for prompt in prompts if prompt]  # an empty one is left out
        assert sections.count() == len(shown)
        for index, prompt in enumerate(shown):
            assert prompt in sections.nth(index).locator("> p").inner_text()
            assert sections.nth(index).locator("article").count() == 3
        assert page.locator("#outputs .facts dd", has_text="6 generated").count() == 6
        texts = [page.locator("#outputs .output").nth(at).inner_text() for at in range(6)]
        assert all(texts)

        page.get_by_role("button", name="Compare speed").click()
        page.locator("#result tbody tr").nth(1).wait_for()
        differences = page.locator("#result li").all_inner_texts()
        assert any(words.startswith("Prompt 2, tiny@") for words in differences)
        page.get_by_role("link", name="Link to these settings").click()
        page.get_by_label("prompt 2").wait_for()
        again = [page.get_by_label(f"prompt {at}").input_value() for at in (1, 2)]
        assert again == shown
        assert page.locator("#models select").count() == 3
        page.get_by_role("button", name="Generate").click()
        page.locator("#outputs .facts").nth(5).wait_for()
        assert texts == [page.locator("#outputs .output").nth(at).inner_text() for at in range(6)]
        assert (watched.complaints, watched.foreign) == ([], [])
