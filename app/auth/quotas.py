"""Quotas of tenants: how much of the service all keys of one tenant may use together.

They are kept in the file of the keys. Without a quota of its own, a tenant has that of the
settings.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from pruning.jobs.conditions import ANY_TENANT

if TYPE_CHECKING:
    from app.config import ServeSettings


@dataclass(frozen=True)
class Quota:
    """Limits of a tenant. None is the default, 0 is no limit."""

    queued_jobs: int | None = None  # those that wait, and those that are paused
    running_jobs: int | None = None
    checkpoint_bytes: int | None = None
    tokens_per_min: int | None = None  # of prompts and outputs

    def over(self, defaults: "Quota") -> "Quota":
        """This quota, with the defaults where it has no limit of its own."""
        return replace(defaults, **self.limits())

    def limits(self) -> dict[str, int]:
        """The limits that are not None, by name."""
        return {name: limit for name, limit in asdict(self).items() if limit is not None}


NO_QUOTA = Quota()


def default_quota(settings: "ServeSettings") -> Quota:
    """The quota of tenants without their own."""
    return Quota(
        queued_jobs=settings.tenant_queued_jobs,
        running_jobs=settings.tenant_running_jobs,
        checkpoint_bytes=settings.tenant_checkpoint_bytes,
        tokens_per_min=settings.tenant_tokens_per_min,
    )


def running_limits(quotas: Mapping[str, Quota], defaults: Quota) -> dict[str, int]:
    """Most running jobs by tenant, for ``PruneQueue.set_running_limits``."""
    named = {**quotas, ANY_TENANT: defaults}
    limits = {tenant: quota.running_jobs for tenant, quota in named.items()}
    return {tenant: limit for tenant, limit in limits.items() if limit is not None}
