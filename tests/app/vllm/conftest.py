"""The time limit of tests that kill something again and again."""

import pytest

START_S, KILL_S = 1500, 700  # on a machine that does other things


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    limit_s = START_S + KILL_S * int(config.getoption("--kills"))
    for item in items:
        if "num_kills" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(limit_s))
