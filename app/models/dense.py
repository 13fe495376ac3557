"""The dense models that removal orders were found on: present, and unchanged since."""

import logging
from pathlib import Path

from app.models.entry import RemovalOrder
from pruning.models.architectures import UnknownArchitecture, UnsupportedConfig
from pruning.models.inspection_record import Stamp
from pruning.models.safetensors_headers import fingerprint
from pruning.models.store import ModelInfo, ModelNotFound, ModelStore, NotAModel, stamp_of

logger = logging.getLogger(__name__)


class DenseModels:
    """Every call checks the files, but reads them again only after they have changed."""

    def __init__(self, models: ModelStore) -> None:
        self._models = models
        self._fingerprints: dict[Path, tuple[Stamp, str]] = {}
        self._logged: set[str] = set()  # names of orders

    def info(self, name: str) -> ModelInfo | None:
        """None if there is no usable dense model of this name."""
        try:
            return self._models.inspect(name)
        except (ModelNotFound, NotAModel, UnknownArchitecture, UnsupportedConfig):
            return None

    def matching(self, order: RemovalOrder) -> ModelInfo | None:
        """The model that the order was found on; None if it is not here or was replaced."""
        info = self.info(order.parent)
        if info is None or info.num_blocks != order.num_blocks:
            return None
        if order.parent_fingerprint not in (None, self.fingerprint(order.parent)):
            if order.name not in self._logged:
                self._logged.add(order.name)
                logger.warning(
                    "%s is served from its own weights, and its prefixes are not served, because "
                    "the dense model %s was replaced after pruning",
                    order.name,
                    order.parent,
                )
            return None
        return info

    def fingerprint(self, name: str) -> str | None:
        """None if the model is not here, or its files cannot be read."""
        try:
            path = self._models.path(name)
        except ModelNotFound:
            return None
        try:
            stamp = stamp_of(path)
            if path not in self._fingerprints or self._fingerprints[path][0] != stamp:
                self._fingerprints[path] = (stamp, fingerprint(path))
        except (OSError, ValueError) as error:
            logger.warning("%s cannot be compared with its removal orders: %s", path, error)
            return None
        return self._fingerprints[path][1]
