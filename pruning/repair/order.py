"""The repair of a removal order: what a spec asks for, and what every depth of the order gets."""

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedConfig

from pruning.data.calibration import RepairWindows
from pruning.data.corpora import NOT_ENOUGH, CalibrationError
from pruning.models.blocks import num_blocks
from pruning.removal import kept
from pruning.repair.choose import choose, record_of
from pruning.repair.possible import refusal
from pruning.repair.record import DepthRepair, Method
from pruning.repair.repair import (
    Repaired,
    RepairedDepth,
    RepairText,
    VisitedModel,
    repair_depths,
)
from pruning.repair.walk import OpenWalk
from pruning.sleb import Blocks
from pruning.spec import InvalidSpec
from pruning.spec.prune import Repair


@dataclass(frozen=True)
class RepairRequest:
    """The repair that is asked for, and the text for it."""

    repair: Repair
    windows: RepairWindows

    @property
    def text(self) -> RepairText:
        train = {
            f"{domain}, {kind}": token_ids
            for domain, windows in self.windows.train.items()
            for kind, token_ids in windows.by_kind().items()
        }
        selection = {
            domain: windows.token_ids for domain, windows in self.windows.selection.items()
        }
        return RepairText(train, selection)


@dataclass(frozen=True)
class OrderRepair:
    """The repairs of all depths of an order: as the manifest records them, and the repairs.

    Both are for 1, 2 ... removed blocks.
    """

    records: tuple[DepthRepair, ...]
    chosen: tuple[Repaired, ...]


def check_repair(repair: Repair, config: PreTrainedConfig) -> None:
    """Raises ``InvalidSpec`` for a repair by a name that models of this family do not allow."""
    if repair is Repair.SCALE:
        raise InvalidSpec(
            "repair",
            "repair=scale was removed, as it gave back little of what ridge gives back: choose "
            "ridge or auto",
        )
    if repair is Repair.RIDGE and (against := refusal(config)) is not None:
        raise InvalidSpec("repair", f"{against}: choose one of auto, none")


def request_for(
    repair: Repair,
    config: PreTrainedConfig,
    read: Callable[[], RepairWindows],
    warn: Callable[[str], object],
) -> RepairRequest | None:
    """What is asked for, with the text of ``read``; None if nothing is.

    Nothing is repaired after a warning if the model allows no repair, or with ``AUTO`` if there is
    no text to choose by. Raises ``CalibrationError`` if the text is too short for a repair that is
    asked for by name.
    """
    if repair is Repair.NONE:
        return None
    if (against := refusal(config)) is not None:
        warn(f"the model is not repaired: {against}")
        return None
    windows = read()
    if not windows.selection:
        reason = (
            "the calibration text is too short to leave windows that no repair is fitted on: add "
            "text, or ask for fewer samples or a smaller seqlen"
        )
        if repair is not Repair.AUTO:
            raise CalibrationError(NOT_ENOUGH, f"repair={repair}: {reason}")
        warn(f"the model is not repaired: {reason}")
        return None
    untested = sorted(windows.train.keys() - windows.selection.keys())
    if untested:
        warn(f"the repair is chosen without {', '.join(untested)}: there is too little text of it")
    return RepairRequest(repair, windows)


def repair_order(
    request: RepairRequest,
    dense: VisitedModel,
    order: Blocks,
    *,
    batch_tokens: int,
    state_budget: int | None = None,
    open_walk: OpenWalk | None = None,
    observe: Callable[[int, int], object] = lambda _done, _total: None,
) -> OrderRepair:
    """Repair the model after each removal of ``order``; other arguments as in ``repair_depths``.

    Every depth gets the method that is asked for, or with ``AUTO`` what ``choose`` takes.
    """
    total = num_blocks(dense.model)
    keeps = [kept(total, order[:number]) for number in range(1, len(order) + 1)]
    depths = repair_depths(
        dense,
        keeps,
        request.text,
        batch_tokens=batch_tokens,
        observe=observe,
        state_budget=state_budget,
        open_walk=open_walk,
    )
    chosen = tuple(_chosen(request.repair, depth) for depth in depths)
    records = (
        record_of(number, depth, repaired)
        for number, (depth, repaired) in enumerate(zip(depths, chosen, strict=True), start=1)
    )
    return OrderRepair(tuple(records), chosen)


def _chosen(repair: Repair, depth: RepairedDepth) -> Repaired:
    return choose(depth) if repair is Repair.AUTO else depth.tried[Method(repair.value)]
