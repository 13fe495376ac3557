"""All settings are documented, and all variables of the processes are settings."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from app.cli.main import app as command_line
from app.config import ClusterSettings, ServeSettings
from app.settings import PortTaken, UnknownSetting, check_ports, check_variables, settings
from pruning.config import WorkerSettings, child_environment
from tests.support.command_line import sleb_process
from tests.support.webhook_receiver import SECRET
from tools.docs.settings import main, page

ROOT = Path(__file__).parents[2]


def test_the_page_is_up_to_date(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    main(tmp_path / "settings.md")
    made = (tmp_path / "settings.md").read_text(encoding="utf-8")
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == made, "run make docs"


def test_the_page_has_every_setting_with_its_default_and_a_meaning() -> None:
    rows = re.findall(r"^\| `(SLEB_\w+)` \| (.+?) \| (.+) \|$", page(), re.MULTILINE)
    fields = {**WorkerSettings.model_fields, **ClusterSettings.model_fields}
    assert [name for name, _, _ in rows] == [f"SLEB_{name.upper()}" for name in fields]
    defaults = {name: default for name, default, _ in rows}
    assert defaults["SLEB_PORT"] == "`8000`"
    assert defaults["SLEB_VERIFY"] == "`process`"
    assert defaults["SLEB_WEBHOOK_ALLOW_PRIVATE"] == "`false`"
    assert defaults["SLEB_REDIS_URL"] == "unset"
    assert all(field.description for field in fields.values())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("SLEB_PROT", "did you mean SLEB_PORT?"),
        ("SLEB_SHADOW_SHAR", "did you mean SLEB_SHADOW_SHARE?"),
        ("SLEB_QQQQQQQQQQQQQQQQ", "docs/settings.md"),
    ],
)
def test_a_variable_that_is_no_setting_is_named_with_the_nearest(name: str, said: str) -> None:
    with pytest.raises(UnknownSetting) as refused:
        check_variables({name: "1", "SLEB_PORT": "1", "PATH": "/bin"})
    assert name in str(refused.value)
    assert said in str(refused.value)


def test_all_that_are_wrong_are_told_at_once() -> None:
    with pytest.raises(UnknownSetting, match=r"SLEB_A:[^\n]*\n[^\n]*SLEB_B:"):
        check_variables({"SLEB_B": "1", "SLEB_A": "1"})


def test_variables_of_tests_other_programs_and_empty_ones_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_variables({"SLEB_TEST_REDIS_URL": "x", "SLEBX": "1", "OTEL_SDK_DISABLED": "1"})
    monkeypatch.setenv("SLEB_PROT", "")
    check_variables()
    monkeypatch.setenv("sleb_prot", "1")
    with pytest.raises(UnknownSetting, match="SLEB_PROT"):
        check_variables()


def test_what_children_are_given_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    everything: dict[str, Any] = {
        "otlp_endpoint": "http://127.0.0.1:4318",
        "webhook_secret": SECRET,
        "preload": ("a", "b"),
    }
    for given in (ClusterSettings(**everything), WorkerSettings()):
        names = child_environment(given, "unix:///x")
        check_variables(names)
        for name, value in names.items():
            monkeypatch.setenv(name, value)
        assert type(given)() == given.model_copy(update={"redis_url": "unix:///x"})


@pytest.mark.parametrize("file", ["Dockerfile", "docker-compose.yml", "Makefile", ".ci/run"])
def test_files_that_set_variables_set_no_other(file: str) -> None:
    found = re.findall(r"SLEB_\w+", (ROOT / file).read_text(encoding="utf-8"))
    check_variables(dict.fromkeys(found, "1"))
    assert found or file in {"Makefile", ".ci/run"}


@pytest.mark.parametrize(
    "command",
    [
        ["up"],
        ["serve"],
        ["worker"],
        ["demo"],
        ["prune", "m", "--num-remove", "1", "--out", "o"],
        ["eval", "m"],
        ["export", "m", "o"],
        ["stability", "m", "--num-remove", "1", "--out", "o"],
        ["bench", "m"],
        ["config"],
        ["models"],
        ["models", "add", "m"],
        ["jobs", "list"],
    ],
)
def test_no_command_begins_with_a_misspelt_variable(
    monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setenv("SLEB_PROT", "1")
    result = CliRunner().invoke(command_line, command)
    assert isinstance(result.exception, UnknownSetting)


def test_a_misspelt_variable_is_a_message_and_a_code(tmp_path: Path) -> None:
    ran = sleb_process(tmp_path, "serve", variables={"SLEB_PROT": "1"})
    told = " ".join(ran.stderr.split())
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "error: unknown setting SLEB_PROT: did you mean SLEB_PORT?" in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({"shadow_direction": "@-6"}, ["SLEB_SHADOW_DIRECTION", "SLEB_SHADOW_SHARE"]),
        ({"webhook_allow_private": True}, ["SLEB_WEBHOOK_ALLOW_PRIVATE", "SLEB_WEBHOOK_SECRET"]),
        ({"max_model_len": 1}, ["max_model_len"]),
        ({"max_body_bytes": 63}, ["max_body_bytes"]),
    ],
)
def test_settings_that_contradict_each_other_are_named(
    given: dict[str, Any], names: list[str]
) -> None:
    with pytest.raises(ValidationError) as refused:
        ServeSettings(**given)
    assert not [name for name in names if name not in str(refused.value)]


@pytest.mark.parametrize(
    "given",
    [
        {"shadow_direction": "@-6", "shadow_share": 0.1},
        {"shadow_direction": "dense"},
        {"webhook_allow_private": True, "webhook_secret": SECRET},
        {"max_model_len": 2},
    ],
)
def test_settings_that_fit_together_are_taken(given: dict[str, Any]) -> None:
    found = ServeSettings(**given)
    assert {name: getattr(found, name) for name in given} == given


def test_api_and_worker_need_a_port_each(monkeypatch: pytest.MonkeyPatch) -> None:
    check_ports(ServeSettings(port=0), WorkerSettings(worker_metrics_port=0))
    check_ports(
        ServeSettings(port=8000, metrics_port=9102), WorkerSettings(worker_metrics_port=9101)
    )
    with pytest.raises(PortTaken, match="SLEB_PORT and SLEB_METRICS_PORT are both 8000"):
        check_ports(ServeSettings(port=8000, metrics_port=8000), WorkerSettings())
    monkeypatch.setenv("SLEB_WORKER_METRICS_PORT", "8000")
    for command in ("up", "config"):
        result = CliRunner().invoke(command_line, [command])
        assert isinstance(result.exception, PortTaken)
        assert "SLEB_PORT and SLEB_WORKER_METRICS_PORT" in str(result.exception)


def test_every_setting_is_a_variable_of_ours_first() -> None:
    assert {setting.variables[0] for setting in settings()} == {
        f"SLEB_{setting.field.upper()}" for setting in settings()
    }
    [otlp] = [setting for setting in settings() if setting.field == "otlp_endpoint"]
    assert otlp.variables == ("SLEB_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
