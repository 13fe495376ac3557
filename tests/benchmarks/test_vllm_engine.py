"""What the benchmark of vLLM as the engine says of what it has measured."""

from benchmarks.vllm_engine import markdown


def test_the_report_has_the_parts_that_were_measured() -> None:
    row = {"clients": 16, "tokens_per_s": 1.0, "from": 0.9, "to": 1.1, "ttft": 1.05}
    of_api = {"command": "python -m x", "through_api": {"over_vllm": [row]}}
    assert "| 16 | 1.000× | 0.900 to 1.100 | 1.050× |" in markdown(of_api)
    speedup = {"sleb bench": {"ratio": 1.25, "low": 1.2, "high": 1.3}}
    of_bench = {"command": "python -m x", "variant": "m@-6"}
    text = markdown(of_bench | {"bench": {"speedup": speedup, "difference": -0.01}})
    assert "of m@-6\n\n- sleb bench: 1.2500× (1.200 to 1.300)\n- difference: -1.00%\n" in text
    assert "clients" not in text
