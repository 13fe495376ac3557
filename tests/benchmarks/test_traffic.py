"""Traffic like that of users: what clients send, what is counted, and turns of two servers."""

from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest

from app.config import ServeSettings
from app.engine.cache.pages import PAGE_TOKENS
from app.engine.variant import make_variant
from benchmarks.latencies import RequestTiming
from benchmarks.load import Answer, clients_at_once
from benchmarks.plan import Baseline, Part, ServePlan, ServeSubject, TrafficSizes
from benchmarks.servers import Server
from benchmarks.traffic import _CLIENTS, Traffic, _figures, _rows, traffic
from benchmarks.workload import Prompts, SampleRequest
from pruning.models.store import LoadedModel
from tests.support.peers import FORCED, write_stand_in
from tests.support.serving import serving

SIZES = TrafficSizes(
    output_len=3,
    prefix_clients=3,
    shared_len=4 * PAGE_TOKENS,
    own_len=4,
    chat_clients=2,
    num_turns=3,
    turn_len=7,
    short_clients=2,
    short_len=5,
    long_len=40,
)


@pytest.fixture
def server(tmp_path: Path, tiny_models_dir: Path, redis_url: str) -> Iterator[Server]:
    assert tiny_models_dir.parent == tmp_path
    with serving(ServeSettings(data_dir=tmp_path, drain_s=0), redis_url) as (_, url):
        yield Server(url, "tiny", extra=FORCED)


@pytest.fixture
def subject(tiny_loaded: LoadedModel) -> ServeSubject:
    dense = make_variant("tiny", "tiny", tiny_loaded.model)
    return ServeSubject(tiny_loaded.path, dense, tiny_loaded.tokenizer, "float32", 1)


def sent(part: Part, subject: ServeSubject, text: str = " a") -> list[list[SampleRequest]]:
    """All requests of each client, which is answered with this text."""
    prompts, found = Prompts(subject.tokenizer, seed=0), Traffic()
    answer = Answer(RequestTiming(0.0, (1.0,), 3), text, 0)
    requests: list[list[SampleRequest]] = []
    for client in _CLIENTS[part](prompts, subject, SIZES)(found):
        own = [next(client)]
        with suppress(StopIteration):
            while True:
                own.append(client.send(answer))
        requests.append(own)
    return requests


def test_prompts_that_begin_alike(subject: ServeSubject) -> None:
    requests = [each for own in sent(Part.PREFIX, subject) for each in own]
    assert len({each.prompt_ids for each in requests}) == len(requests) == 6
    assert len({each.prompt_ids[: SIZES.shared_len] for each in requests}) == 1
    assert {len(each.prompt_ids) for each in requests} == {SIZES.shared_len + 4}


def test_a_conversation_has_all_that_was_said(subject: ServeSubject) -> None:
    text = " a b"
    answer = tuple(subject.tokenizer(text, add_special_tokens=False).input_ids)
    conversations = sent(Part.CHAT, subject, text)
    assert len(conversations) == 2
    for turns in conversations:
        assert [len(each.prompt_ids) for each in turns] == [
            number * 7 + (number - 1) * len(answer) for number in (1, 2, 3)
        ]
        for before, after in pairwise(turns):
            said = before.prompt_ids + answer
            assert after.prompt_ids[: len(said)] == said
            assert after.text.startswith(before.text + text)


def test_a_long_prompt_beside_short_ones(subject: ServeSubject) -> None:
    (long,), *short = sent(Part.LONG, subject)
    assert len(long.prompt_ids) == 40
    assert [[len(each.prompt_ids) for each in own] for own in short] == [[5, 5], [5, 5]]


def test_hits_are_those_that_the_service_tells(server: Server, subject: ServeSubject) -> None:
    found = Traffic()
    make = _CLIENTS[Part.PREFIX](Prompts(subject.tokenizer, seed=0), subject, SIZES)
    found.seconds = clients_at_once(server, make(found))
    assert found.num_requests == len(found.ttfts_s) == 6
    assert found.num_known == 5 * SIZES.shared_len
    assert found.hits == 1
    assert 0 < max(found.ttfts_s) <= found.seconds


def test_figures_are_medians_of_turns_and_ratios_those_of_pairs() -> None:
    ours = [Traffic(2.0, 4, [1.0, 3.0, 2.0]), Traffic(1.0, 4, [1.0]), Traffic(4.0, 4, [8.0])]
    theirs = [Traffic(4.0, 4, [4.0]), Traffic(4.0, 4, [2.0]), Traffic(4.0, 4, [8.0])]
    figures = _figures(ours)
    assert (figures["requests_per_s"], figures["ttft_s"], figures["worst_ttft_s"]) == (2, 2, 3)
    assert (figures["hits"], figures["long_ttft_s"]) == (None, None)
    rate, first, worst = _rows({"sleb serve": ours, "vllm": theirs})
    assert (rate["ratio"], rate["from"], rate["to"]) == (2, 1, 4)
    assert (first["ratio"], worst["ratio"]) == (0.5, 0.75)


@pytest.mark.slow
def test_both_sides_get_the_same_requests_in_turns(
    subject: ServeSubject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_stand_in(tmp_path / "vllm", tmp_path / "data")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLEB_THREADS", "1")
    plan = ServePlan(against=(Baseline.VLLM,), traffic=SIZES, repeats=2)
    found = traffic(Part.PREFIX, subject, plan)
    assert list(found.details["sides"]) == ["sleb serve", "vllm"]
    for side in found.details["sides"].values():
        assert [turn["requests"] for turn in side["turns"]] == [6, 6]
        assert side["hits"] == 1
    assert found.ratios.keys() == {
        "prefix_vs_vllm", "prefix_ttft_vs_vllm", "prefix_worst_ttft_vs_vllm", "prefix_hits",
    }  # fmt: skip
    assert "| vllm | " in found.markdown
