"""Find the least pruned depth of a model whose tokens keep a promise on latency.

python examples/choose_depth.py smollm2-135m --tpot-ms 12
"""

import argparse
import os
from typing import Any

import httpx2

PROMPT = "Once upon a time, in a small village by the sea,"


def depths_of(client: httpx2.Client, model: str) -> list[dict[str, Any]]:
    """The dense model and its newest depths ``@-k``, the least pruned first."""
    models = client.get("/models").raise_for_status().json()["data"]
    found = [each for each in models if each["id"] == model or each["id"].startswith(f"{model}@-")]
    return sorted(found, key=lambda each: len(each["removed_blocks"]))


def slowest_tpot_s(client: httpx2.Client, model: str, depth: str) -> float:
    """The slowest of a few outputs, in seconds per token, in turn with the dense model."""
    body = {
        "models": [model, depth],
        "prompt": PROMPT,
        "max_new_tokens": 32,
        "ignore_eos": True,
        "repeats": 5,
    }
    compared = client.post("/compare", json=body).raise_for_status().json()
    [prompt] = compared["prompts"]
    return max(times["tpot_s"] for times in prompt["outputs"][1]["timings"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Choose a depth for a promise on latency.")
    parser.add_argument("model")
    parser.add_argument("--tpot-ms", type=float, required=True, help="milliseconds per token")
    parser.add_argument("--url", default="http://localhost:8000")
    given = parser.parse_args()
    key = os.environ.get("SLEB_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx2.Client(base_url=given.url, headers=headers, timeout=600) as client:
        for depth in depths_of(client, given.model):
            tpot_ms = slowest_tpot_s(client, given.model, depth["id"]) * 1e3
            keeps = tpot_ms <= given.tpot_ms
            print(
                f"{depth['id']}: {tpot_ms:.1f} ms per token, {'keeps it' if keeps else 'too slow'}"
            )
            if keeps:
                costs = [f"{each['domain']} {each['ratio']:.2f} ×" for each in depth["domains"]]
                print(
                    f"take {depth['id']}; perplexity, × dense: {', '.join(costs) or 'not measured'}"
                )
                return
    raise SystemExit("no depth keeps the promise: prune further, or promise less")


if __name__ == "__main__":
    main()
