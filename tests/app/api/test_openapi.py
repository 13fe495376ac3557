"""The API against its own description: what a fuzzer makes of it, requests in sequence included.

The fuzzer is schemathesis, as its command runs it, with all its checks: data that fits the
description and data that does not, wrong methods, and operations that follow others by links.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from app.auth.keys import KeyFile, Scope
from app.config import ServeSettings
from app.main import create_app
from pruning.jobs.store import JobStore
from pruning.spec.prune import PruneSpec
from tests.support.api_fixtures import publish_pruned
from tests.support.job_lives import succeed
from tests.support.serving import LocalClient, serving
from tests.support.waiting import wait_until

# What the description cannot tell: names that are there, and sizes that are worth a test.
CONFIG = """
request-timeout = 60

[dictionaries]
jobs.values = {jobs}
models.values = ["tiny", "tiny@-1", "tiny@{published}", "tiny@{published}-2"]
files.values = ["config.json", "manifest.json", "none.txt"]
few.values = [1, 2, 3]

[parameters]
"path.job_id" = {{ dictionary = "jobs", probability = 0.7 }}
"path.model" = {{ dictionary = "models", probability = 0.9 }}
"path.name" = {{ dictionary = "models", probability = 0.9 }}
"path.file" = {{ dictionary = "files", probability = 0.9 }}
"body.model" = {{ dictionary = "models", probability = 0.9 }}
"body.num_remove" = {{ dictionary = "few", probability = 0.9 }}
"body.max_new_tokens" = {{ dictionary = "few", probability = 0.9 }}

# Whether a model is dense, has that many blocks or positions, and the file is there, only the
# service knows. /tokenize takes a prompt or messages, which its description does not exclude.
[[operations]]
include-name = [
    "POST /prune-jobs", "POST /prune-jobs/{{job_id}}/retry", "POST /heal-jobs", "POST /generate",
    "POST /compare", "POST /evals", "POST /tokenize", "GET /models/{{name}}/advice",
]
checks.positive_data_acceptance.expected-statuses = ["2xx", "404", "409", "422", "429"]

[[operations]]
include-path-regex = "^/v1/"
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "404", "429"]
"""


CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "ignored_auth",
)
# Where keys matter, valid requests are enough: a refusal comes before the body is read.
VALID = ("--mode", "positive", "--checks", ",".join(CHECKS))

# Random data costs more than the cases that follow from the description, and adds little here.
PHASES = pytest.mark.parametrize(
    "phases", ["coverage", pytest.param("coverage,fuzzing", marks=pytest.mark.slow)]
)


@pytest.fixture
def url(settings: ServeSettings, redis_url: str) -> Iterator[str]:
    with serving(settings, redis_url) as (_, url):
        yield url


@pytest.fixture
def config(tmp_path: Path, data_dir: Path, job_store: JobStore) -> Path:
    """For a service with a published job, and some that wait."""
    jobs = [job_store.create(PruneSpec("tiny", num_remove=3)).id for _ in range(3)]
    publish_pruned(data_dir, job=jobs[0])
    succeed(job_store, jobs[0])
    path = tmp_path / "schemathesis.toml"
    path.write_text(CONFIG.format(jobs=json.dumps(jobs), published=jobs[0]))
    return path


def fuzz(url: str, config: Path, max_examples: int, *options: str) -> None:
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run"]
    command += [f"{url}/openapi.json", "--max-examples", str(max_examples)]
    command += ["--suppress-health-check", "all", *options]
    # in a directory of its own, where it keeps notes
    ran = subprocess.run(command, cwd=config.parent, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_api_does_what_it_says(url: str, config: Path) -> None:
    fuzz(url, config, 5, "--seed", "1", "--phases", "coverage,fuzzing")
    fuzz(url, config, 5, "--seed", "1", "--phases", "stateful", "--include-path-regex", "job")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_fuzzer_finds_nothing_with_its_own_defaults(url: str, config: Path) -> None:
    """Every check and phase, and no hint of what the service has: valid data is never refused."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"]
    command += ["--seed", "1"]
    bare = config.parent / "bare"
    bare.mkdir()
    ran = subprocess.run(command, cwd=bare, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_api_does_what_it_says_a_thousand_times(url: str, config: Path) -> None:
    fuzz(url, config, 200)


@pytest.mark.slow
@PHASES
def test_with_a_key_too_and_nothing_ignores_it(
    url: str, config: Path, settings: ServeSettings, phases: str
) -> None:
    key = KeyFile(settings.keys_file).create("fuzzer", [Scope.ADMIN])
    header = f"Authorization: Bearer {key}"
    fuzz(url, config, 5, "--seed", "1", "--phases", phases, *VALID, "--header", header)


@pytest.mark.slow
@pytest.mark.parametrize("scope", [None, Scope.JOBS])
@PHASES
def test_requests_without_a_scope_are_refused_as_described(
    url: str, config: Path, settings: ServeSettings, scope: Scope | None, phases: str
) -> None:
    key = KeyFile(settings.keys_file).create("fuzzer", [scope or Scope.ADMIN])
    header = ["--header", f"Authorization: Bearer {key}"] if scope else []
    fuzz(url, config, 5, "--seed", "1", "--phases", phases, *VALID, *header)


@pytest.mark.slow
@PHASES
def test_requests_over_the_limit_are_refused_as_described(
    url: str, config: Path, settings: ServeSettings, phases: str
) -> None:
    key = KeyFile(settings.keys_file).create("fuzzer", [Scope.ADMIN], rate_per_min=20)
    header = ["--header", f"Authorization: Bearer {key}"]
    fuzz(url, config, 5, "--seed", "1", "--phases", phases, *VALID, *header)
    assert (
        httpx2.get(f"{url}/models", headers={"Authorization": f"Bearer {key}"}).status_code == 429
    )


def test_every_operation_on_a_job_is_linked_from_its_creation(settings: ServeSettings) -> None:
    paths = create_app(settings, redis_url="unix:///none").openapi()["paths"]
    links = paths["/prune-jobs"]["post"]["responses"]["202"]["links"]
    linked = {link["operationId"] for link in links.values()}
    operations = {
        operation["operationId"]
        for path, methods in paths.items()
        if path.startswith("/prune-jobs/{job_id}") and "{file}" not in path
        for operation in methods.values()
    }
    assert linked == operations


def test_the_openai_routes_say_400_where_they_answer_it(settings: ServeSettings) -> None:
    document = create_app(settings, redis_url="unix:///none").openapi()
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert ("422" in operation["responses"]) <= (not path.startswith("/v1/")), path
    assert "#/components/schemas/HTTPValidationError" not in json.dumps(document)


def test_every_error_is_described_as_a_problem(settings: ServeSettings) -> None:
    paths = create_app(settings, redis_url="unix:///none").openapi()["paths"]
    for path, methods in paths.items():
        for operation in methods.values():
            for status, answer in operation["responses"].items():
                if path.startswith(("/v1/", "/health", "/ping")) or int(status) < 400:
                    continue
                assert list(answer["content"]) == ["application/problem+json"], (path, status)


def test_every_parameter_says_what_it_is(settings: ServeSettings) -> None:
    paths = create_app(settings, redis_url="unix:///none").openapi()["paths"]
    silent = [
        (method, path, parameter["name"])
        for path, methods in paths.items()
        for method, operation in methods.items()
        for parameter in operation.get("parameters", ())
        if not parameter.get("description")
    ]
    assert silent == []


def test_the_description_is_made_once_and_again_when_keys_are_required(
    settings: ServeSettings, redis_url: str
) -> None:
    """The pages read it, and making it takes longer than all else that they ask for."""
    app = create_app(settings, redis_url=redis_url)
    with LocalClient(app) as client:
        sent = client.get("/openapi.json").json()
        before = app.openapi()
        assert app.openapi() is before
        assert client.get("/openapi.json").json() == sent == json.loads(json.dumps(before))
        KeyFile(settings.keys_file).create("reader", [Scope.JOBS])
        assert "security" in app.openapi()["paths"]["/prune-jobs"]["get"]
        assert "security" not in before["paths"]["/prune-jobs"]["get"]
        assert client.get("/openapi.json").json() != sent


def test_the_description_is_made_early_where_that_is_asked_for(
    settings: ServeSettings, redis_url: str
) -> None:
    """FastAPI makes it on the event loop, for which all streams would wait."""
    app = create_app(settings, redis_url=redis_url, describe_early=True)
    with LocalClient(app):
        wait_until(lambda: app.openapi_schema is not None, "the description is made")
