"""Prune a model for a text of your own, heal it on that text, and say what each step cost or gave.

The text must be in the folder of texts, as `~/.local/share/sleb-serve/texts/notes.txt`:

python examples/heal_for_your_text.py smollm2-135m notes.txt --num-remove 6
"""

import argparse
import os
import time
from typing import Any

import httpx2


def finished(client: httpx2.Client, body: dict[str, Any]) -> dict[str, Any]:
    """The job after its end."""
    job: dict[str, Any] = client.post("/prune-jobs", json=body).raise_for_status().json()
    while job["status"] not in ("succeeded", "failed", "cancelled"):
        time.sleep(1)
        job = client.get(job["urls"]["self"]).raise_for_status().json()
    if job["status"] != "succeeded":
        raise SystemExit(f"the job has {job['status']}: {job['error']}")
    return job


def main() -> None:
    parser = argparse.ArgumentParser(description="Heal a pruned model for a text of your own.")
    parser.add_argument("model")
    parser.add_argument("text", help="a file in the folder of texts")
    parser.add_argument("--num-remove", type=int, default=6)
    parser.add_argument("--num-tokens", type=int, default=200_000, help="to train on")
    parser.add_argument("--seqlen", type=int, default=128, help="tokens of a window")
    parser.add_argument("--url", default="http://localhost:8000")
    given = parser.parse_args()
    key = os.environ.get("SLEB_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    body = {
        "model": given.model,
        "num_remove": given.num_remove,
        "calibration": {"dataset": "file", "path": given.text, "seqlen": given.seqlen},
        "heal": {"num_tokens": given.num_tokens},
    }
    with httpx2.Client(base_url=given.url, headers=headers, timeout=60) as client:
        job = finished(client, body)
    print(f"healed model: {job['pruned_model']}; perplexity, as a multiple of the dense model's:")
    for each in job["domains"]:
        steps = (("pruned", "raw"), ("repaired", "repaired"), ("control", "control"))
        before = [
            f"{words} {each[f'{kind}_ratio']:.2f}"
            for words, kind in steps
            if each.get(f"{kind}_ratio") is not None
        ]
        print(f"  {each['domain']}: healed {each['ratio']:.2f} ({', '.join(before)})")


if __name__ == "__main__":
    main()
