"""How long each soak test runs, and how much memory a process may gain meanwhile."""

from statistics import median

from pydantic import PositiveFloat
from pydantic_settings import BaseSettings, SettingsConfigDict

MIB = 2**20
MAX_GROWTH_BYTES = 32 * MIB  # of a process after its warm-up, whatever the duration


class SoakSettings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="SLEB_TEST_SOAK_", env_ignore_empty=True, frozen=True
    )

    minutes: PositiveFloat = 2.0


DURATION_S = SoakSettings().minutes * 60


def growth(rss_bytes: list[int]) -> tuple[float, float]:
    """Median bytes of the third eighth of the samples, and of the last eighth."""
    eighth = max(1, len(rss_bytes) // 8)
    return median(rss_bytes[2 * eighth : 3 * eighth]), median(rss_bytes[-eighth:])
