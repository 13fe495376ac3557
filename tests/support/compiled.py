"""Compiled blocks in tests: what was compiled is kept for all of them, as it takes seconds."""

import pytest

from app.engine.compiled.openmp import keep_compiled_in
from app.engine.tuning import Tuner


@pytest.fixture(autouse=True, scope="session")
def _compiled_code_is_kept(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """For all tests of this process, and for later ones where pytest has a cache."""
    if pytestconfig.pluginmanager.hasplugin("cacheprovider"):
        keep_compiled_in(pytestconfig.cache.mkdir("compiled"))
    else:
        keep_compiled_in(tmp_path_factory.mktemp("compiled"))


def always(way: str) -> Tuner:
    """A tuner that takes this way through the blocks wherever it is one of several."""
    return Tuner(always=frozenset({way}))
