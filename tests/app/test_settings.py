"""``sleb config``: what is in effect, from where, and no secret."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from app.cli.main import app as command_line
from app.settings import without_secrets
from tests.support.webhook_receiver import SECRET


def config(*arguments: str) -> str:
    result = CliRunner().invoke(command_line, ["config", *arguments])
    assert result.exit_code == 0, f"{result.output}{result.exception}"
    return result.stdout


def rows() -> dict[str, tuple[str, str]]:
    return {
        each["variable"]: (each["value"], each["source"]) for each in json.loads(config("--json"))
    }


def test_values_come_with_their_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLEB_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("SLEB_PRELOAD", '["a", "b"]')
    monkeypatch.setenv("SLEB_STATE_BUDGET", "4GiB")
    monkeypatch.setenv("SLEB_WORKER_METRICS_PORT", "9101")
    monkeypatch.setenv("SLEB_DRAIN_S", "")
    found = rows()
    assert found["SLEB_DATA_DIR"] == (str(tmp_path), "environment")
    assert found["SLEB_PRELOAD"] == ('["a", "b"]', "environment")
    assert found["SLEB_STATE_BUDGET"] == (str(4 * 2**30), "environment")
    assert found["SLEB_WORKER_METRICS_PORT"] == ("9101", "environment")
    assert found["SLEB_DRAIN_S"] == ("30.0", "default")
    assert found["SLEB_REDIS_URL"] == ("unset", "default")
    assert found["SLEB_WEBHOOK_SECRET"] == ("unset", "default")
    assert "SLEB_DRAIN_S" in config()


def test_another_name_of_a_setting_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    expected = ("http://127.0.0.1:4318/", "environment, OTEL_EXPORTER_OTLP_ENDPOINT")
    assert rows()["SLEB_OTLP_ENDPOINT"] == expected


def test_secrets_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLEB_REDIS_URL", "rediss://me:hunter2@host:6379/1?password=hunter3&db=2")
    monkeypatch.setenv("SLEB_OTLP_ENDPOINT", "https://me:hunter4@host/?token=hunter5")
    monkeypatch.setenv("SLEB_WEBHOOK_SECRET", SECRET)
    for printed in (config(), config("--json")):
        assert "hunter" not in printed
        assert SECRET not in printed
        assert SECRET.removeprefix("whsec_")[:12] not in printed
    found = rows()
    assert found["SLEB_REDIS_URL"][0] == "rediss://***@host:6379/1?password=***&db=2"
    assert found["SLEB_WEBHOOK_SECRET"] == ("***", "environment")


@given(st.text(alphabet="abc1:@/?#&=!$%^é", min_size=1, max_size=12))
def test_no_part_of_a_password_is_left(password: str) -> None:
    assert without_secrets(f"redis://u:{password}@host:1/0") == "redis://***@host:1/0"
    assert without_secrets("unix:///run/valkey.sock") == "unix:///run/valkey.sock"
