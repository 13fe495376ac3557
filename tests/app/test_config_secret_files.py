"""Settings from files: where there is no variable, and never instead of one."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from app.config import ServeSettings
from app.settings import UnknownSetting, check_variables, effective_settings
from pruning.config import UnreadableSecrets, WorkerSettings, child_environment
from tests.support.command_line import sleb_process
from tests.support.webhook_receiver import SECRET

URL = "redis://sleb:hunter2@host:6379"


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    found = tmp_path / "secrets"
    found.mkdir()
    monkeypatch.setenv("SLEB_SECRETS_DIR", str(found))
    return found


def test_every_process_reads_them(folder: Path) -> None:
    (folder / "sleb_redis_url").write_text(f"{URL}\n")
    (folder / "SLEB_WEBHOOK_SECRET").write_text(SECRET)
    assert WorkerSettings().redis_url == ServeSettings().redis_url == URL
    assert ServeSettings().webhook_secret == SECRET


def test_files_that_links_lead_to_are_read_as_kubernetes_mounts_them(folder: Path) -> None:
    (folder / "..2026").mkdir()
    (folder / "..2026" / "SLEB_REDIS_URL").write_text(URL)
    (folder / "..data").symlink_to("..2026")
    (folder / "SLEB_REDIS_URL").symlink_to("..data/SLEB_REDIS_URL")
    assert WorkerSettings().redis_url == URL
    check_variables()


def test_a_variable_goes_before_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "sleb_redis_url").write_text(URL)
    monkeypatch.setenv("SLEB_REDIS_URL", "redis://other")
    assert WorkerSettings().redis_url == "redis://other"
    assert {each.source for each in effective_settings() if each.variable == "SLEB_REDIS_URL"} == {
        "environment"
    }
    monkeypatch.setenv("SLEB_REDIS_URL", "")
    assert WorkerSettings().redis_url == URL


def test_a_child_comes_to_the_same_settings_without_the_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = folder / "sleb_redis_url"
    secret.write_text(URL)
    parent = WorkerSettings()
    for name, value in child_environment(parent).items():
        monkeypatch.setenv(name, value)
    secret.unlink()
    assert WorkerSettings() == parent


def test_what_is_in_effect_names_the_file_and_masks_it(folder: Path) -> None:
    (folder / "sleb_redis_url").write_text(URL)
    (folder / "otel_exporter_otlp_endpoint").write_text("http://host:4318")
    found = {each.variable: each for each in effective_settings()}
    assert (found["SLEB_REDIS_URL"].value, found["SLEB_REDIS_URL"].source) == (
        "redis://***@host:6379",
        "file",
    )
    assert found["SLEB_OTLP_ENDPOINT"].source == "file, OTEL_EXPORTER_OTLP_ENDPOINT"
    assert found["SLEB_SECRETS_DIR"].source == "environment"
    assert found["SLEB_PORT"].source == "default"


def test_nonsense_in_a_file_is_refused_and_not_shown(folder: Path) -> None:
    (folder / "sleb_redis_url").write_text("http://:hunter2@host")
    with pytest.raises(ValidationError, match="expected redis://HOST:PORT") as refused:
        WorkerSettings()
    assert "hunter2" not in str(refused.value)


def test_a_misspelt_file_is_refused_and_others_are_left_alone(folder: Path) -> None:
    (folder / "tls.crt").write_text("")
    check_variables()
    (folder / "sleb_redis_ulr").write_text(URL)
    with pytest.raises(UnknownSetting, match="SLEB_REDIS_ULR: did you mean SLEB_REDIS_URL"):
        check_variables()


@pytest.mark.parametrize("kind", ["missing", "a file"])
def test_a_folder_that_is_none_is_a_message_and_a_code(tmp_path: Path, kind: str) -> None:
    named = tmp_path / "there"
    if kind == "a file":
        named.write_text("")
    ran = sleb_process(tmp_path, "config", variables={"SLEB_SECRETS_DIR": str(named)})
    assert (ran.returncode, ran.stdout) == (2, "")
    assert f"error: cannot read SLEB_SECRETS_DIR={named}" in " ".join(ran.stderr.split())
    assert "Traceback" not in ran.stderr


def test_a_file_without_permission_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = folder / "sleb_redis_url"
    secret.write_text(URL)
    monkeypatch.setattr("os.access", lambda path, _: Path(path) != secret)  # root reads all
    with pytest.raises(UnreadableSecrets, match=r"cannot read .*sleb_redis_url"):
        WorkerSettings()
