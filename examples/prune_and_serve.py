"""Prune a model, and generate with it through the OpenAI client.

python examples/prune_and_serve.py smollm2-135m --num-remove 3
"""

import argparse
import os
import time
from typing import Any

import httpx2
from openai import OpenAI

KEY = os.environ.get("SLEB_API_KEY", "none")


def prune(client: httpx2.Client, model: str, num_remove: int) -> dict[str, Any]:
    """Submit a job, wait for its end, and return it."""
    calibration = {"num_samples": 8, "seqlen": 64}  # little text: quick, and less sure
    body = {
        "model": model,
        "num_remove": num_remove,
        "calibration": calibration,
        "evaluation": {"margin": 0.05, "max_seconds": 30},
    }
    job: dict[str, Any] = client.post("/prune-jobs", json=body).raise_for_status().json()
    while job["status"] not in ("succeeded", "failed", "cancelled"):
        time.sleep(1)
        job = client.get(job["urls"]["self"]).raise_for_status().json()
        print(f"{job['status']} {job['phase'] or ''} {job['progress']['ratio']:.0%}", flush=True)
    if job["status"] != "succeeded":
        raise SystemExit(f"the job has {job['status']}: {job['error']}")
    return job


def main() -> None:
    parser = argparse.ArgumentParser(description="Prune a model and generate with it.")
    parser.add_argument("model")
    parser.add_argument("--num-remove", type=int, default=3)
    parser.add_argument("--prompt", default="The sea is")
    parser.add_argument("--url", default="http://localhost:8000")
    given = parser.parse_args()
    headers = {"Authorization": f"Bearer {KEY}"} if KEY != "none" else {}
    with httpx2.Client(base_url=given.url, headers=headers, timeout=60) as client:
        job = prune(client, given.model, given.num_remove)
    print(f"removed blocks {job['removed_blocks']}; the pruned model is {job['pruned_model']}")
    openai = OpenAI(base_url=f"{given.url}/v1", api_key=KEY)
    for name in (given.model, job["pruned_model"]):
        answer = openai.completions.create(
            model=name, prompt=given.prompt, max_tokens=24, temperature=0
        )
        print(f"{name}: {given.prompt}{answer.choices[0].text}")


if __name__ == "__main__":
    main()
