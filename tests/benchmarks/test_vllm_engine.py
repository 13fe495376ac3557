"""What the benchmarks of vLLM as the engine say of what they have measured."""

from benchmarks import vllm_engine, vllm_equal
from benchmarks.vllm_equal import Equality


def test_equal_answers_are_counted_by_their_tokens() -> None:
    ours = [[(1, -0.5), (2, -0.25)], [(3, -1.0), (4, -1.0)]]
    theirs = [[(1, -0.5), (2, -0.375)], [(3, -1.0), (5, -3.0)]]
    assert Equality.of(ours, theirs) == Equality(num_equal=1, gap=0.125)
    assert Equality.of(ours, ours) == Equality(num_equal=2, gap=0.0)
    assert Equality.of([[(1, 0.0)]], [[(1, 0.0), (2, 0.0)]]).num_equal == 0


def test_the_table_of_equality_has_every_kind() -> None:
    kinds = {"dense": {"name": "m", "num_equal": 20, "gap": 0.00001}}
    table = vllm_equal.markdown({"kinds": kinds, "command": "python -m x"})
    assert "| dense (`m`) | 20 of 20 | 0.000010 |" in table
    assert len(vllm_equal.PROMPTS) == 20


def test_the_report_has_the_parts_that_were_measured() -> None:
    row = {"clients": 16, "tokens_per_s": 1.0, "from": 0.9, "to": 1.1, "ttft": 1.05}
    of_api = {"command": "python -m x", "through_api": {"over_vllm": [row]}}
    assert "| 16 | 1.000× | 0.900 to 1.100 | 1.050× |" in vllm_engine.markdown(of_api)
    speedup = {"sleb bench": {"ratio": 1.25, "low": 1.2, "high": 1.3}}
    of_bench = {"command": "python -m x", "variant": "m@-6"}
    text = vllm_engine.markdown(of_bench | {"bench": {"speedup": speedup, "difference": -0.01}})
    assert "of m@-6\n\n- sleb bench: 1.2500× (1.200 to 1.300)\n- difference: -1.00%\n" in text
    assert "clients" not in text
