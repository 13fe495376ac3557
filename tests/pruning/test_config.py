"""Settings are read from the environment, validated, immutable, and passed to child processes."""

from pathlib import Path

import pytest
from pydantic import ByteSize, ValidationError

from pruning.config import Settings, WorkerSettings, child_environment


def test_settings_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLEB_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("SLEB_THREADS", "3")
    monkeypatch.setenv("SLEB_REDIS_URL", "")
    settings = WorkerSettings()
    assert (settings.data_dir, settings.threads) == (tmp_path, 3)
    assert settings.redis_url is None
    assert settings.models_dir == tmp_path / "models"
    assert settings.checkpoints_dir == tmp_path / "checkpoints"
    assert settings.valkey_dir == tmp_path / "valkey"


def test_a_relative_data_directory_is_made_absolute(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Settings(data_dir=Path("here")).data_dir == tmp_path / "here"
    assert Settings(data_dir=Path("~/x")).data_dir == Path.home() / "x"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LOG_LEVEL", "loud"),
        ("THREADS", "0"),
        ("THREADS", "x"),
        ("STATE_BUDGET", "0"),
        ("STATE_BUDGET", "4 boxes"),
        ("NUM_ACTORS", "-1"),
        ("CANCEL_S", "-1"),
    ],
)
def test_nonsense_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"SLEB_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        WorkerSettings()


@pytest.mark.parametrize(
    ("text", "num_bytes"), [("4GiB", 4 * 2**30), ("1.5 MB", 1_500_000), ("4096", 4096), ("", None)]
)
def test_a_budget_is_bytes_or_a_human_size(
    monkeypatch: pytest.MonkeyPatch, text: str, num_bytes: int | None
) -> None:
    monkeypatch.setenv("SLEB_STATE_BUDGET", text)
    assert WorkerSettings().state_budget == num_bytes


@pytest.mark.parametrize(
    "url", ["http://:secret@host", "redis:://secret", "redis://:secret@host:x", "unix://", "host"]
)
def test_a_url_of_no_store_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ValidationError, match="expected redis://HOST:PORT") as refused:
        Settings(redis_url=url)
    assert "secret" not in str(refused.value)


def test_settings_do_not_change_and_do_not_show_the_password(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, redis_url="redis://:hunter2@host")
    assert "hunter2" not in repr(settings)
    with pytest.raises(ValidationError, match="frozen"):
        settings.threads = 2


def test_a_child_comes_to_the_same_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = WorkerSettings(data_dir=tmp_path, threads=3, log_level="error", num_actors=2)
    settings = settings.model_copy(update={"state_budget": ByteSize(2**31)})
    for name, value in child_environment(settings, "unix:///x").items():
        monkeypatch.setenv(name, value)
    assert WorkerSettings() == settings.model_copy(update={"redis_url": "unix:///x"})
