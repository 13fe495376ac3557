"""Repairs of every family: the folded model is the formula, and every depth is that depth alone."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from transformers import PreTrainedModel

from pruning.data.calibration import RepairWindows
from pruning.models.blocks import block_list, num_blocks, view
from pruning.models.loss import last_hidden, window_losses
from pruning.models.memory import StateBudgetTooSmall
from pruning.models.store import load
from pruning.models.streaming import ResidentModel, StreamedModel
from pruning.repair.folding import folded
from pruning.repair.record import Method
from pruning.repair.repair import STEPS, RepairedDepth, repair_depths
from pruning.repair.ridge import Sums, fit
from pruning.repair.states import States
from tests.support.repairs import repaired_by, token_ids_of, windows_of
from tests.support.tiny import CONFIGS, VOCAB_SIZE, tiny_model

KEEPS = [(0, 1, 2, 4, 5), (0, 2, 4, 5), (0, 2, 5), (1, 3, 4)]  # the last lacks its ends
FITTED = ("self_attn.o_proj", "mlp.down_proj")
SEQLEN = 12
SMALL = 3 * SEQLEN * (3 * 32 + 4 * 32) * 4  # bytes of the states of at least three windows


def text(seed: int = 0, num_train: int = 6) -> RepairWindows:
    generator = torch.Generator().manual_seed(seed)
    domains = ("prose", "code")

    def windows(number: int) -> dict[str, torch.Tensor]:
        shape = (number, SEQLEN)
        return {d: torch.randint(3, VOCAB_SIZE, shape, generator=generator) for d in domains}

    return windows_of(windows(num_train), windows(3))


@pytest.mark.parametrize(
    "state_budget",
    [SMALL, pytest.param(None, marks=pytest.mark.slow)],  # the small one makes blocks run again
    ids=["small", "none"],
)
@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.contract
def test_the_folded_model_is_the_formula(family: str, state_budget: int | None) -> None:
    model = tiny_model(family)
    before = {name: values.clone() for name, values in model.named_parameters()}
    windows = text()
    depths = repair_depths(
        ResidentModel(model), KEEPS, windows, batch_tokens=24, state_budget=state_budget
    )
    assert [depth.keep for depth in depths] == KEEPS
    for depth in depths:
        assert set(depth.tried) == {Method.NONE, Method.RIDGE}
        for repaired in depth.tried.values():
            pruned = view(model, depth.keep, folded(model, depth.keep, repaired))
            for domain, token_ids in token_ids_of(windows.selection).items():
                with torch.no_grad():
                    hidden = last_hidden(pruned, token_ids)
                losses = window_losses(pruned, hidden, token_ids)
                assert losses.tolist() == pytest.approx(repaired.losses[domain], abs=2e-4)
    for name, values in model.named_parameters():
        assert torch.equal(values, before[name])


def assert_equal(found: list[RepairedDepth], expected: list[RepairedDepth]) -> None:
    for depth, same in zip(found, expected, strict=True):
        assert depth.tried.keys() == same.tried.keys()
        for method, repaired in depth.tried.items():
            assert repaired.tensors.keys() == same.tried[method].tensors.keys()
            for domain, losses in repaired.losses.items():
                assert losses == pytest.approx(same.tried[method].losses[domain], abs=1e-5)
            for name, values in repaired.tensors.items():
                assert torch.allclose(values, same.tried[method].tensors[name], atol=1e-5)


@pytest.mark.parametrize("state_budget", [None, SMALL])
def test_a_streamed_model_is_repaired_like_a_resident_one(
    tiny_model_dir: Path, state_budget: int | None
) -> None:
    resident = load(tiny_model_dir, device="cpu").model
    windows = text()
    one = repair_depths(ResidentModel(resident), KEEPS[:2], windows, batch_tokens=24)
    streamed = StreamedModel(tiny_model_dir, device="cpu")
    other = repair_depths(streamed, KEEPS[:2], windows, batch_tokens=24, state_budget=state_budget)
    assert_equal(other, one)


def test_a_factor_of_what_blocks_write_changes_no_repair() -> None:
    """The same model without the factor, which its weights have instead, is repaired as well."""
    model = tiny_model("granite")
    plain = copy.deepcopy(model)
    plain.config.residual_multiplier = 1.0
    with torch.no_grad():
        for block in block_list(plain):
            block.__dict__["residual_multiplier"] = 1.0
            for layer in ("self_attn.o_proj", "mlp.down_proj"):
                block.get_parameter(f"{layer}.weight").mul_(model.config.residual_multiplier)
    found, expected = (repaired_by(Method.RIDGE, each, KEEPS[0]) for each in (model, plain))
    for domain, losses in expected.losses.items():
        assert found.losses[domain] == pytest.approx(losses, abs=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_a_depth_is_repaired_as_if_it_were_alone(family: str) -> None:
    model = tiny_model(family)
    together = repair_depths(ResidentModel(model), KEEPS, text(), batch_tokens=24)
    for keep, depth in zip(KEEPS, together, strict=True):
        assert_equal(repair_depths(ResidentModel(model), [keep], text(), batch_tokens=24), [depth])


def test_repairs_are_those_of_whole_models_run_one_block_at_a_time() -> None:
    """The slow path: for each block that is refitted, which are those in front of a cut and the
    next two behind it, the dense and the repaired model run from the start."""
    model, windows = tiny_model("llama"), text()
    for depth in repair_depths(ResidentModel(model), KEEPS, windows, batch_tokens=24):
        keep, own = depth.keep, dict[str, torch.Tensor]()
        ends = (*keep[1:], num_blocks(model))
        is_cut = [end != block + 1 for block, end in zip(keep, ends, strict=True)]
        for at, (block, after) in enumerate(zip(keep, ends, strict=True)):
            if not any(is_cut[max(0, at - 2) : at + 1]):
                continue
            sums = {}
            for domain, ids in token_ids_of(windows.train).items():
                _, dense = passed(model, range(after), ids)
                read, pruned = passed(model, keep[: at + 1], ids, own)
                sums[domain] = Sums(32 + 48, 32, model.device)
                sums[domain].add(read, dense - pruned, dense.square().sum(dim=1).reciprocal())
            change = fit(sums).change
            tried = [{**own, **changed(model, block, step * change)} for step in STEPS]
            own = min(
                [own, *tried],
                key=lambda each: error(model, keep[: at + 1], after, each, windows),
            )
        repaired = depth.tried[Method.RIDGE]
        assert repaired.tensors.keys() == own.keys()
        for name, values in own.items():
            assert torch.allclose(values, repaired.tensors[name], atol=1e-4)


def changed(model: PreTrainedModel, block: int, change: torch.Tensor) -> dict[str, torch.Tensor]:
    """The output of attention and the last matrix of a block with this change of both."""
    names = [f"model.layers.{block}.{each}.weight" for each in FITTED]
    parts = zip(names, change.split([32, 48], dim=1), strict=True)
    return {name: model.get_parameter(name).detach() + part for name, part in parts}


def error(
    model: PreTrainedModel,
    keep: Sequence[int],
    after: int,
    own: Mapping[str, torch.Tensor],
    windows: RepairWindows,
) -> float:
    """The squared error of the stream behind the last kept block, relative to each token."""
    total = 0.0
    for ids in token_ids_of(windows.train).values():
        _, dense = passed(model, range(after), ids)
        _, pruned = passed(model, keep, ids, own)
        total += float(((dense - pruned).norm(dim=1) / dense.norm(dim=1)).square().sum())
    return total


def passed(
    model: PreTrainedModel,
    keep: Sequence[int],
    token_ids: torch.Tensor,
    own: Mapping[str, torch.Tensor] = MappingProxyType({}),
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the fitted matrices of the last of these blocks read, and its hidden states."""
    pruned, found = view(model, list(keep), own), list[torch.Tensor]()
    last = pruned.get_submodule(f"model.layers.{len(keep) - 1}")
    for each in FITTED:
        last.get_submodule(each).register_forward_pre_hook(lambda _, args: found.append(args[0]))
    last.register_forward_hook(lambda _module, _args, output: found.append(output))
    with torch.no_grad():
        pruned(token_ids)
    *read, hidden = (tensor.flatten(0, 1) for tensor in found)
    return torch.cat(read, dim=1), hidden


@pytest.mark.parametrize("num_train", [6, 24])
def test_memory_does_not_depend_on_the_number_of_windows(
    num_train: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[States[tuple[int, int]]] = []

    class Counted(States[tuple[int, int]]):
        def __init__(self, budget: int) -> None:
            super().__init__(budget)
            made.append(self)

    model, windows = tiny_model("llama"), text(num_train=num_train)
    expected = repair_depths(ResidentModel(model), KEEPS, windows, batch_tokens=36)
    monkeypatch.setattr("pruning.repair.walk.States", Counted)
    found = repair_depths(ResidentModel(model), KEEPS, windows, batch_tokens=36, state_budget=SMALL)
    assert_equal(found, expected)
    [states] = made
    assert 0 < states.peak_bytes < SMALL < states.file_bytes


def test_a_budget_without_room_for_a_window_is_refused() -> None:
    with pytest.raises(StateBudgetTooSmall, match="one window of 12 tokens need 8448"):
        repair_depths(
            ResidentModel(tiny_model("llama")), KEEPS, text(), batch_tokens=24, state_budget=8447
        )


def test_in_bfloat16_sums_are_float32() -> None:
    model = copy.deepcopy(tiny_model("llama"))
    halves = copy.deepcopy(model)
    halves.bfloat16()
    [exact] = repair_depths(ResidentModel(model), KEEPS[:1], text(), batch_tokens=24)
    [coarse] = repair_depths(ResidentModel(halves), KEEPS[:1], text(), batch_tokens=24)
    for name, refit in exact.tried[Method.RIDGE].tensors.items():
        change = (
            coarse.tried[Method.RIDGE].tensors[name].float()
            - halves.get_parameter(name).detach().float()
        )
        expected = refit - model.get_parameter(name).detach()
        assert float((change - expected).norm() / expected.norm()) < 0.1
    for repaired in coarse.tried.values():
        assert all(t.dtype == torch.bfloat16 for t in repaired.tensors.values())
        pruned = view(halves, coarse.keep, folded(halves, coarse.keep, repaired))
        for domain, ids in token_ids_of(text().selection).items():
            with torch.no_grad():
                losses = window_losses(pruned, last_hidden(pruned, ids), ids)
            assert losses.tolist() == pytest.approx(repaired.losses[domain], abs=0.1)


def test_progress_counts_steps_and_what_it_raises_ends_the_repair() -> None:
    heard: list[tuple[int, int]] = []

    def observe(done: int, total: int) -> None:
        heard.append((done, total))
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        repair_depths(
            ResidentModel(tiny_model("llama")), KEEPS, text(), batch_tokens=24, observe=observe
        )
    assert [done for done, _ in heard] == [1, 2, 3, 4, 5]
    assert len({total for _, total in heard}) == 1
