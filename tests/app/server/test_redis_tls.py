"""A job store behind TLS, by a ``rediss://`` URL."""

from pathlib import Path

import pytest
import redis

from app.config import ServeSettings
from pruning.jobs.redis import JobStoreUnavailable, connect, redis_errors_translated
from tests.support.serving import local_api
from tests.support.tls_proxy import tls_in_front_of


def test_jobs_and_limits_go_through_tls(
    settings: ServeSettings, redis_url: str, redis_client: redis.Redis, tmp_path: Path
) -> None:
    ca_file = tmp_path / "ca.pem"
    body = {"model": "tiny", "num_remove": 1, "calibration": {"dataset": "self"}}
    with (
        tls_in_front_of(redis_url, ca_file) as url,
        local_api(settings, f"{url}?ssl_ca_certs={ca_file}") as client,
    ):
        created = client.post("/prune-jobs", json=body)
        assert created.status_code == 202, created.text
        assert redis_client.exists(f"sleb:job:{created.json()['id']}")
        assert client.get(f"/prune-jobs/{created.json()['id']}").json()["status"] == "queued"


def test_a_server_of_an_unknown_ca_is_not_trusted(redis_url: str, tmp_path: Path) -> None:
    with (
        tls_in_front_of(redis_url, tmp_path / "ca.pem") as url,
        connect(url, num_retries=0) as client,
        pytest.raises(JobStoreUnavailable, match=r"(?i)certificate"),
        redis_errors_translated(),
    ):
        client.ping()
