"""Does a search that looks ahead choose better blocks? Orders compared on held-out text by domain.

``sleb`` is the greedy search of the paper, ``refined`` adds exchanges, ``kl`` decides by divergence
from the dense model, ``scaled`` scores candidates as repaired by scale. All of them choose on the
same windows, for each of several samples, so differences are paired.
"""

import json
import math
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from types import MappingProxyType
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from app.bench.machine import machine
from benchmarks.model import model_store
from pruning.data.calibration import calibrate, evaluation_windows
from pruning.data.windows import Windows
from pruning.models.blocks import num_blocks
from pruning.models.demo_model import NAME
from pruning.models.store import set_up_torch
from pruning.removal import Removal, kept
from pruning.search.dense_model import DenseModel, Resources, load_dense_model
from pruning.search.objective import LOSS, Objective
from pruning.search.observed import Observer
from pruning.search.search import search
from pruning.search.state import ScoredCandidate, SearchPlan, SearchState
from pruning.sleb import Blocks
from pruning.spec.calibration import default_calibration
from pruning.spec.prune import Metric, PruneSpec

SLEB, REFINED = "sleb", "refined"
OTHERS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"kl": {"metric": Metric.KL}, "scaled": {"score_repaired": True}}
)
FORMS = MappingProxyType({"raw": LOSS, "rescaled": Objective(is_rescaled=True)})


@dataclass(frozen=True)
class OrderResult:
    """The blocks that one search removes at one depth, and what that costs."""

    seed: int
    order: str
    num_removed: int
    removed: Blocks
    evaluations: int
    seconds: float
    losses: Mapping[str, Mapping[str, float]]  # on held-out text, by domain and form


class _Cost(Observer):
    """Notes after how many evaluations and seconds each block was removed."""

    def __init__(self) -> None:
        self.evaluations = 0
        self.at_removal: list[tuple[int, float]] = []
        self._began_s = time.perf_counter()

    def evaluated(self, done: int, _total: int, _scored: Sequence[ScoredCandidate]) -> None:
        self.evaluations = done

    def removed(self, _removal: Removal) -> None:
        self.at_removal.append((self.evaluations, self.seconds))

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began_s


class _HeldOut:
    """Losses on held-out text by domain, of the model as cut and rescaled behind each cut."""

    def __init__(self, dense: DenseModel, domains: Mapping[str, torch.Tensor]) -> None:
        self._num_blocks = num_blocks(dense.model)
        self._scorers = {
            domain: {name: dense.local_scorer(windows, (), form) for name, form in FORMS.items()}
            for domain, windows in domains.items()
        }
        self._known: dict[frozenset[int], Mapping[str, Mapping[str, float]]] = {}

    def losses(self, removed: Sequence[int]) -> Mapping[str, Mapping[str, float]]:
        keep, key = kept(self._num_blocks, removed), frozenset(removed)
        if key not in self._known:
            self._known[key] = {
                domain: {name: fmean(scorer.losses(keep)) for name, scorer in forms.items()}
                for domain, forms in self._scorers.items()
            }
        return self._known[key]


def main(
    out: Annotated[Path, typer.Option(help="Where to write the JSON, with a table beside it.")],
    model: Annotated[str, typer.Option(help="Name or directory.")] = NAME,
    num_windows: int = 8,
    seqlen: int = 128,
    seeds: Annotated[str, typer.Option(help="One sample of the calibration for each.")] = "0,1,2,3",
    depths: Annotated[str, typer.Option(help="Numbers of removed blocks.")] = "3,6",
    refine: Annotated[int, typer.Option(help="Exchanges at most.")] = 2,
    num_held_out: Annotated[int, typer.Option(help="Windows of each domain.")] = 6,
    held_out_seqlen: int = 256,
    dtype: str = "bfloat16",
) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    set_up_torch()
    numbers = sorted({int(depth) for depth in depths.split(",")})
    spec = PruneSpec(model, num_remove=numbers[-1], refine=refine, dtype=dtype)
    path = model_store(model).path(model)
    dense = load_dense_model(path, spec.resident, Resources(), dtype=dtype)
    held_out = default_calibration(num_samples=2 * num_held_out, seqlen=held_out_seqlen)
    judged = evaluation_windows(held_out, dense.model, dense.tokenizer)
    texts = {domain: found.token_ids for domain, found in judged.items()}
    judge = _HeldOut(dense, texts)
    report: dict[str, Any] = {
        "calibration": f"{num_windows} windows of {seqlen} tokens of packaged prose and code",
        "held_out": {domain: list(windows.shape) for domain, windows in texts.items()},
        "num_blocks": num_blocks(dense.model),
        "refine": refine,
        "dense": judge.losses(()),
        "results": [],
        "machine": machine(),
        "command": shlex.join(["python", "-m", "benchmarks.lookahead", *sys.argv[1:]]),
    }
    for seed in (int(seed) for seed in seeds.split(",")):
        sample = default_calibration(num_samples=num_windows, seqlen=seqlen, seed=seed)
        windows = calibrate(sample, dense.model, dense.tokenizer)
        for found in _searched(replace(spec, calibration=sample), dense, windows, numbers, judge):
            report["results"].append(asdict(found))
            Console(stderr=True).print(found.seed, found.order, found.removed, found.seconds)
            out.write_text(json.dumps(report, indent=2) + "\n")
        out.with_suffix(".md").write_text(_markdown(report))


def _searched(
    spec: PruneSpec,
    dense: DenseModel,
    windows: Windows,
    depths: Sequence[int],
    judge: _HeldOut,
) -> Iterator[OrderResult]:
    """The orders for one sample of calibration windows."""
    seed = spec.calibration.parts[0].seed
    known: list[Removal] = []
    for name, changes in {SLEB: {}, **OTHERS}.items():
        cost = _Cost()
        removals = search(replace(spec, refine=0, **changes), dense, windows, cost, SearchState())
        for depth in depths:
            removed = tuple(removal.block for removal in removals[:depth])
            evaluations, seconds = cost.at_removal[depth - 1]
            yield OrderResult(
                seed, name, depth, removed, evaluations, round(seconds, 1), judge.losses(removed)
            )
        if name != SLEB:
            continue
        known, greedy_s = removals, [seconds for _, seconds in cost.at_removal]
        for depth in depths:
            cost = _Cost()
            state = SearchState(SearchPlan(windows.digest, depth), tuple(known[:depth]))
            refined = search(replace(spec, num_remove=depth), dense, windows, cost, state)
            removed = tuple(removal.block for removal in refined)
            seconds = round(greedy_s[depth - 1] + cost.seconds, 1)
            yield OrderResult(
                seed, REFINED, depth, removed, cost.evaluations, seconds, judge.losses(removed)
            )


def _mean(result: Mapping[str, Any], form: str) -> float:
    """The mean loss over the domains."""
    return fmean(forms[form] for forms in result["losses"].values())


def _gain(report: Mapping[str, Any], order: str, depth: int, form: str) -> str:
    """How much lower the mean loss is than that of ``sleb``, ± the standard error over samples."""
    by_seed = {
        name: {
            result["seed"]: _mean(result, form)
            for result in report["results"]
            if (result["order"], result["num_removed"]) == (name, depth)
        }
        for name in (SLEB, order)
    }
    gains = [by_seed[SLEB][seed] - loss for seed, loss in by_seed[order].items()]
    error = f" ± {stdev(gains) / math.sqrt(len(gains)):.3f}" if len(gains) > 1 else ""
    return f"{fmean(gains):+.3f}{error}"


def _markdown(report: Mapping[str, Any]) -> str:
    domains = list(report["dense"])
    headings = ["removed", "order", *domains, *(f"gain, {form}" for form in FORMS)]
    headings += ["evaluations", "seconds"]
    lines = [headings, ["--:", "---", *["--:"] * (len(headings) - 2)]]
    for depth in sorted({result["num_removed"] for result in report["results"]}):
        for order in (SLEB, REFINED, *OTHERS):
            found = [
                result
                for result in report["results"]
                if (result["order"], result["num_removed"]) == (order, depth)
            ]
            if not found:
                continue
            means = [fmean(one["losses"][domain]["raw"] for one in found) for domain in domains]
            gains = [_gain(report, order, depth, form) if order != SLEB else "" for form in FORMS]
            costs = [fmean(one[key] for one in found) for key in ("evaluations", "seconds")]
            lines.append(
                [
                    str(depth),
                    order,
                    *(f"{mean:.3f}" for mean in means),
                    *gains,
                    *(f"{cost:.0f}" for cost in costs),
                ]
            )
    num_samples = len({result["seed"] for result in report["results"]})
    text = (
        f"# Searches that look ahead\n\nMean loss in nats on held-out windows by domain "
        f"{report['held_out']}, over {num_samples} samples of {report['calibration']}. gain: how "
        "much lower the mean over the domains is than that of sleb on the same sample, ± standard "
        "error over the samples; raw, and with streams rescaled behind each cut. refined: at most "
        f"{report['refine']} exchanges, evaluations and seconds with those of sleb. Machine and "
        "command are in the JSON file of the same name.\n\n"
    )
    return text + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
