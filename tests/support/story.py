"""A user of the service over HTTP: a job, and a generation by both models."""

from typing import Any

import httpx2

from tests.support.waiting import wait_until

_REQUEST = {"model": "tiny", "num_remove": 2, "calibration": {"num_samples": 2, "seqlen": 16}}


def prune_and_generate(client: httpx2.Client) -> None:
    accepted = client.post("/prune-jobs", json=_REQUEST)
    assert accepted.status_code == 202, accepted.text
    path = f"/prune-jobs/{accepted.json()['id']}"
    job = wait_until(lambda: _ended(client, path), "the job has ended", 300)
    assert job["status"] == "succeeded", job
    for model in ("tiny", job["pruned_model"]):
        body = {"model": model, "prompt": "the quick", "max_new_tokens": 4, "ignore_eos": True}
        answer = client.post("/generate", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["outputs"][0]["completion_tokens"] == 4


def _ended(client: httpx2.Client, path: str) -> dict[str, Any]:
    """The job if it has ended, else an empty dictionary."""
    job: dict[str, Any] = client.get(path).json()
    return job if job["status"] in {"succeeded", "failed", "cancelled"} else {}
