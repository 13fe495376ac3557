"""Commands that come with packages of Debian."""

import shutil

import pytest
from pydantic_settings import BaseSettings, SettingsConfigDict


class Machine(BaseSettings):
    """Whether this is CI, where nothing may be left out."""

    model_config = SettingsConfigDict(env_ignore_empty=True)

    ci: bool = False


def tool(name: str, package: str = "prometheus") -> str:
    """The path of a command of a Debian package; fails in CI without it, elsewhere skips."""
    found = shutil.which(name)
    if found is None:
        give_up = pytest.fail if Machine().ci else pytest.skip
        give_up(
            f"{name} is not installed; it comes with Debian's package: apt-get install {package}"
        )
    assert found is not None
    return found
