"""Images are built once for all tests that run them."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from pydantic_settings import BaseSettings, SettingsConfigDict

from tests.image.building import Buildah, Image, built, check_tools


class ImageTestSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="SLEB_TEST_", env_ignore_empty=True)

    image_dir: Path | None = None  # keeps built images, so that the base is reused


@pytest.fixture(scope="session")
def buildah() -> Iterator[Buildah]:
    check_tools()
    with TemporaryDirectory(prefix="sleb-image-", dir="/var/tmp") as scratch:
        buildah = Buildah(ImageTestSettings().image_dir or Path(scratch))
        try:
            yield buildah
        finally:
            buildah.clean()


@pytest.fixture(scope="session")
def image(buildah: Buildah) -> Image:
    return built(buildah, {"VERSION": "1.2.3", "REVISION": "abcdef"})
