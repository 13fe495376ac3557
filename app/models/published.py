"""The removal orders of published checkpoints, and the reasons why others are not served."""

import hashlib
import logging
from collections.abc import Mapping

from app.models.entry import RemovalOrder
from pruning.checkpoints.store import (
    MANIFEST,
    CheckpointCorrupt,
    CheckpointNotFound,
    CheckpointStore,
    parse_manifest,
)

logger = logging.getLogger(__name__)


class PublishedOrders:
    """Manifests are read once: a published checkpoint never changes, but may be deleted.

    One that is broken is parsed again only after its content has changed.
    """

    def __init__(self, checkpoints: CheckpointStore) -> None:
        self._checkpoints = checkpoints
        self._orders: dict[str, RemovalOrder] = {}
        self._broken: dict[str, str] = {}  # reasons
        self._parsed: dict[str, bytes] = {}  # digests of the broken ones

    def broken(self) -> Mapping[str, str]:
        """Why checkpoints are not served, by name."""
        return dict(self._broken)

    def all(self) -> list[RemovalOrder]:
        names = self._checkpoints.names()
        for gone in self._broken.keys() - {*names}:
            self._forget(gone)
        orders = map(self.get, names)
        return [order for order in orders if order is not None]

    def get(self, name: str) -> RemovalOrder | None:
        """None for a checkpoint that is not there or is broken."""
        if not self._checkpoints.holds(name):
            self._forget(name)
            return None
        if name not in self._orders:
            try:
                self._read(name)
            except CheckpointNotFound:
                return None
            except CheckpointCorrupt as error:
                self._break(name, str(error))
        return self._orders.get(name)

    def _read(self, name: str) -> None:
        """Raises ``CheckpointNotFound`` or ``CheckpointCorrupt``."""
        content = self._checkpoints.content(name)
        digest = hashlib.sha256(content).digest()
        if self._parsed.get(name) == digest:
            return
        try:
            manifest = parse_manifest(content, str(self._checkpoints.root / name / MANIFEST))
        except CheckpointCorrupt:
            self._parsed[name] = digest
            raise
        self._orders[name] = RemovalOrder.of_checkpoint(manifest)
        self._parsed.pop(name, None)
        self._broken.pop(name, None)

    def _break(self, name: str, reason: str) -> None:
        if self._broken.get(name) != reason:  # once
            logger.warning("a corrupt checkpoint is not served: %s", reason)
        self._broken[name] = reason

    def _forget(self, name: str) -> None:
        for known in (self._orders, self._broken, self._parsed):
            known.pop(name, None)
