"""The quality of each domain is what the slow scorer finds on its windows, depth by depth."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import exp
from pathlib import Path
from statistics import fmean

import pytest
import torch

from pruning.data.calibration import evaluation_windows
from pruning.data.windows import Windows
from pruning.evaluation.domains import measure_domains, perplexity_curve
from pruning.evaluation.enough import UntilKnown
from pruning.evaluation.estimate import Strata
from pruning.evaluation.quality import DomainQuality, Measured
from pruning.models.blocks import view
from pruning.models.store import ModelStore, load
from pruning.removal import Losses, kept
from pruning.search.dense_model import DenseModel, Resources, load_dense_model
from pruning.search.scoring import PlainScorer
from pruning.spec import InvalidSpec
from pruning.spec.calibration import CalibrationMix, CalibrationSpec, Dataset
from pruning.spec.evaluation import Gate
from pruning.spec.prune import PruneSpec, Repair, Resident
from tests.support.pruning_runs import prune_tiny
from tests.support.tiny import NUM_BLOCKS, VOCAB_SIZE

SEQLEN = 12
REMOVED = (4, 2)
ALL = tuple(range(NUM_BLOCKS))
CALIBRATION = CalibrationSpec(Dataset.SELF, num_samples=4, seqlen=SEQLEN)


def windows(number: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB_SIZE, (number, SEQLEN), generator=generator)


TEXTS = {"prose": Windows(windows(5, 0), "some prose"), "code": Windows(windows(3, 1), "some code")}


@pytest.fixture(params=Resident)
def dense(request: pytest.FixtureRequest, tiny_model_dir: Path) -> DenseModel:
    return load_dense_model(tiny_model_dir, request.param, Resources("cpu"))


def test_each_domain_is_measured_dense_raw_and_repaired(
    dense: DenseModel, tiny_model_dir: Path
) -> None:
    whole = load(tiny_model_dir).model
    name = "model.layers.3.mlp.down_proj.weight"
    own = {2: {name: whole.get_parameter(name).detach() * 2}}
    prose, code = measure_domains(dense, TEXTS, REMOVED, own)

    def losses(text: str, num_removed: int, *, is_repaired: bool = False) -> Losses:
        model = view(whole, ALL, own[2]) if is_repaired else whole
        keep = kept(NUM_BLOCKS, REMOVED[:num_removed])
        return PlainScorer(model, TEXTS[text].token_ids).losses(keep)

    for found, text in ((prose, "prose"), (code, "code")):
        assert (found.domain, found.source) == (text, f"some {text}")
        assert (found.num_windows, found.seqlen) == TEXTS[text].token_ids.shape
        assert found.digest == TEXTS[text].digest
        of_dense = losses(text, 0)
        same(found.dense, Measured.of_dense(of_dense))
        for number in (1, 2):
            same(found.raw[number - 1], Measured.against(of_dense, losses(text, number)))
        assert found.repaired[0] is None
        repaired = found.repaired_after(2)
        assert repaired is not None
        of_repaired = losses(text, 2, is_repaired=True)
        same(repaired, Measured.against(of_dense, of_repaired))
    for repaired_depth, of_depth in (
        (2, DomainQuality.served_after),
        (None, DomainQuality.raw_after),
    ):
        pooled = [
            [
                loss
                for one in TEXTS
                for loss in losses(one, number, is_repaired=number == repaired_depth)
            ]
            for number in (0, 1, 2)
        ]
        expected = [exp(fmean(losses)) for losses in pooled]
        assert perplexity_curve([prose, code], of_depth) == pytest.approx(expected, rel=1e-5)


class InPasses(UntilKnown):
    """Takes two windows of each domain at first, and then these numbers of the first domain."""

    def __init__(self, *sizes: int) -> None:
        self._sizes = [*sizes]

    def at_first(self, _available: int) -> int:
        return 2

    def next_sizes(self, domains: Sequence[DomainQuality], _: object) -> Mapping[str, int]:
        return {one.domain: self._sizes.pop(0) for one in domains[:1]} if self._sizes else {}


def test_windows_are_added_to_a_domain_at_all_depths(dense: DenseModel) -> None:
    found, other = measure_domains(dense, TEXTS, REMOVED, {}, InPasses(3, 4))
    first = TEXTS[found.domain].first(4)
    [whole] = measure_domains(dense, {found.domain: first}, REMOVED, {})
    assert (found.num_windows, found.digest) == (4, first.digest)
    for mine, expected in zip((found.dense, *found.raw), (whole.dense, *whole.raw), strict=True):
        same(mine, expected)
    assert other.num_windows == 2


def test_errors_are_those_of_kinds_and_documents(dense: DenseModel, tiny_model_dir: Path) -> None:
    kinds = ("fiction", "news") * 15
    documents = tuple(f"{kind} {at // 6}" for at, kind in enumerate(kinds))
    text = Windows(windows(30, 2), "some prose", kinds=kinds, documents=documents)
    [found] = measure_domains(dense, {"prose": text}, REMOVED, {})
    of_dense, shallow, _ = (
        PlainScorer(load(tiny_model_dir).model, text.token_ids).losses(
            kept(NUM_BLOCKS, REMOVED[:number])
        )
        for number in (0, 1, 2)
    )
    same(found.raw[0], Measured.against(of_dense, shallow, Strata(kinds, documents)))
    assert [each.degrees for each in (found.dense, *found.raw)] == [8, 8, 8]


def same(found: Measured, expected: Measured) -> None:
    assert found.loss == pytest.approx(expected.loss, abs=1e-5)
    assert found.standard_error == pytest.approx(expected.standard_error, abs=1e-5)


def test_without_repair_there_are_no_repaired_depths(dense: DenseModel) -> None:
    for found in measure_domains(dense, TEXTS, REMOVED, {}):
        assert found.repaired == ()
        assert [found.served_after(number) for number in (1, 2)] == list(found.raw)


def test_a_limit_on_a_domain_that_is_not_measured_is_refused(tiny_models_dir: Path) -> None:
    gate = Gate(max_perplexity_ratio_of={"poems": 2.0})
    spec = PruneSpec("tiny", num_remove=1, calibration=CALIBRATION, gate=gate)
    named = "'poems' is evaluated: expected one of code, documentation, prose, self"
    with pytest.raises(InvalidSpec, match=named) as caught:
        prune_tiny(tiny_models_dir, spec, "tiny@prn-1")
    assert caught.value.param == "gate.max_perplexity_ratio_of.poems"
    measured = Gate(max_perplexity_ratio_of={"self": 1e6})
    manifest, _ = prune_tiny(tiny_models_dir, replace(spec, gate=measured), "tiny@prn-2")
    assert manifest.quality.warnings == ()


def test_a_run_measures_the_domains_of_its_calibration(tiny_models_dir: Path) -> None:
    file = tiny_models_dir.parent / "animals.txt"
    file.write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    sources = (
        CalibrationSpec(Dataset.SELF, num_samples=6, seqlen=SEQLEN),
        CalibrationSpec(Dataset.FILE, num_samples=6, seqlen=SEQLEN, path=str(file)),
    )
    mix = CalibrationMix(sources, (2, 1))
    spec = PruneSpec("tiny", 2, calibration=mix, evaluation=None, repair=Repair.RIDGE)
    manifest, _ = prune_tiny(tiny_models_dir, spec, "tiny@prn-1")
    loaded = ModelStore(tiny_models_dir).load("tiny")
    text = evaluation_windows(spec.calibration, loaded.model, loaded.tokenizer)
    found = {domain.domain: domain for domain in manifest.quality.domains}
    assert found.keys() >= {"self", "animals"}
    assert {name: one.digest for name, one in found.items()} == {
        name: windows.digest for name, windows in text.items()
    }
    of_spec = [found["self"], found["animals"]]
    served = perplexity_curve(of_spec, DomainQuality.served_after)
    assert manifest.quality.perplexities == served
    raw = perplexity_curve(of_spec, DomainQuality.raw_after)
    assert manifest.quality.raw_perplexities == raw
    assert any(one.repaired for one in of_spec)
    assert raw != served
    assert [one.num_windows for one in of_spec] == [4, 2]
    assert "4 × self (seed 1) + 2 × file" in manifest.quality.evaluated_on
    assert manifest.quality.evaluated_on.endswith(", 6 windows of 12 tokens")
