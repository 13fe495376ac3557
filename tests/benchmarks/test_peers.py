"""The comparison with other servers, with a program on the ``PATH`` that stands for them."""

from pathlib import Path

import pytest

from app.engine.variant import make_variant
from benchmarks.peers import peers
from benchmarks.plan import Baseline, ServePlan, ServeSubject
from pruning.models.store import LoadedModel
from tests.support.peers import write_stand_in

PLAN = ServePlan(
    against=(Baseline.VLLM, Baseline.LLAMA_CPP),
    concurrency=(1, 3),
    prompt_len=8,
    output_len=5,
    repeats=2,
)
# It takes the arguments of ``vllm serve``, and is this service.


@pytest.fixture
def subject(tiny_loaded: LoadedModel) -> ServeSubject:
    dense = make_variant("tiny", "tiny", tiny_loaded.model)
    return ServeSubject(tiny_loaded.path, dense, tiny_loaded.tokenizer, "float32", 1)


def test_a_peer_that_is_not_installed_is_left_out_with_a_message(
    subject: ServeSubject,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = peers(subject, PLAN)
    assert found.ratios == {}
    assert found.details["left_out"].keys() == {"vllm", "llama.cpp"}
    printed = " ".join(capsys.readouterr().err.split())
    assert "llama.cpp is left out: there is no llama-server on the PATH." in printed


@pytest.mark.slow
def test_a_peer_on_the_path_gets_the_same_requests_in_turns(
    subject: ServeSubject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_stand_in(tmp_path / "vllm", tmp_path / "data")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLEB_THREADS", "1")
    found = peers(subject, PLAN)
    assert found.details["left_out"].keys() == {"llama.cpp"}
    assert list(found.details["closed_loop"]) == ["1", "3"]
    for number, sides in found.details["closed_loop"].items():
        assert list(sides) == ["sleb serve", "vllm"]
        assert {side["tokens"] for side in sides.values()} == {max(int(number), 4) * 5}
    rows = found.details["against"]["vllm"]
    assert [row["clients"] for row in rows] == [1, 3]
    assert all(row["from"] <= row["tokens_per_s"] <= row["to"] for row in rows)
    assert found.ratios == {"http_vs_vllm": min(row["tokens_per_s"] for row in rows)}
    assert "| 3 | " in found.markdown
