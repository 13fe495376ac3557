"""Which requests may share what is read of their prompts, here and on other servers."""

from hashlib import sha256

from app.auth.keys import calling_tenant
from app.config import PrefixCache


def cache_scope(salt: str | None, prefix_cache: PrefixCache) -> str | None:
    """Requests of one scope share. None: the prompt is read in full.

    Without ``shared``, a scope is within the tenant of the caller: times would tell others what it
    has asked for.
    """
    return None if prefix_cache == "off" or salt is None else repr((_tenant(prefix_cache), salt))


def salt_elsewhere(salt: str | None, prefix_cache: PrefixCache) -> str | None:
    """The ``cache_salt`` for another server, which does not know our tenants. None for no salt."""
    tenant = _tenant(prefix_cache)
    return salt or None if tenant is None else sha256(repr((tenant, salt)).encode()).hexdigest()


def _tenant(prefix_cache: PrefixCache) -> str | None:
    return None if prefix_cache == "shared" else calling_tenant()
