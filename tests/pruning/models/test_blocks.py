"""For every family, a view is exact, shares all tensors, and does not change the model."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from pruning.models.architectures import (
    ARCHITECTURES,
    UnknownArchitecture,
    UnsupportedConfig,
    architecture,
    unknown_architecture,
)
from pruning.models.blocks import (
    block_calls,
    block_list,
    final_logits,
    finish,
    num_blocks,
    pruned_config,
    view,
)
from pruning.models.loss import last_hidden
from tests.support.logits import logits_of, token_ids
from tests.support.tiny import (
    CONFIGS,
    NUM_BLOCKS,
    SWITCHED,
    SWITCHES,
    generated,
    tiny_model,
)


def load_model(path: Path) -> PreTrainedModel:
    loaded: Any = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    model, report = loaded
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert isinstance(model, PreTrainedModel)
    return model


KEEP = (0, 1, 3, 5)
FAMILIES = (*sorted(ARCHITECTURES), *SWITCHED)


@pytest.mark.parametrize("family", FAMILIES)
class TestEveryFamily:
    def test_a_view_shares_every_parameter_by_address(self, family: str) -> None:
        dense = tiny_model(family)
        addresses = {parameter.data_ptr() for parameter in dense.parameters()}
        pruned = view(dense, KEEP)
        assert {parameter.data_ptr() for parameter in pruned.parameters()} <= addresses
        assert num_blocks(pruned) == len(KEEP)
        assert num_blocks(dense) == NUM_BLOCKS

    def test_the_dense_model_stays_as_it_was_to_the_last_bit(self, family: str) -> None:
        dense, ids = tiny_model(family), token_ids()
        before, text = logits_of(dense, ids), generated(dense, ids[0].tolist(), 8)
        pruned = view(dense, KEEP)
        generated(pruned, ids[0].tolist(), 8)
        assert torch.equal(logits_of(dense, ids), before)
        assert generated(dense, ids[0].tolist(), 8) == text
        assert not torch.equal(logits_of(pruned, ids), before)

    def test_a_view_of_all_blocks_is_the_dense_model(self, family: str) -> None:
        dense, ids = tiny_model(family), token_ids()
        assert torch.equal(logits_of(view(dense, range(NUM_BLOCKS)), ids), logits_of(dense, ids))

    def test_a_view_of_a_view_is_a_view(self, family: str) -> None:
        dense, ids = tiny_model(family), token_ids()
        twice = view(view(dense, KEEP), (0, 2, 3))
        assert torch.equal(logits_of(twice, ids), logits_of(view(dense, (0, 3, 5)), ids))

    def test_cached_decoding_equals_uncached(self, family: str) -> None:
        pruned, prompt = view(tiny_model(family), KEEP), token_ids(1)
        tokens = generated(pruned, prompt[0].tolist(), 8)
        ids = prompt
        for token in tokens:
            assert int(logits_of(pruned, ids)[0, -1].argmax()) == token
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)

    @pytest.mark.contract
    def test_saved_and_loaded_it_is_the_same_model(self, family: str, tmp_path: Path) -> None:
        pruned, ids = view(tiny_model(family), KEEP), token_ids()
        pruned.save_pretrained(tmp_path)
        loaded = load_model(tmp_path)
        torch.testing.assert_close(logits_of(loaded, ids), logits_of(pruned, ids))
        assert generated(loaded, ids[0].tolist(), 8) == generated(pruned, ids[0].tolist(), 8)

    def test_a_scale_multiplies_the_input_of_a_block(self, family: str) -> None:
        dense, ids = tiny_model(family), token_ids()
        scaled = view(dense, KEEP, scales={3: 1.5})
        with torch.inference_mode():
            hidden, calls = block_calls(dense, ids)
            for block in KEEP:
                hidden = calls[block](hidden * 1.5 if block == 3 else hidden)
            expected = final_logits(dense, finish(dense, hidden))
            torch.testing.assert_close(logits_of(scaled, ids), expected)
            hidden, calls = block_calls(scaled, ids)
            for call in calls:
                hidden = call(hidden)
            found = final_logits(scaled, finish(scaled, hidden))
        torch.testing.assert_close(found, expected)
        assert not torch.equal(logits_of(view(dense, KEEP), ids), expected)
        twice = view(scaled, range(len(KEEP)))
        assert torch.equal(logits_of(twice, ids), logits_of(scaled, ids))

    @pytest.mark.contract
    def test_config_and_its_lists_tell_of_the_kept_blocks(self, family: str) -> None:
        dense = tiny_model(family)
        pruned = view(dense, KEEP)
        assert pruned.config.num_hidden_layers == len(KEEP)
        assert dense.config.num_hidden_layers == NUM_BLOCKS
        for key in architecture(dense.config).per_block:
            if (entries := getattr(dense.config, key, None)) is not None:
                assert getattr(pruned.config, key) == [entries[index] for index in KEEP]
                assert len(entries) == NUM_BLOCKS

    def test_a_written_config_names_no_period(self, family: str, tmp_path: Path) -> None:
        """Only the lists of the kept blocks are true, also in a view of a pruned checkpoint."""
        view(tiny_model(family), KEEP).save_pretrained(tmp_path / "pruned")
        pruned = load_model(tmp_path / "pruned")
        view(pruned, range(len(KEEP))).save_pretrained(tmp_path / "again")
        for written in tmp_path.glob("*/config.json"):
            text = written.read_text(encoding="utf-8")
            assert not re.search(r'"_?sliding_window_pattern"', text)
            assert "no_rope_layer_interval" not in text

    def test_every_module_of_a_block_knows_its_new_place(self, family: str) -> None:
        for position, block in enumerate(block_list(view(tiny_model(family), KEEP))):
            places = {m.__dict__["layer_idx"] for m in block.modules() if "layer_idx" in m.__dict__}
            assert places <= {position}

    @pytest.mark.contract
    def test_blocks_called_one_by_one_give_the_models_logits(self, family: str) -> None:
        """Calls of one window run on more windows, and are recorded without running a block."""
        dense, ids = tiny_model(family), token_ids(rows=3)
        ran: list[object] = []
        hooks = [b.register_forward_hook(lambda *_: ran.append(1)) for b in block_list(dense)]
        with torch.inference_mode():
            hidden, calls = block_calls(dense, ids)
            assert not ran
            for call in calls:
                hidden = call(hidden)
            found = final_logits(dense, finish(dense, hidden))
        for hook in hooks:
            hook.remove()
        torch.testing.assert_close(found, logits_of(dense, ids))

    def test_logits_of_the_last_hidden_states_are_the_models_own(self, family: str) -> None:
        pruned, ids = view(tiny_model(family), KEEP), token_ids()
        with torch.inference_mode():
            found = final_logits(pruned, last_hidden(pruned, ids))
        assert torch.equal(found, logits_of(pruned, ids))


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_blocks_behind_a_boundary_are_those_behind_it_in_the_dense_model(family: str) -> None:
    settings = {"num_hidden_layers": NUM_BLOCKS, "sliding_window": 4, "use_sliding_window": True}
    dense = AutoConfig.for_model(family, max_window_layers=2, **settings)
    pruned = pruned_config(dense, KEEP[1:])
    derived = AutoConfig.for_model(
        family, **(settings | {"num_hidden_layers": 3}), max_window_layers=1
    )
    assert pruned.max_window_layers == 1
    assert pruned.layer_types == derived.layer_types


@pytest.mark.parametrize(("keep", "places"), [(KEEP, [0]), ((2, 3, 5), [0]), ((1, 3), [])])
def test_blocks_that_the_config_lists_are_listed_by_their_new_places(
    keep: tuple[int, ...], places: list[int]
) -> None:
    dense = tiny_model("flint").config
    assert dense.mlp_only_layers == [0, 2]
    assert pruned_config(dense, keep).mlp_only_layers == places


@pytest.mark.parametrize("keep", [(), (1, 0), (0, 0), (-1, 2), (0, NUM_BLOCKS)])
def test_keep_must_be_ascending_blocks_of_the_model(keep: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="ascending"):
        view(tiny_model("llama"), keep)


def test_an_unknown_family_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(UnknownArchitecture, match=r"'mamba'.*llama.*qwen3"):
        architecture(AutoConfig.for_model("mamba"))


def test_weights_that_depend_on_their_depth_are_refused() -> None:
    config = AutoConfig.for_model("gpt2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(UnsupportedConfig, match="scale_attn_by_inverse_layer_idx"):
        architecture(config)


def test_the_error_names_the_nearest_family_and_what_differs() -> None:
    config = AutoConfig.for_model("ernie4_5_moe")
    with pytest.raises(UnknownArchitecture, match=r"nearest .* 'ernie4_5', .* moe_k"):
        architecture(config)
    with pytest.raises(UnknownArchitecture, match=r"nearest .* not have .*global_attn_every_n"):
        architecture(AutoConfig.for_model("afmoe"))
    of_gemma4 = str(unknown_architecture("gemma4_assistant", {"num_heads_of_it": 3}))
    assert "'gemma4_text', which does not have num_heads_of_it)" in of_gemma4
    assert "nearest" not in str(unknown_architecture("no-such-model"))


def test_a_mechanism_that_is_not_served_is_refused() -> None:
    with pytest.raises(UnsupportedConfig, match=r"falcon with alibi=true .* only alibi=false is"):
        architecture(AutoConfig.for_model("falcon", alibi=True))


@pytest.mark.parametrize(
    ("switch", "value"),
    [
        ("hidden_size_per_layer_input", 256),
        ("num_kv_shared_layers", 10),
        ("use_bidirectional_attention", "all"),
    ],
)
def test_blocks_that_read_more_than_hidden_states_are_refused(switch: str, value: object) -> None:
    settings = {"hidden_size_per_layer_input": 0, switch: value}
    with pytest.raises(
        UnsupportedConfig, match=r"gemma4_text with \w+=(256|10|false) is not supported"
    ):
        architecture(AutoConfig.for_model("gemma4_text", **settings))


@pytest.mark.parametrize(
    ("switch", "value"), [("mlp_only_layers", [0, 2]), ("decoder_sparse_step", 2)]
)
@pytest.mark.parametrize("family", ["qwen2_moe", "qwen3_moe"])
def test_blocks_that_are_of_two_kinds_by_their_depth_are_refused(
    family: str, switch: str, value: object
) -> None:
    assert architecture(AutoConfig.for_model(family)) is ARCHITECTURES[family]
    config = AutoConfig.for_model(family, **{switch: value})
    with pytest.raises(
        UnsupportedConfig, match=rf"{family} with {switch}=.*only {switch}=(\[\]|1)"
    ):
        architecture(config)


# Caches, heads of other tasks, attention to an encoder, and what ``architecture`` refuses
NOT_IN_BLOCKS = {"use_cache", "tie_word_embeddings", "output_router_logits", "is_decoder",
                 "add_cross_attention", "summary_use_proj", "summary_proj_to_labels",
                 "scale_attn_by_inverse_layer_idx", "use_bidirectional_attention",
                 "alibi", "moe_shared_expert_overlap", "rescale_prenorm_residual",
                 "residual_in_fp32", "use_mamba_kernels"}  # fmt: skip


@pytest.mark.parametrize("family", ARCHITECTURES)
@pytest.mark.contract
def test_a_tiny_model_exists_for_every_switch_of_a_config(family: str) -> None:
    config, inherited = AutoConfig.for_model(family).to_dict(), PreTrainedConfig().to_dict()
    switches = {key for key, value in config.items() if isinstance(value, bool)}
    tried = SWITCHES.get(family, {}).keys() | CONFIGS[family].keys()
    assert switches - inherited.keys() - NOT_IN_BLOCKS <= tried
