"""The secret of webhooks: checked at the start, never shown, handed to children whole."""

from base64 import b64encode
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.config import ServeSettings
from pruning.config import child_environment
from tests.support.webhook_receiver import SECRET


def secret(num_bytes: int) -> str:
    return "whsec_" + b64encode(bytes(num_bytes)).decode()


@pytest.mark.parametrize("given", [SECRET, secret(24), secret(64)])
def test_a_secret_is_taken_and_not_shown(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("SLEB_WEBHOOK_SECRET", given)
    settings = ServeSettings()
    assert settings.webhook_secret == given
    assert given.removeprefix("whsec_") not in repr(settings) + str(settings)


@pytest.mark.parametrize(
    "given",
    [
        secret(23),
        secret(65),
        SECRET.removeprefix("whsec_"),
        SECRET.replace("whsec_", "whpk_"),
        SECRET.rstrip("="),
        f"{SECRET[:-5]}\n{SECRET[-5:]}",
        "whsec_",
        "whsec_äöüäöüäöüäöüäöüäöüäöüäöü",
        "whsec_" + "!" * 40,
    ],
)
def test_a_bad_secret_is_refused_at_the_start_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv("SLEB_WEBHOOK_SECRET", given)
    with pytest.raises(ValidationError, match="openssl rand") as refused:
        ServeSettings()
    assert "webhook_secret" in str(refused.value)
    assert given == "whsec_" or given.removeprefix("whsec_") not in str(refused.value)


def test_a_child_has_the_secret_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = ServeSettings(data_dir=tmp_path, webhook_secret=SECRET, webhook_allow_private=True)
    for name, value in child_environment(settings).items():
        monkeypatch.setenv(name, value)
    assert ServeSettings() == settings
    assert not ServeSettings(webhook_allow_private=False).webhook_allow_private
