"""What browsers may do with the API: pages of other origins nothing, and answers are no pages."""

from fastapi.testclient import TestClient


def test_no_page_of_another_origin_may_read_an_answer(client: TestClient) -> None:
    origin = {"Origin": "http://localhost:3000"}  # others are not even answered
    asked = {**origin, "Access-Control-Request-Method": "POST"}
    for answer in (
        client.get("/models", headers=origin),
        client.get("/nowhere", headers=origin),
        client.options("/generate", headers=asked),
        client.options("/v1/completions", headers=asked),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_answers_and_errors_are_taken_for_what_they_are(client: TestClient) -> None:
    generated = {"model": "tiny", "prompt": "the dog", "max_new_tokens": 1}
    for answer in (
        client.get("/models"),
        client.get("/nowhere"),
        client.post("/generate", json=generated),
        client.post("/generate", json={**generated, "stream": True}),
        client.post("/generate", content=b"x" * 5_000_000),
    ):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"] == "frame-ancestors 'none'"
        assert answer.headers["referrer-policy"] == "no-referrer"


def test_a_form_of_a_page_is_no_request(client: TestClient) -> None:
    """Browsers send these types to any address without asking first."""
    body = '{"model": "tiny", "prompt": "the dog", "max_new_tokens": 1}'
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        answer = client.post("/generate", content=body, headers={"content-type": kind})
        assert answer.status_code == 422


def test_no_page_of_elsewhere_is_answered(client: TestClient) -> None:
    """Neither one whose name was made to lead here, nor one that posts to this address."""
    for headers in (
        {"Host": "rebound.example"},
        {"Origin": "https://elsewhere.example"},
        {"Origin": "null"},
    ):
        for method, path in (("GET", "/models"), ("POST", "/prune-jobs/prn-1/cancel")):
            refused = client.request(method, path, headers=headers)
            assert (refused.status_code, refused.json()["type"]) == (403, "not-local")
        refused = client.get("/v1/models", headers=headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "not_local")
    for operations in client.get("/openapi.json").json()["paths"].values():
        assert all("403" in each["responses"] for each in operations.values())
