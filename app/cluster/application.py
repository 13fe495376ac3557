"""The service as an application of Ray Serve: an ingress, and replicas behind it."""

from collections.abc import Mapping
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from app.auth.scopes import check_address
from app.cluster.ingress import Ingress
from app.cluster.replica import Replica
from app.config import ClusterSettings, ServeSettings
from app.settings import check_cluster

NAME = "sleb"
MAX_WATCHERS = 256  # clients of a replica that follow jobs, beside those that generate
MAX_INGRESS_REQUESTS = 100_000  # no limit of its own: replicas have limits
# The ingress runs on the head node, without which there is no cluster anyway.
_HEAD_NODE = "node:__internal_head__"


def application(args: Mapping[str, Any]) -> serve.Application:
    """``args`` are fields of ``ClusterSettings``; the environment has the others.

    For ``serve run app.cluster.application:application`` and for config files of Ray Serve.
    Requires a connection to a cluster. Raises as ``application_of`` does.
    """
    any_host = "0.0.0.0"  # noqa: S104 - Ray Serve decides where it listens
    return application_of(ClusterSettings(**{"host": any_host, **args}))


def application_of(settings: ClusterSettings) -> serve.Application:
    """Raises ``NoCluster`` or ``UnprotectedAddress``."""
    check_address(settings)
    check_cluster(settings)
    replicas = serve.deployment(
        name="replica",
        **_scale(settings),
        ray_actor_options=_resources(settings),
        max_ongoing_requests=settings.max_num_seqs + settings.max_waiting + MAX_WATCHERS,
        max_queued_requests=settings.max_waiting + MAX_WATCHERS,  # per ingress, without a replica
        graceful_shutdown_timeout_s=settings.drain_s,
    )
    ingress = serve.deployment(
        name="ingress",
        num_replicas=settings.gates,
        ray_actor_options={"num_cpus": 0, "resources": {_HEAD_NODE: 0.001}},
        max_ongoing_requests=MAX_INGRESS_REQUESTS,
        graceful_shutdown_timeout_s=settings.drain_s,
    )
    bound = replicas(Replica).bind(_replica_settings(settings))
    return ingress(Ingress).bind(bound, settings.max_body_bytes)


def _scale(settings: ClusterSettings) -> dict[str, Any]:
    if settings.max_replicas is None:
        return {"num_replicas": settings.replicas}
    policy = AutoscalingPolicy(
        policy_function="app.cluster.autoscaling:QueuedTokensPolicy",
        policy_kwargs={"tokens_per_replica": settings.tokens_per_replica},
    )
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=settings.replicas,
            max_replicas=settings.max_replicas,
            upscale_delay_s=settings.scale_up_s,
            downscale_delay_s=settings.scale_down_s,
            policy=policy,
        )
    }


def _resources(settings: ClusterSettings) -> dict[str, float]:
    gpus = settings.replica_gpus
    if gpus is None:
        gpus = float(ray.cluster_resources().get("GPU", 0) > 0)
    return {"num_cpus": settings.replica_cpus, "num_gpus": gpus}


def _replica_settings(settings: ClusterSettings) -> dict[str, Any]:
    """All settings of a replica, as the environment of its machine may differ."""
    threads = settings.threads or max(1, int(settings.replica_cpus))
    fields = {name: getattr(settings, name) for name in ServeSettings.model_fields}
    return {**fields, "threads": threads}
