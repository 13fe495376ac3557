"""The supported type that is nearest to an unknown one, and what differs, for an error."""

from collections.abc import Collection
from difflib import get_close_matches

_MIN_SIMILARITY = 0.65  # of names
_MAX_NAMED = 12  # config keys in a message


def nearest(model_type: str, keys: Collection[str], families: Collection[str]) -> str:
    """``" (the nearest supported type is ...)"`` with what differs; empty where nothing is known.

    It is the one of the most similar name, or else the one whose config has most of ``keys``.
    """
    from transformers import PreTrainedConfig  # noqa: PLC0415 - takes seconds

    similar = get_close_matches(model_type, families, n=1, cutoff=_MIN_SIMILARITY)
    own = set(keys) - PreTrainedConfig().to_dict().keys()
    lacking = {name: sorted(own - _keys(name)) for name in similar or sorted(families)}
    name = min(lacking, key=lambda each: len(lacking[each]))
    if not similar and not own:
        return ""
    named = ", ".join(lacking[name][:_MAX_NAMED])
    differs = f", which does not have {named}" if named else ""
    return f" (the nearest supported type is {name!r}{differs})"


def _keys(family: str) -> set[str]:
    """Those of its config, by all their names."""
    from transformers import AutoConfig  # noqa: PLC0415 - takes seconds

    config = AutoConfig.for_model(family)
    return {*config.to_dict(), *config.attribute_map}
