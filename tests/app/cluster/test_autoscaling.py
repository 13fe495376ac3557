"""The number of replicas as a function of the waiting tokens."""

import threading
from types import SimpleNamespace

import pytest

from app.cluster.autoscaling import QueuedTokensPolicy
from tests.support.clusters import LONG, Many, service_on
from tests.support.waiting import wait_until


def wanted(busy: dict[str, float], queued_tokens: dict[str, float]) -> float:
    load = SimpleNamespace(
        target_num_replicas=2, aggregated_metrics={"busy": busy, "queued_tokens": queued_tokens}
    )
    return QueuedTokensPolicy(1000)(load)[0]


def test_what_runs_keeps_its_replicas_and_what_waits_calls_for_more() -> None:
    assert wanted({"a": 1.0, "b": 1.0}, {"a": 0, "b": 0}) == 2
    assert wanted({"a": 1.0, "b": 1.0}, {"a": 500, "b": 1500}) == 4
    assert wanted({"a": 0.25, "b": 0.5}, {"a": 0, "b": 0}) == 0.75
    assert wanted({"a": 0.0}, {}) == 0


def test_nothing_changes_before_anybody_has_told_anything() -> None:
    load = SimpleNamespace(target_num_replicas=2, aggregated_metrics=None)
    assert QueuedTokensPolicy(1000)(load) == (2, {})


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_waiting_tokens_start_a_replica_and_silence_stops_it(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    fields = {"replicas": 1, "max_replicas": 2, "max_num_seqs": 1, "tokens_per_replica": 2 * LONG}
    times = {"scale_up_s": 1.0, "scale_down_s": 1.0}
    with service_on(tmp_path_factory.mktemp("scaling"), 1, **fields, **times) as service:
        is_over = threading.Event()

        def ask_on() -> None:
            while not is_over.is_set():
                assert service.generate("the dog", LONG).is_success

        assert len(service.pids) == 1
        many = Many([ask_on] * 6)
        try:
            wait_until(lambda: len(service.pids) == 2, "a second replica has come", 150)
        finally:
            is_over.set()
            results = many.results()
        assert results == [None] * 6
        wait_until(lambda: len(service.pids) == 1, "one has gone again", 150)
        assert service.generate("the dog", 3).is_success
