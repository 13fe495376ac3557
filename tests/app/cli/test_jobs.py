"""``sleb jobs`` against a real service: its output and its exit codes."""

import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import redis

from app.cli.main import main
from app.config import ServeSettings
from pruning.checkpoints.domain_tables import narrow_table
from pruning.checkpoints.store import MANIFEST
from pruning.checkpoints.trajectory import NONE
from pruning.jobs import transitions
from pruning.jobs.job import JobError, JobStatus, Webhook
from pruning.jobs.keys import ATTEMPTS
from pruning.jobs.outbox import DeliveryAttempt, WebhookOutbox
from pruning.jobs.store import JobStore
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.evaluation import Gate, GateAction
from pruning.spec.heal import Heal
from pruning.spec.prune import PruneSpec, Repair
from tests.support.api_fixtures import publish_pruned
from tests.support.job_lives import REMOVAL, succeed
from tests.support.processes import free_port
from tests.support.pruning_runs import domain_of
from tests.support.serving import serving
from tests.support.tiny_directory import write_tiny_model


@pytest.fixture
def settings(tmp_path: Path) -> ServeSettings:
    return ServeSettings(data_dir=tmp_path, drain_s=0)


@pytest.fixture
def url(settings: ServeSettings, redis_url: str, redis_client: redis.Redis) -> Iterator[str]:
    redis_client.ping()
    with serving(settings, redis_url) as (_, url):
        yield url


@pytest.fixture
def job_id(job_store: JobStore) -> str:
    return job_store.create(PruneSpec("tiny", num_remove=1), {"team": "[red]platform"}).id


class Sleb:
    """The command in this process: its exit code and what it wrote."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str
    ) -> None:
        self._monkeypatch, self._capsys, self._url = monkeypatch, capsys, url

    def jobs(
        self, *arguments: str, url: str | None = None, columns: int = 200
    ) -> tuple[int, str, str]:
        self._monkeypatch.setenv("COLUMNS", str(columns))
        command = ["sleb", "jobs", *arguments, "--url", url or self._url]
        self._monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code is None or isinstance(ended.value.code, int)
        written = self._capsys.readouterr()
        return ended.value.code or 0, written.out, written.err


@pytest.fixture
def sleb(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str) -> Sleb:
    return Sleb(monkeypatch, capsys, url)


# ---- retry


def test_a_job_is_retried_with_what_the_options_change(
    sleb: Sleb, job_store: JobStore, tiny_models_dir: Path
) -> None:
    assert tiny_models_dir.exists()
    calibration = CalibrationSpec(Dataset.PROSE, num_samples=2, seqlen=8)
    gate = Gate(max_perplexity_ratio=1.5, action=GateAction.REFUSE)
    heal = Heal(rank=2, seed=3)
    job_id = job_store.create(
        PruneSpec("tiny", num_remove=1, calibration=calibration, gate=gate, heal=heal)
    ).id
    job_store.cancel(job_id)
    code, out, err = sleb.jobs(
        *("retry", job_id, "--repair", "none", "--gate-action", "warn", "--heal-rank", "4"),
        *("--tasks", "gen_key, gen_json", "--task-questions", "30"),
    )
    assert (code, out) == (0, f"job {job_id} is queued\n"), err
    spec = job_store.get(job_id).spec
    assert (spec.repair, spec.heal) == (Repair.NONE, replace(heal, rank=4))
    assert spec.gate == replace(gate, action=GateAction.WARN)
    assert (spec.tasks, spec.task_questions) == (("gen_key", "gen_json"), 30)
    assert (spec.evaluate, spec.calibration) == (True, calibration)
    code, _, err = sleb.jobs("retry", job_id)
    assert (code, "expected a failed or cancelled job" in err) == (1, True)
    job_store.cancel(job_id)
    assert sleb.jobs("retry", job_id, "--no-gate", "--no-heal", "--no-evaluate")[0] == 0
    spec = job_store.get(job_id).spec
    assert (spec.gate, spec.heal, spec.evaluate, spec.repair) == (None, None, False, Repair.NONE)


# ---- list, show, cancel


def test_jobs_are_listed_and_shown_for_people_and_for_programs(
    sleb: Sleb, job_store: JobStore, job_id: str
) -> None:
    succeed(job_store, job_id)
    newer = job_store.create(PruneSpec("tiny", num_remove=2)).id
    code, out, _ = sleb.jobs("list")
    assert code == 0
    assert out.index(newer) < out.index(job_id)
    assert "succeeded" in out
    assert "2 of 2" in out
    assert [job["id"] for job in json.loads(sleb.jobs("list", "--json")[1])] == [newer, job_id]
    _, out, _ = sleb.jobs("list", "--limit", "1")
    assert newer in out
    assert job_id not in out
    assert "--limit" in out
    _, out, _ = sleb.jobs("list", "--status", "queued", "--json")
    assert [job["id"] for job in json.loads(out)] == [newer]
    _, out, _ = sleb.jobs("show", job_id)
    for text in (job_id, "tiny@x", "worker-1", "team: [red]platform", "2 of 2"):
        assert text in out
    assert ["3", "2.5000", "0.5000", "4"] in map(str.split, out.splitlines())  # from its events
    assert json.loads(sleb.jobs("show", job_id, "--json")[1])["pruned_model"] == "tiny@x"


def test_a_finished_job_shows_the_quality_of_its_model_by_domain(
    sleb: Sleb, job_store: JobStore, job_id: str, tiny_models_dir: Path
) -> None:
    manifest = publish_pruned(tiny_models_dir.parent, 2, job_id, repair=Repair.RIDGE)
    file = tiny_models_dir.parent / "checkpoints" / manifest.name / MANIFEST
    changed = json.loads(file.read_text())
    raw = ((3.5, 4.6, 5.5), (4.0, 5.1, 6.0))
    domains = [domain_of(name, raw, (None, (3.6, 4.6, 5.6))) for name in ("prose", "documentation")]
    changed["quality"]["domains"] = [asdict(domain) for domain in domains]
    file.write_text(json.dumps(changed))
    assert "by domain" not in sleb.jobs("show", job_id)[1]
    succeed(job_store, job_id, manifest.name)
    lines = [line.rstrip() for line in sleb.jobs("show", job_id, columns=80)[1].splitlines()]
    _, expected = narrow_table([domain.at_depth(2) for domain in domains])
    assert expected[3][3] == "42%"
    for line, cells in zip(lines[lines.index("prose") :], expected, strict=False):
        assert line.split() == " ".join(cell for cell in cells if cell != NONE).split()
        assert len(line) <= 80
    assert f"documentation: {domains[1].text}" in " ".join(lines)
    [shown] = json.loads(sleb.jobs("list", "--json")[1])
    assert [domain["domain"] for domain in shown["domains"]] == ["prose", "documentation"]


def test_showing_a_job_tells_what_came_of_its_webhook(
    sleb: Sleb, job_store: JobStore, redis_client: redis.Redis
) -> None:
    webhook = Webhook("https://[red]hooks.example/")
    job_id = job_store.create(PruneSpec("tiny", num_remove=1), webhook=webhook).id
    succeed(job_store, job_id)
    outbox = WebhookOutbox(redis_client)
    (message,) = outbox.claim(1)
    failed = DeliveryAttempt(message.id, message.type, 1, 1e9, 0.25, 500, "answered 500 [red]", 2e9)
    given_up = replace(failed, number=2, response_status=None, next_attempt_at=None)
    for attempt in (failed, given_up, replace(failed, error=None, next_attempt_at=None)):
        redis_client.rpush(ATTEMPTS.format(id=job_id), json.dumps(asdict(attempt)))
    _, out, _ = sleb.jobs("show", job_id, columns=80)
    for text in ("url: https://[red]hooks.example/", "prune_job.succeeded ", "answered 500"):
        assert text in out
    for text in ("0.25 s", "05-1", "gave up", "delivered, 500"):
        assert text in out
    assert max(map(len, out.splitlines())) <= 80
    assert "\n\nwebhook messages" in out
    assert not {"True", "False", "None"} & set(out.split())
    shown = json.loads(sleb.jobs("show", job_id, "--json")[1])
    assert [one["attempt"] for one in shown["webhook_deliveries"]] == [1, 2, 1]
    assert shown["webhook"]["url"] == webhook.url


def test_an_empty_list_says_so(sleb: Sleb) -> None:
    assert sleb.jobs("list")[:2] == (0, "no jobs\n")


def test_a_job_is_cancelled_once(sleb: Sleb, job_store: JobStore, job_id: str) -> None:
    assert sleb.jobs("cancel", job_id) == (0, f"job {job_id} is cancelled\n", "")
    assert job_store.get(job_id).status is JobStatus.CANCELLED
    code, _, err = sleb.jobs("cancel", job_id)
    assert code == 1
    assert "cannot cancel job" in err


def test_a_job_is_paused_and_resumed(sleb: Sleb, job_store: JobStore, job_id: str) -> None:
    assert sleb.jobs("pause", job_id) == (0, f"job {job_id} is paused\n", "")
    assert sleb.jobs("resume", job_id) == (0, f"job {job_id} is queued\n", "")
    job_store.start(job_id, "worker-1")
    code, out, _ = sleb.jobs("pause", job_id)
    assert code == 0
    assert out == f"job {job_id} is running; it will pause after the current evaluation\n"
    assert len(out) <= 100
    assert " pausing " in sleb.jobs("list")[1]
    assert "pause_requested_at" in sleb.jobs("show", job_id)[1]
    resumed = json.loads(sleb.jobs("resume", job_id, "--json")[1])
    assert (resumed["status"], resumed["pause_requested_at"]) == ("running", None)
    code, _, err = sleb.jobs("resume", job_id)
    assert code == 1
    assert "cannot resume job" in err


def test_priorities_are_listed(sleb: Sleb, job_store: JobStore) -> None:
    job_store.create(PruneSpec("tiny", num_remove=1), priority=-73)
    out = sleb.jobs("list")[1]
    assert "priority" in out
    assert "-73" in out


@pytest.mark.parametrize("command", ["show", "watch", "cancel", "pause", "resume"])
def test_a_job_that_is_not_there_is_one_line(sleb: Sleb, command: str) -> None:
    code, out, err = sleb.jobs(command, "prn-1/../x")
    assert (code, out) == (1, "")
    assert "error:" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("command", [["list"], ["show", "prn-1"], ["watch", "prn-1"]])
@pytest.mark.parametrize("wrong", ["http://127.0.0.1:{port}", "nowhere", "http://["])
def test_a_service_that_is_not_there_is_one_line(
    sleb: Sleb, command: list[str], wrong: str
) -> None:
    code, out, err = sleb.jobs(*command, url=wrong.format(port=free_port()))
    assert (code, out) == (1, "")
    assert "cannot connect to a service at" in err
    assert "--url" in err


def test_another_server_is_told_from_the_service(
    sleb: Sleb, tmp_path: Path, url: str, job_id: str
) -> None:
    code, _, err = sleb.jobs("show", job_id, url=f"{url}/docs")
    assert code == 1
    assert "no route matches '/docs/prune-jobs/" in err
    (tmp_path / "prune-jobs").write_text("hello")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        code, _, err = sleb.jobs("list", url=f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert code == 1
    assert "not a sleb-serve service" in err


# ---- watch


def test_watching_shows_what_happened_and_ends_with_the_job(
    sleb: Sleb, job_store: JobStore, job_id: str
) -> None:
    succeed(job_store, job_id)
    code, out, err = sleb.jobs("watch", job_id)
    assert (code, out) == (0, "")
    shown = [line.strip() for line in err.splitlines()]
    assert shown[0] == "job created"
    assert "removed block 3: loss 2.5000 (dense 2.2500), margin 0.5000 over block 4" in shown
    assert any("2 of 2" in line and "100.0%" in line for line in shown)
    assert "published tiny@x" in shown
    assert not any("more calibration text" in line for line in shown)


def test_watching_a_search_with_ties_ends_with_what_to_do(
    sleb: Sleb, job_store: JobStore, job_id: str
) -> None:
    attempt = job_store.start(job_id, "worker-1").attempt
    job_store.record(job_id, transitions.removed([replace(REMOVAL, margin_error=0.3)]), attempt)
    job_store.succeed(job_id, "tiny@x", attempt)
    _, _, err = sleb.jobs("watch", job_id)
    assert "0.5000 ± 0.3000 over block 4, a tie" in err
    assert "ties: 1 of 1 round" in err
    assert "more calibration text" in err


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_watching_a_job_that_fails_or_is_cancelled_says_why(
    sleb: Sleb, job_store: JobStore, job_id: str, arguments: list[str]
) -> None:
    job_store.fail(job_id, JobError("not_enough_text", "the text has [3] tokens"))
    code, _, err = sleb.jobs("watch", job_id, *arguments)
    assert code == 1
    assert err.count("the text has [3] tokens") == 1
    assert f"error: job {job_id} failed" in err
    cancelled = job_store.create(PruneSpec("tiny", num_remove=1)).id
    job_store.cancel(cancelled)
    code, _, err = sleb.jobs("watch", cancelled, *arguments)
    assert code == 1
    assert f"job {cancelled} cancelled: cancel requested" in err


def test_a_job_is_submitted_with_the_options_of_prune_and_deleted(
    sleb: Sleb, settings: ServeSettings, job_store: JobStore
) -> None:
    write_tiny_model(settings.models_dir / "tiny")
    options = ["--num-remove", "2", "--calibration", "code=2", "--calibration", "prose"]
    gate = ["--gate-max-perplexity-ratio-of", "code=1.5", "--num-samples", "6", "--seqlen", "12"]
    tasks = ["--tasks", "gen_key", "--gate-min-task-share", "0.5", "--priority", "7"]
    code, out, err = sleb.jobs("submit", "tiny", *options, *gate, *tasks, "--json")
    assert code == 0, err
    job = job_store.get(json.loads(out)["id"])
    assert (job.priority, job.spec.num_remove) == (7, 2)
    assert [part.dataset.value for part in job.spec.calibration.parts] == ["code", "prose"]
    assert job.spec.gate is not None
    assert dict(job.spec.gate.max_perplexity_ratio_of) == {"code": 1.5}
    assert (job.spec.tasks, job.spec.gate.min_task_share) == (("gen_key",), 0.5)
    assert sleb.jobs("delete", job.id)[0] == 1
    sleb.jobs("cancel", job.id)
    assert sleb.jobs("delete", job.id)[0] == 0
    assert sleb.jobs("show", job.id)[0] == 1
    assert "no model" in sleb.jobs("submit", "unknown", "--num-remove", "1")[2]


def test_a_submitted_job_heals_by_the_options_of_heal(
    sleb: Sleb, settings: ServeSettings, job_store: JobStore
) -> None:
    write_tiny_model(settings.models_dir / "tiny")
    heal = ["--heal-num-tokens", "2000", "--no-heal-control", "--heal-seed", "3"]
    code, out, err = sleb.jobs("submit", "tiny", "--num-remove", "2", "--heal", *heal, "--json")
    assert code == 0, err
    job = job_store.get(json.loads(out)["id"])
    assert job.spec.heal == Heal(num_tokens=2000, control=False, seed=3)
    code, _, err = sleb.jobs("submit", "tiny", "--num-remove", "2", "--no-heal-control")
    assert code == 2
    assert "--heal-control requires --heal" in err
    assert len(job_store.list().jobs) == 1


def test_a_published_checkpoint_is_healed_by_a_job(
    sleb: Sleb, job_store: JobStore, job_id: str, tiny_models_dir: Path
) -> None:
    name = publish_pruned(tiny_models_dir.parent, 2, job_id).name
    code, out, err = sleb.jobs("heal", name, "--rank", "4", "--priority", "2", "--json")
    assert code == 0, err
    job = job_store.get(json.loads(out)["id"])
    assert (job.source, job.priority, job.spec.heal) == (name, 2, Heal(rank=4))
    assert sleb.jobs("heal", name, "--rank", "0")[0] == 2
    code, _, err = sleb.jobs("heal", "tiny@missing")
    assert code == 1
    assert "tiny@missing" in err
