"""The repair of a removal order: what a spec asks for, and what every depth of the order gets.

With ``AUTO`` a depth is repaired only if that harms no domain. A fit on one kind of text can win
there and lose elsewhere, so the choice is made on windows that no fit has seen, and no domain pays
for another.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from statistics import fmean

from transformers import PreTrainedConfig

from pruning.data.calibration import RepairWindows
from pruning.data.corpora import NOT_ENOUGH, CalibrationError
from pruning.models.architectures import architecture
from pruning.models.blocks import num_blocks
from pruning.models.streaming import VisitedModel
from pruning.removal import kept, paired_gaps, standard_error
from pruning.repair.record import DepthRepair, Gain, Method
from pruning.repair.repair import Repaired, RepairedDepth, repair_depths
from pruning.repair.walk import OpenWalk
from pruning.sleb import Blocks
from pruning.spec import InvalidSpec
from pruning.spec.prune import Repair


@dataclass(frozen=True)
class OrderRepair:
    """The repairs of all depths of an order: as the manifest records them, and the repairs.

    Both are for 1, 2 ... removed blocks.
    """

    records: tuple[DepthRepair, ...]
    chosen: tuple[Repaired, ...]

    def up_to(self, num_removed: int) -> "OrderRepair":
        return OrderRepair(self.records[:num_removed], self.chosen[:num_removed])


def refusal(config: PreTrainedConfig) -> str | None:
    """Why models of this family and configuration allow no repair; None if they do."""
    for key, value in architecture(config).writes.requires:
        if getattr(config, key, value) != value:
            actual = json.dumps(getattr(config, key))
            return (
                f"ridge is not supported for this {config.model_type}: it needs "
                f"{key}={json.dumps(value)}, but the config has {actual}"
            )
    return None


def limit(config: PreTrainedConfig) -> str | None:
    """What a repair of this model leaves as it is, in a sentence. None if it may fit all."""
    row = architecture(config)
    if not row.has_experts:
        return None
    layers = " and ".join(each.layer for each in row.writes.refit)
    return (
        f"ridge fits {layers} of this {config.model_type}, but not its experts, because "
        "each expert sees only a part of the tokens"
    )


def check_repair(repair: Repair, config: PreTrainedConfig) -> None:
    """Raises ``InvalidSpec`` for a repair by a name that models of this family do not allow."""
    if repair is Repair.SCALE:
        raise InvalidSpec(
            "repair",
            "repair=scale is no longer supported, because it recovered little compared "
            "with ridge: use ridge or auto",
        )
    if repair is Repair.RIDGE and (against := refusal(config)) is not None:
        raise InvalidSpec("repair", f"{against}: use auto or none")


def windows_for(
    repair: Repair,
    config: PreTrainedConfig,
    read: Callable[[], RepairWindows],
    warn: Callable[[str], object],
) -> RepairWindows | None:
    """The text of ``read`` for what is asked for; None if nothing is.

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
            "the calibration text is too short to reserve windows for choosing a repair: "
            "add text, or reduce the number of samples or seqlen"
        )
        if repair is not Repair.AUTO:
            raise CalibrationError(NOT_ENOUGH, f"repair={repair}: {reason}")
        warn(f"the model is not repaired: {reason}")
        return None
    untested = sorted(windows.train.keys() - windows.selection.keys())
    if untested:
        warn(
            f"the repair is chosen without {', '.join(untested)}, because there is too little text"
        )
    return windows


def repair_order(
    repair: Repair,
    windows: RepairWindows,
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
        windows,
        batch_tokens=batch_tokens,
        observe=observe,
        state_budget=state_budget,
        open_walk=open_walk,
    )
    chosen = tuple(
        choose(depth) if repair is Repair.AUTO else depth.tried[Method(repair.value)]
        for depth in depths
    )
    records = (
        record_of(number, depth, repaired)
        for number, (depth, repaired) in enumerate(zip(depths, chosen, strict=True), start=1)
    )
    return OrderRepair(tuple(records), chosen)


def gains(depth: RepairedDepth) -> Mapping[str, Gain]:
    """The gain of ridge over no repair, for each domain of the selection windows."""
    by_domain = {}
    for domain, raw in depth.tried[Method.NONE].losses.items():
        repaired = depth.tried[Method.RIDGE].losses[domain]
        gaps = paired_gaps(raw, repaired)
        by_domain[domain] = Gain(fmean(gaps), standard_error(gaps) if len(gaps) > 1 else 0.0)
    return by_domain


def record_of(num_removed: int, depth: RepairedDepth, chosen: Repaired) -> DepthRepair:
    """The entry of the manifest for the repair that was chosen at this depth."""
    by_domain = gains(depth)
    is_finite = all(isfinite(gain.mean) for gain in by_domain.values())
    return DepthRepair(
        num_removed,
        chosen.method,
        sum(tensor.nbytes for tensor in chosen.tensors.values()),
        {Method.RIDGE: by_domain if is_finite else {}},
    )


def choose(depth: RepairedDepth) -> Repaired:
    """Ridge if every domain gains, else no repair. A loss that is NaN is no gain."""
    is_better = all(gain.mean > 0 for gain in gains(depth).values())
    return depth.tried[Method.RIDGE if is_better else Method.NONE]
