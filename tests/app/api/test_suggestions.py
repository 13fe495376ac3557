"""What is said of a field or a path that does not exist: the one that may be meant."""

from fastapi.testclient import TestClient


def test_an_unknown_field_names_the_one_that_may_be_meant(client: TestClient) -> None:
    body = {"model": "tiny", "num_remov": 1, "calibration": {"num_sampels": 2}}
    errors = client.post("/prune-jobs", json=body).json()["errors"]
    said = {error["pointer"].split("/")[-1]: error["detail"] for error in errors}
    assert said["num_remov"] == "unknown field: did you mean num_remove?"
    assert said["num_sampels"] == "unknown field: did you mean num_samples?"
    removed = client.post("/prune-jobs", json={"model": "tiny", "num_remove": 1, "refine": 2})
    assert "this field was removed, because exchanges" in removed.json()["errors"][0]["detail"]
    nothing = client.post("/generate", json={"model": "tiny", "prompt": "a", "zzzz": 1}).json()
    assert nothing["errors"][0]["detail"] == "unknown field: remove it from the request"


def test_an_unknown_path_says_where_all_are_listed(client: TestClient) -> None:
    wrong = client.get("/prune-job").json()
    assert "did you mean /prune-jobs?" in wrong["detail"]
    assert "/openapi.json" in wrong["detail"]
    openai = client.post("/v1/chat/completion", json={}).json()["error"]["message"]
    assert "did you mean /v1/chat/completions?" in openai


def test_the_responses_api_names_what_is_here(client: TestClient) -> None:
    answer = client.post("/v1/responses", json={"model": "tiny", "input": "a"})
    assert answer.status_code == 404
    assert "POST /v1/chat/completions" in answer.json()["error"]["message"]
