"""The service as an application of Ray Serve: a gate, and replicas behind it."""

from collections.abc import Mapping
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from app.auth.scopes import check_door
from app.cluster.ingress import Gate
from app.cluster.replica import Replica
from app.config import ClusterSettings, ServeSettings

NAME = "sleb"
_WATCHERS = 256  # clients of a replica that only follow jobs, beside those that wait for tokens
# Gates live where no lost machine can take them along: without its head a cluster is none.
_HEAD = "node:__internal_head__"
_GATE_REQUESTS = 100_000  # the gate refuses nobody: replicas do, by their own limits


class NoCommonRedis(ValueError):
    """Replicas on several machines would each have a job store of their own."""


def application(args: Mapping[str, Any]) -> serve.Application:
    """``args``: fields of ``ClusterSettings``; what they lack comes from the environment.

    For ``serve run app.cluster.application:application`` and the config files of Ray Serve. Needs a
    cluster to be connected to. Raises as ``application_of`` does.
    """
    anywhere = "0.0.0.0"  # noqa: S104 - Ray Serve alone knows where it listens
    return application_of(ClusterSettings(**{"host": anywhere, **args}))


def application_of(settings: ClusterSettings) -> serve.Application:
    """Raises ``NoCommonRedis`` or ``OpenDoor``."""
    check_door(settings)
    if settings.redis_url is None:
        raise NoCommonRedis(
            "SLEB_REDIS_URL has to name a Redis or Valkey server that all machines of the cluster "
            "can reach: none is started for a cluster"
        )
    replicas = serve.deployment(
        name="replica",
        **_how_many(settings),
        ray_actor_options=_resources(settings),
        max_ongoing_requests=settings.max_num_seqs + settings.max_waiting + _WATCHERS,
        max_queued_requests=settings.max_waiting + _WATCHERS,  # at a gate, while none is there
        graceful_shutdown_timeout_s=settings.drain_s,
    )
    gates = serve.deployment(
        name="gate",
        num_replicas=settings.gates,
        ray_actor_options={"num_cpus": 0, "resources": {_HEAD: 0.001}},
        max_ongoing_requests=_GATE_REQUESTS,
        graceful_shutdown_timeout_s=settings.drain_s,
    )
    behind = replicas(Replica).bind(_of_a_replica(settings))
    return gates(Gate).bind(behind, settings.max_body_bytes)


def _how_many(settings: ClusterSettings) -> dict[str, Any]:
    if settings.max_replicas is None:
        return {"num_replicas": settings.replicas}
    policy = AutoscalingPolicy(
        policy_function="app.cluster.autoscaling:ByQueuedTokens",
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


def _of_a_replica(settings: ClusterSettings) -> dict[str, Any]:
    """Explicit, and all of it: the environment of another machine may say something else."""
    threads = settings.threads or max(1, int(settings.replica_cpus))
    fields = {name: getattr(settings, name) for name in ServeSettings.model_fields}
    return {**fields, "threads": threads}
