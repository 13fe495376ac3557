"""What all tests share: fixtures by subject, one thread for models too small for two, no timing of
kernels, and no fresh process for each checkpoint.
"""

import gc
import hashlib
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

os.environ["OMP_NUM_THREADS"] = "1"  # before torch reads it, and for every thread and process

import pytest
from httpx2._config import DEFAULT_TIMEOUT_CONFIG
from hypothesis import settings

from pruning.checkpoints.store import Manifest
from pruning.checkpoints.trajectory_plot import plot
from pruning.plural import counted
from tests.support.families import EVERYWHERE, is_slow
from tests.support.quick import LIMITS
from tests.support.waiting import LIMIT_S

# jsonschema would make 38 parsers with it, in 2 s of every process, for formats that no test has
sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]

_FEW_MUTATIONS = 60  # of each kind of record in `make test`
_FEW_AHEAD_BYTES = 2**21
_QUICK_EXAMPLES = 40  # of a property that does not say how many it needs

# Each of these takes a minute or so: begun last, they would keep one worker of xdist waiting.
LONG = ("tests/app/cluster/", "tests/e2e/", "tests/pruning/search/test_ray", "tests/app/cli/")

FIXTURES = (
    "tests.support.api_fixtures",
    "tests.support.compiled",
    "tests.support.gcs_server",
    "tests.support.healing",
    "tests.support.hub_repository",
    "tests.support.model_fixtures",
    "tests.support.object_stores",
    "tests.support.process_fixtures",
    "tests.support.redis_fixtures",
    "tests.support.s3_server",
    "tests.support.simcuda.fixtures",
    "tests.support.worker_fixtures",
)
pytest.register_assert_rewrite(*FIXTURES)  # before a conftest of a folder imports one of them


def pytest_configure(config: pytest.Config) -> None:
    """Properties are tried with fewer examples in `make test`, and with others in every run.

    No example has a deadline: a machine with other work is slow at times.

    The process that only hands out tests to others needs no fixtures, which import torch. Until
    the tests begin, garbage would be looked for 11 times among all that is imported and collected.
    """
    gc.disable()
    if config.getoption("dist", "no") == "no":
        for name in FIXTURES:
            config.pluginmanager.import_plugin(name)
    settings.register_profile("slow", deadline=None)
    settings.register_profile("quick", deadline=None, max_examples=_QUICK_EXAMPLES)
    settings.load_profile("quick" if config.option.markexpr == "not slow" else "slow")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--mutations", type=int, default=10_000, help="changed records of each kind in slow tests"
    )
    parser.addoption(
        "--kills", type=int, default=2, help="how often slow tests kill vLLM, and the service"
    )
    parser.addoption("--share", default="1/1", help="K/N: the K-th of N shares of the slow tests")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests of changed records take ``num_mutations``: a few of them, and many as a slow test."""
    if "num_mutations" in metafunc.fixturenames:
        many = metafunc.config.getoption("mutations")
        marks = (pytest.mark.slow, pytest.mark.timeout(7_200))
        numbers = [_FEW_MUTATIONS, pytest.param(many, marks=marks)]
        metafunc.parametrize("num_mutations", numbers, ids=["few", "many"])


@pytest.hookimpl(tryfirst=True)  # before slow tests are deselected
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    _mark_slow_families(items)
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))
    which, num_shares = map(int, config.getoption("share").split("/"))
    others = [item for item in items if _is_of_others(item, which, num_shares)]
    if others:
        items[:] = [item for item in items if not _is_of_others(item, which, num_shares)]
        config.hook.pytest_deselected(items=others)


def _mark_slow_families(items: Sequence[pytest.Item]) -> None:
    by_function: dict[str, list[tuple[pytest.Item, str]]] = defaultdict(list)
    for item in items:
        family = getattr(getattr(item, "callspec", None), "params", {}).get("family")
        if isinstance(family, str):
            by_function[item.nodeid.partition("[")[0]].append((item, family))
    for cases in by_function.values():
        is_of_all = len({family for _, family in cases}) > len(EVERYWHERE)
        for item, family in cases:
            is_contract = item.get_closest_marker("contract") is not None
            if is_slow(family, is_contract=is_contract, is_of_all=is_of_all):
                item.add_marker(pytest.mark.slow)


def _is_of_others(item: pytest.Item, which: int, num_shares: int) -> bool:
    is_slow = item.get_closest_marker("slow") is not None
    return is_slow and _share(item.nodeid, num_shares) != which


def _share(nodeid: str, num_shares: int) -> int:
    """From 1: the share that a slow test belongs to, which other tests do not change."""
    return int(hashlib.sha256(nodeid.encode()).hexdigest(), 16) % num_shares + 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in the last lines what was skipped, in one line for each reason."""
    reports = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in reports)
    for reason, number in reasons.items():
        terminalreporter.write_line(f"SKIPPED {counted(number, 'test')}: {reason}")


@pytest.fixture(autouse=True, scope="session")
def _imports_are_no_garbage() -> Iterator[None]:
    """A pruning run collects garbage: without this, 0.2 s each time over what was imported. Tests
    make many objects, among which a collection for each 700 takes up to a tenth of their time."""
    gc.freeze()
    gc.set_threshold(5_000)
    gc.enable()
    yield
    gc.unfreeze()  # else triton's bindings list their types as leaks when the process ends


@pytest.fixture(autouse=True, scope="session")
def _quick_by_default() -> Iterator[None]:
    """Timing kernels takes longer than most tests compute, and so does a process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLEB_VERIFY", "inline")
        patch.setenv("SLEB_TUNE", "off")
        patch.setenv("SLEB_SANDBOX", "off")
        for name, limit in LIMITS.items():
            patch.setattr(name, limit)
        # memory of pages that an idle engine takes, of which a test needs next to none
        patch.setattr("app.engine.cache.paged_cache._AHEAD_BYTES", _FEW_AHEAD_BYTES)
        yield


@pytest.fixture(autouse=True, scope="session")
def _clients_wait() -> Iterator[None]:
    """As long as other waits of tests, where they name no limit: by default it is 5 s."""
    with pytest.MonkeyPatch.context() as patch:
        for part in ("connect", "read", "write", "pool"):
            patch.setattr(DEFAULT_TIMEOUT_CONFIG, part, LIMIT_S)
        yield


@pytest.fixture(autouse=True, scope="session")
def _one_picture() -> Iterator[None]:
    """The first run in this process draws its picture and others take that one: drawing is a third
    of a run on a tiny model. The tests of the picture draw their own."""
    drawn: list[bytes] = []

    def first(manifest: Manifest) -> bytes:
        drawn[:] = drawn or [plot(manifest)]
        return drawn[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pruning.checkpoints.trajectory_plot.plot", first)
        yield
