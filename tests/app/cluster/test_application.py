"""The application of Ray Serve: its deployments and its configuration file."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from app.auth.keys import KeyFile, Scope
from app.auth.scopes import UnprotectedAddress, is_loopback
from app.cluster.application import application
from app.cluster.run import ClusterFailed, deployed
from app.config import ClusterSettings, ServeSettings, cluster_settings
from app.settings import NoCluster
from pruning.search.ray_scoring import connected, import_ray
from tests.support.clusters import room_for_ray
from tests.support.processes import free_port

FILE = Path(__file__).parents[3] / "docs" / "cluster.yaml"
REDIS = "redis://redis-box:6379"


def deployments(args: dict[str, Any]) -> tuple[Any, Any]:
    """The deployments of the ingress and of the replicas that it is bound to."""
    ingress = application(
        {"redis_url": REDIS, "replica_gpus": 0, "insecure": True, **args}
    )._bound_deployment
    return ingress, ingress.init_args[0]._bound_deployment


def test_the_file_of_the_guide_is_one_that_ray_serve_takes() -> None:
    config = ServeDeploySchema.model_validate(yaml.safe_load(FILE.read_text(encoding="utf-8")))
    (ours,) = config.applications
    assert ours.import_path == f"{application.__module__}:{application.__name__}"
    ingress, replica = deployments(ours.args)
    scaling = replica._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (2, 8)
    assert replica.ray_actor_options == {"num_cpus": 4, "num_gpus": 1}
    assert ingress.ray_actor_options["resources"].keys() == {"node:__internal_head__"}
    assert replica.init_args[0]["threads"] == 4
    assert str(replica.init_args[0]["data_dir"]) == ours.args["data_dir"]


def test_every_replica_is_given_all_settings_whatever_its_machine_says() -> None:
    ingress, replica = deployments({"replicas": 3, "max_num_seqs": 5, "threads": 2, "gates": 2})
    assert replica.num_replicas == 3
    assert ingress.num_replicas == 2
    given = replica.init_args[0]
    assert (given["max_num_seqs"], given["threads"], given["redis_url"]) == (5, 2, REDIS)
    assert given.keys() < ClusterSettings.model_fields.keys()
    assert replica.max_ongoing_requests > 5 + given["max_waiting"]


def test_without_a_common_redis_or_with_bounds_upside_down_it_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(NoCluster, match="SLEB_REDIS_URL"):
        application({"insecure": True})
    monkeypatch.setenv("SLEB_REPLICAS", "3")
    with pytest.raises(ValidationError, match="SLEB_MAX_REPLICAS=2 is less than SLEB_REPLICAS=3"):
        cluster_settings(max_replicas=2)


def test_it_listens_to_other_machines_with_a_key_or_if_told_so(tmp_path: Path) -> None:
    given = {"redis_url": REDIS, "replica_gpus": 0, "data_dir": tmp_path}
    with pytest.raises(UnprotectedAddress, match="sleb keys create"):
        application(given)
    application({**given, "host": "127.0.0.1"})
    KeyFile(tmp_path / "keys.json").create("me", frozenset({Scope.ADMIN}))
    _, replica = deployments({**given, "insecure": False})
    assert not is_loopback(ServeSettings(**replica.init_args[0]))  # so it asks for keys as well


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_keeps_replicas_from_starting_is_told(tmp_path: Path, redis_url: str) -> None:
    settings = ClusterSettings(
        data_dir=tmp_path, redis_url=redis_url, port=free_port(), replica_cpus=0.5
    )
    failed = pytest.raises(ClusterFailed, match=r"^[^\n]*NotAModel: this machine sees no model")
    with room_for_ray(), connected(import_ray()), failed, deployed(settings):
        pass
