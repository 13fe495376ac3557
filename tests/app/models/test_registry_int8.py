"""Int8 forms: which names have one, what they compute and share, and the memory they take."""

import copy
import gc
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from app.engine.engine import Engine
from app.engine.variant import Variant
from app.models.aliases import Aliases
from app.models.catalog import Catalog, UnknownModel
from app.models.external import ExternalModel
from app.models.registry import ModelRegistry
from app.models.weights import NoRoomForWeights
from pruning.checkpoints.store import CheckpointStore, Manifest
from pruning.models.blocks import block_list, view
from pruning.models.quantize import quantized_layers
from pruning.models.rounding import rounded
from pruning.models.store import LoadedModel, ModelStore, load
from pruning.repair.folding import repaired_view
from pruning.repair.record import Method
from pruning.spec.prune import Quantize
from tests.support.api_fixtures import publish_pruned
from tests.support.engine_requests import prompt, request, run
from tests.support.repairs import repair_checkpoint, repaired_by
from tests.support.tiny import generated
from tests.support.tiny_checkpoints import write_checkpoint
from tests.support.tiny_directory import write_tiny_model

METHODS = (Method.NONE, Method.SCALE, Method.RIDGE)
PROMPT = prompt(6)


@pytest.fixture
def manifest(data_dir: Path, tiny_loaded: LoadedModel) -> Manifest:
    """Of a job that repaired all depths but the first, each in its own way."""
    publish_pruned(data_dir, len(METHODS))
    return repair_checkpoint(data_dir / "checkpoints" / "tiny@prn-1", tiny_loaded.model, METHODS)


def registry_of(data_dir: Path, max_weight_bytes: int | None = None) -> ModelRegistry:
    models, checkpoints = ModelStore(data_dir / "models"), CheckpointStore(data_dir / "checkpoints")
    far = ExternalModel(
        "far", "openai", "http://127.0.0.1:1", "far", None, None, (), 0, None, 8, 8, 1, 1
    )
    catalog = Catalog(models, checkpoints, external=[far], aliases=Aliases(data_dir))
    return ModelRegistry(
        catalog, models, checkpoints, device="cpu", max_weight_bytes=max_weight_bytes
    )


def embeddings(model: PreTrainedModel) -> torch.Tensor:
    return model.get_input_embeddings().get_parameter("weight")


def tokens_of(variant: Variant) -> list[int]:
    asked = request(PROMPT, variant, max_new_tokens=10, ignore_eos=True)
    return run(Engine(), asked).tokens[asked.request_id]


def expected(dense: LoadedModel, manifest: Manifest, num_removed: int, *, raw: bool) -> list[int]:
    """What ``generate`` gives for the plain model of dequantized weights."""
    keep = manifest.keep_after(num_removed)
    method = Method.NONE if raw or not num_removed else METHODS[num_removed - 1]
    is_plain = method is Method.NONE
    repaired = repaired_by(method, dense.model, keep) if not is_plain else None
    model = repaired_view(dense.model, keep, repaired) if repaired else view(dense.model, keep)
    for module in block_list(model).modules():
        if isinstance(module, nn.Linear):
            weight = rounded(module.weight, Quantize.INT8).dequantized()
            module._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
    model.generation_config.eos_token_id = None
    return generated(model, PROMPT, 10)


def test_names_mean_int8_forms_that_share_one_copy(
    data_dir: Path, manifest: Manifest, tiny_loaded: LoadedModel
) -> None:
    registry = registry_of(data_dir)
    names = {("tiny+int8", 0, False)}
    names |= {(f"tiny@-{depth}{'+raw' * raw}+int8", depth, raw) for depth in (1, 2, 3)
              for raw in (False, True)}  # fmt: skip
    whole = registry.get("tiny+int8").variant
    tokens_of(whole)  # the first step puts layers side by side
    layers = {layer.values.data_ptr() for layer in quantized_layers(whole.model)}
    for name, depth, raw in sorted(names):
        served = registry.get(name)
        assert served.entry.name == name
        assert tokens_of(served.variant) == expected(tiny_loaded, manifest, depth, raw=raw), name
        own = {each.values.data_ptr() for each in quantized_layers(served.variant.model)} - layers
        assert bool(own) == (depth == 3 and not raw), name  # a refitted matrix
        assert bool(served.variant.own_bytes) == bool(own)
    for suffix, depth in (("", 3), ("-3", 3), ("-2", 2)):
        served = registry.get(f"tiny@prn-1{suffix}+int8")
        assert served.variant is registry.get(f"tiny@-{depth}+int8").variant
    assert list(registry.weight_bytes()) == ["tiny+int8", "tiny@-3+int8"]


def test_both_forms_share_what_is_not_in_blocks(data_dir: Path, manifest: Manifest) -> None:
    registry = registry_of(data_dir)
    dense, int8 = (registry.get(name).variant for name in ("tiny", "tiny+int8"))
    assert manifest.dense_num_parameters is not None
    sizes = registry.weight_bytes()
    assert sizes["tiny"] == 4 * manifest.dense_num_parameters
    layers = quantized_layers(int8.model)
    assert sizes["tiny+int8"] == sum(layer.values.nbytes + layer.scales.nbytes for layer in layers)
    assert embeddings(int8.model) is embeddings(dense.model)


def test_an_int8_form_alone_keeps_no_plain_weights(data_dir: Path, manifest: Manifest) -> None:
    """Its size is known before it is loaded."""
    registry = registry_of(data_dir)
    entry = registry.catalog.resolve("tiny+int8")
    known = registry.int8_bytes(entry)
    assert not registry.is_loaded(entry)
    assert registry.weight_bytes() == {}
    registry.get("tiny+int8")
    assert registry.is_loaded(entry)
    assert not registry.is_loaded(registry.find("tiny"))
    assert registry.weight_bytes() == {"tiny+int8": known}
    assert registry.bytes_of(entry) == known
    assert manifest.dense_num_parameters is not None
    assert known is not None
    assert known < 4 * manifest.dense_num_parameters
    pruned = registry.catalog.resolve("tiny@-2")
    of_pruned = registry.get("tiny@-2+int8").variant.model
    assert registry.int8_bytes(pruned) == sum(
        {weight.data_ptr(): weight.nbytes for weight in of_pruned.parameters()}.values()
    )


def test_it_is_unloaded_by_its_own_name(data_dir: Path, manifest: Manifest) -> None:
    registry = registry_of(data_dir)
    for name in ("tiny", "tiny+int8", f"{manifest.name}+int8"):
        registry.get(name)
    entry = registry.find("tiny+int8")
    assert {variant.name for variant in registry.variants(entry)} == {
        "tiny+int8",
        "tiny@prn-1+int8",
    }
    registry.drop(registry.find("tiny@prn-1+int8"))
    assert [variant.name for variant in registry.variants(entry)] == ["tiny+int8"]
    watched = weakref.ref(quantized_layers(registry.get("tiny+int8").variant.model)[0])
    registry.drop(entry)
    gc.collect()
    assert watched() is None
    assert list(registry.weight_bytes()) == ["tiny"]
    assert registry.is_loaded(registry.find("tiny"))


def test_without_its_parent_a_checkpoint_has_an_int8_form_of_its_own_weights(
    data_dir: Path, manifest: Manifest
) -> None:
    shutil.rmtree(data_dir / "models" / "tiny")
    registry = registry_of(data_dir)
    known = registry.int8_bytes(registry.catalog.resolve(manifest.name))
    served = registry.get(f"{manifest.name}+int8")
    assert served.entry.name == f"{manifest.name}+int8"
    assert registry.weight_bytes() == {f"{manifest.name}+int8": known}
    with pytest.raises(UnknownModel, match="needs its dense model"):
        registry.get(f"{manifest.name}-1+int8")


def test_plain_weights_have_to_fit_beside_it_while_it_is_made(
    data_dir: Path, manifest: Manifest
) -> None:
    assert manifest.dense_num_parameters is not None
    dense_bytes = 4 * manifest.dense_num_parameters
    int8_bytes = registry_of(data_dir).int8_bytes(registry_of(data_dir).catalog.resolve("tiny"))
    assert int8_bytes is not None
    both = dense_bytes + int8_bytes
    with pytest.raises(NoRoomForWeights, match=rf"the weights of 'tiny\+int8' need {both} bytes"):
        registry_of(data_dir, both - 1).get("tiny+int8")
    registry = registry_of(data_dir, both)
    registry.get("tiny+int8")
    with pytest.raises(NoRoomForWeights):
        registry_of(data_dir, both - 1).get("tiny@-2+int8")


def test_plain_weights_that_were_replaced_are_read_again(
    data_dir: Path, tiny_loaded: LoadedModel
) -> None:
    registry = registry_of(data_dir)
    registry.get("tiny")
    shutil.rmtree(data_dir / "models" / "tiny")
    write_tiny_model(data_dir / "models" / "tiny", seed=1)
    made = registry.get("tiny+int8").variant.model
    old = embeddings(registry.get("tiny").variant.model)
    assert torch.equal(old, embeddings(tiny_loaded.model))
    new = embeddings(load(data_dir / "models" / "tiny").model)
    assert torch.equal(embeddings(made), new)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none+int8", "no model named 'none'"),
        ("gpt2+int8", r"'gpt2' cannot be quantized.*use a model of type .*llama"),
        ("far+int8", "'far' runs on an external server.*remove .int8"),
        ("tiny+raw+int8", "a dense model"),
        ("tiny+int8+int8", "no model named"),
        ("tiny@-4+int8", "removal order has 3"),
    ],
)
def test_a_name_without_an_int8_form_is_unknown(
    data_dir: Path, manifest: Manifest, name: str, reason: str
) -> None:
    assert manifest.name == "tiny@prn-1"
    write_checkpoint(data_dir / "models" / "gpt2", "gpt2")
    registry = registry_of(data_dir)
    with pytest.raises(UnknownModel, match=reason):
        registry.get(name)
    assert registry.int8_bytes(registry.catalog.resolve("gpt2")) is None
    assert registry.int8_bytes(registry.catalog.resolve("far")) is None


@pytest.mark.usefixtures("manifest")
def test_an_alias_may_mean_an_int8_form_and_has_one(data_dir: Path) -> None:
    catalog = registry_of(data_dir).catalog
    assert catalog.set_alias("prod", "tiny@-2+raw+int8").name == "tiny@-2+raw+int8"
    assert catalog.aliases() == {"prod": "tiny@prn-1-2+raw+int8"}
    for name in ("prod", "prod+int8"):
        assert catalog.resolve(name).name == "tiny@prn-1-2+raw+int8"
    catalog.set_alias("small", "tiny+int8")
    assert catalog.aliases_of("tiny") == ["prod", "small"]
    catalog.set_alias("big", "tiny")
    assert catalog.resolve("big+int8").name == "tiny+int8"


@pytest.mark.usefixtures("manifest")
def test_it_does_not_claim_the_quality_of_plain_weights(data_dir: Path) -> None:
    catalog = registry_of(data_dir).catalog
    plain, int8 = (catalog.resolve(name) for name in ("tiny@-2", "tiny@-2+int8"))
    assert plain.predicted_speedup is not None
    assert int8.predicted_speedup is None
    assert int8.perplexity is None
    assert int8.domains == ()


def test_the_dense_weights_are_not_changed(data_dir: Path, tiny_loaded: LoadedModel) -> None:
    before = copy.deepcopy(tiny_loaded.model.state_dict())
    loaded = registry_of(data_dir)
    dense = loaded.get("tiny").variant.model
    loaded.get("tiny+int8")
    for name, values in dense.state_dict().items():
        assert torch.equal(values, before[name])
