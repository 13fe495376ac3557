"""What can be served, and under which names. Looks at configs and manifests, never at weights.

A name is ``<model>`` for the dense model, ``<model>@-6`` for six blocks less by its current
removal order, ``<model>@<job>`` for a job's full depth, ``<model>@<job>-6`` for a prefix of it.
"""

import logging
import re
from dataclasses import dataclass

from pruning.blocks import UnknownArchitecture, UnsupportedConfig
from pruning.checkpoints import CheckpointCorrupt, CheckpointNotFound, CheckpointStore, Manifest
from pruning.models import ModelInfo, ModelStore, NotAModel
from pruning.sleb import Blocks

logger = logging.getLogger(__name__)

_PREFIX = re.compile(r"(?P<order>.+@|.+[^-@])-(?P<depth>[0-9]{1,4})")


class UnknownModel(LookupError):
    """No model, checkpoint or prefix goes by this name."""


@dataclass(frozen=True)
class Entry:
    """One name and what it stands for: a dense model, or a prefix of a removal order."""

    name: str
    base: str  # the dense model
    info: ModelInfo | None  # of the dense model; None where only a checkpoint of it is here
    order: Manifest | None  # the removal order it belongs to, for a dense model its current one
    num_removed: int = 0
    error: str | None = None  # why it cannot be served

    @property
    def removed_blocks(self) -> Blocks:
        return self.order.removed_blocks[: self.num_removed] if self.order else ()

    @property
    def keep(self) -> Blocks | None:
        """Alive blocks; None for all of them."""
        return self.order.keep_after(self.num_removed) if self.order and self.num_removed else None

    @property
    def num_blocks(self) -> int:
        of_dense = self.order.num_blocks if self.order else self.info.num_blocks if self.info else 0
        return of_dense - self.num_removed

    @property
    def perplexity(self) -> float | None:
        """On the held-out windows of the job behind the order."""
        curve = self.order.quality.perplexities if self.order else ()
        return curve[self.num_removed] if curve else None

    @property
    def is_view(self) -> bool:
        """Whether the dense weights are here, and those that the order was found on."""
        blocks = self.info.num_blocks if self.info else 0
        return blocks > 0 and (self.order is None or self.order.num_blocks == blocks)

    @property
    def is_whole_checkpoint(self) -> bool:
        return self.order is not None and self.num_removed == len(self.order.removed_blocks)


class Catalog:
    """Reads the directories anew on every call, so what a worker publishes appears at once."""

    def __init__(self, models: ModelStore, checkpoints: CheckpointStore) -> None:
        self._models = models
        self._checkpoints = checkpoints
        self._manifests: dict[str, Manifest] = {}

    def dense_names(self) -> list[str]:
        return self._models.names()

    def entries(self) -> list[Entry]:
        """Each dense model with the prefixes of its current order, then every checkpoint."""
        orders = self._current_orders()
        found = []
        for name in self.dense_names():
            dense = self._dense(name, orders.get(name))
            found.append(dense)
            depths = range(1, len(dense.order.removed_blocks) + 1) if dense.order else ()
            found += [Entry(f"{name}@-{k}", name, dense.info, dense.order, k) for k in depths]
        return found + [self._whole(manifest) for manifest in self._all_manifests()]

    def resolve(self, name: str) -> Entry:
        """Raises ``UnknownModel``, saying what there is."""
        if name in self.dense_names():
            return self._dense(name, self._current_orders().get(name))
        if manifest := self._manifest(name):
            return self._whole(manifest)
        match = _PREFIX.fullmatch(name)
        order = self._order(match["order"]) if match else None
        if match is None or order is None:
            raise UnknownModel(
                f"no model named {name[:128]!r}: GET /models lists them all; dense ones: "
                f"{', '.join(self.dense_names()) or 'none, the models directory is empty'}"
            )
        depth = int(match["depth"])
        if not 1 <= depth <= (deepest := len(order.removed_blocks)):
            raise UnknownModel(f"{name!r}: that removal order has depths 1 to {deepest}")
        return Entry(name, order.parent, self._info(order.parent), order, depth)

    def _order(self, name: str) -> Manifest | None:
        """Of ``<model>@`` the current order, of ``<model>@<job>`` that job's."""
        return self._current_orders().get(name[:-1]) if name[-1] == "@" else self._manifest(name)

    def _dense(self, name: str, order: Manifest | None) -> Entry:
        try:
            info = self._models.inspect(name)
        except (NotAModel, UnknownArchitecture, UnsupportedConfig) as error:
            return Entry(name, name, None, None, error=str(error))
        is_of_this_model = order is not None and order.num_blocks == info.num_blocks
        return Entry(name, name, info, order if is_of_this_model else None)

    def _whole(self, order: Manifest) -> Entry:
        depth = len(order.removed_blocks)
        return Entry(order.name, order.parent, self._info(order.parent), order, depth)

    def _info(self, name: str) -> ModelInfo | None:
        return self._dense(name, None).info if name in self.dense_names() else None

    def _current_orders(self) -> dict[str, Manifest]:
        """The newest removal order of every dense model."""
        by_age = sorted(self._all_manifests(), key=lambda manifest: manifest.created_at)
        return {manifest.parent: manifest for manifest in by_age}

    def _all_manifests(self) -> list[Manifest]:
        found = (self._manifest(name) for name in self._checkpoints.names())
        return [manifest for manifest in found if manifest is not None]

    def _manifest(self, name: str) -> Manifest | None:
        """Read once: what is published never changes, but may be deleted."""
        if not self._checkpoints.holds(name):
            self._manifests.pop(name, None)
            return None
        if name not in self._manifests:
            try:
                self._manifests[name] = self._checkpoints.manifest(name)
            except CheckpointNotFound:
                return None
            except CheckpointCorrupt as error:
                logger.warning("a checkpoint is left out: %s", error)
                return None
        return self._manifests[name]
