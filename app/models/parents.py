"""The dense models that removal orders are of: whether they are here, and are still the same."""

import logging
from pathlib import Path

from app.models.entry import RemovalOrder
from pruning.models.architectures import UnknownArchitecture, UnsupportedConfig
from pruning.models.safetensors_files import fingerprint
from pruning.models.store import ModelInfo, ModelNotFound, ModelStore, NotAModel, Stamp, stamp_of

logger = logging.getLogger(__name__)


class Parents:
    """Looks at files anew on every call, but reads them again only when they have changed."""

    def __init__(self, models: ModelStore) -> None:
        self._models = models
        self._fingerprints: dict[Path, tuple[Stamp, str]] = {}
        self._lost: set[str] = set()  # orders whose loss has been told

    def info(self, name: str) -> ModelInfo | None:
        """Of the dense model of this name; None if there is none that can be used."""
        try:
            return self._models.inspect(name)
        except (ModelNotFound, NotAModel, UnknownArchitecture, UnsupportedConfig):
            return None

    def of(self, order: RemovalOrder) -> ModelInfo | None:
        """The model that the order was found on; None if it is not here, or was replaced."""
        info = self.info(order.parent)
        if info is None or info.num_blocks != order.num_blocks:
            return None
        if order.parent_fingerprint not in (None, self._fingerprint(info.path)):
            self._tell_lost(order)
            return None
        return info

    def _fingerprint(self, path: Path) -> str | None:
        """None for files that cannot be read."""
        try:
            stamp = stamp_of(path)
            if path not in self._fingerprints or self._fingerprints[path][0] != stamp:
                self._fingerprints[path] = (stamp, fingerprint(path))
        except (OSError, ValueError) as error:
            logger.warning("%s cannot be compared with its removal orders: %s", path, error)
            return None
        return self._fingerprints[path][1]

    def _tell_lost(self, order: RemovalOrder) -> None:
        if order.name not in self._lost:
            self._lost.add(order.name)
            logger.warning(
                "%s is served from its own weights, and its prefixes are not served: the dense "
                "model %s has been replaced since it was pruned",
                order.name,
                order.parent,
            )
