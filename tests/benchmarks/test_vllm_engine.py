"""The benchmark of vLLM as the engine: which servers it loads, and what it says of them."""

from pathlib import Path

import pytest

from benchmarks.vllm_engine import Sizes, Subject, markdown, through_api
from tests.support.vllm_program import write_program


@pytest.mark.slow
def test_both_sides_load_the_same_server(
    tiny_models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (notes := tmp_path / "notes").mkdir()
    monkeypatch.setenv("SLEB_DATA_DIR", str(tiny_models_dir.parent))
    monkeypatch.setenv("SLEB_VLLM_ARGS", f"--test-notes {notes} --test-token-s 0.01")
    sizes = Sizes((1, 2), 4, 3, repeats=2)
    subject = Subject(write_program(tmp_path / "program"), "tiny", "float32", sizes)
    found = through_api(subject)
    assert [row["clients"] for row in found["over_vllm"]] == [1, 2]
    for sides in found["sides"].values():
        assert [side["requests"] for side in sides.values()] == [8, 8]
    assert len(list(notes.iterdir())) == 1, "one server was started"


def test_the_report_has_a_row_for_each_number_of_clients() -> None:
    row = {"clients": 16, "tokens_per_s": 1.0, "from": 0.9, "to": 1.1, "ttft": 1.05}
    report = {"command": "python -m x", "through_api": {"over_vllm": [row]}}
    assert "| 16 | 1.000× | 0.900 to 1.100 | 1.050× |" in markdown(report)
