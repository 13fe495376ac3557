"""For every family: an adapter changes nothing at first, and merged it is the same model."""

from pathlib import Path

import pytest
import torch

from pruning.healing.adapter import Adapter, adapted, with_adapter
from pruning.healing.students import alone
from pruning.models.architectures import ARCHITECTURES
from pruning.models.blocks import NO_OWN, Own, block_list, view
from pruning.repair.folding import folded, reader_of
from pruning.repair.record import Method
from pruning.spec.heal import Heal
from tests.support.logits import logits_of, token_ids
from tests.support.repairs import repaired_by
from tests.support.tiny import tiny_model

KEEP = (0, 2, 5)
HEAL = Heal(rank=3, alpha=5.0)


def trained(adapter: Adapter, seed: int = 0) -> Adapter:
    """The adapter with random values in place of those that a training would give it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters.values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return adapter


def merged(family: str, adapter: Adapter, own: Own = NO_OWN) -> Own:
    model = tiny_model(family)
    return with_adapter(model, HEAL, adapter.values(), own, reader_of(model), KEEP)


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_a_new_adapter_changes_nothing(family: str) -> None:
    model, ids = tiny_model(family), token_ids()
    adapter = adapted(view(model, KEEP), HEAL)
    assert torch.equal(logits_of(adapter.model, ids), logits_of(view(model, KEEP), ids))
    assert adapter.parameters


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_merged_it_computes_the_same_and_dense_stays(family: str) -> None:
    model, ids = tiny_model(family), token_ids()
    dense = logits_of(model, ids)
    adapter = trained(adapted(view(model, KEEP), HEAL))
    found = logits_of(view(model, KEEP, merged(family, adapter)), ids)
    expected = logits_of(adapter.model, ids)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    raw = logits_of(view(model, KEEP), ids)
    assert (expected - raw).abs().max() > 10 * (expected - found).abs().max()
    assert torch.equal(logits_of(model, ids), dense)
    assert not any("lora" in name for name, _ in model.named_modules())


def test_every_linear_layer_of_the_blocks_is_adapted() -> None:
    adapter = adapted(view(tiny_model("llama"), KEEP), HEAL)
    assert len(adapter.parameters) == 2 * 7 * len(KEEP)
    assert adapter.num_bytes == sum(each.numel() * 4 for each in adapter.parameters.values())
    names = set(merged("llama", adapter))
    assert "model.layers.5.self_attn.q_proj.weight" in names
    assert len(names) == 7 * len(KEEP)


def test_it_is_added_to_what_a_repair_has_changed() -> None:
    model, ids = tiny_model("llama"), token_ids()
    own = folded(model, KEEP, repaired_by(Method.RIDGE, model, KEEP))
    adapter = trained(adapted(view(model, KEEP, own), HEAL))
    found = logits_of(view(model, KEEP, merged("llama", adapter, own)), ids)
    expected = logits_of(adapter.model, ids)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert set(merged("llama", adapter, own)) >= set(own)


def test_it_takes_over_values() -> None:
    one, other = (trained(adapted(view(tiny_model("llama"), KEEP), HEAL), seed) for seed in (1, 2))
    values = one.values()
    assert not torch.equal(logits_of(other.model, token_ids()), logits_of(one.model, token_ids()))
    other.load(values)
    assert torch.equal(logits_of(other.model, token_ids()), logits_of(one.model, token_ids()))


def test_recomputed_activations_give_the_same_gradients() -> None:
    gradients = []
    for recomputes in (False, True):
        students = alone(tiny_model("llama"), KEEP, NO_OWN, HEAL)
        if recomputes:
            students.checkpoint_activations()
        adapter = trained(students.adapter)
        adapter.model(token_ids()).logits.square().mean().backward()
        gradients.append([parameter.grad for parameter in adapter.parameters.values()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)
        assert plain is not None


# peft's wrapper, which the product does not use, asks transformers by an old name
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_peft_loads_what_is_saved(family: str, tmp_path: Path) -> None:
    from peft import PeftModel  # noqa: PLC0415 - takes a second

    model, ids = tiny_model(family), token_ids()
    adapter = trained(adapted(view(model, KEEP), HEAL))
    adapter.save(tmp_path, adapter.values(), "parent@job")
    loaded = PeftModel.from_pretrained(view(model, KEEP), tmp_path)
    assert loaded.peft_config["default"].base_model_name_or_path == "parent@job"
    torch.testing.assert_close(loaded(ids).logits, adapter.model(ids).logits)
    assert len(block_list(model)) == 6
