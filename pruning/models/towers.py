"""Models with a tower for images: the language tower alone is pruned, served and measured.

The tower is a language model of a supported family, made of the parameters that it has within the
whole model. The rest of a checkpoint stays on disk; a pruned one gets it unchanged.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.models.stored_buffers import as_parameters

if TYPE_CHECKING:  # both take seconds to import
    from transformers import PreTrainedConfig, PreTrainedModel

# Types of models with a language tower, which `language_config` finds in their config.
TOWERS = frozenset(
    {"gemma3", "gemma4", "gemma4_unified", "idefics3", "internvl", "lfm2_vl", "llava",
     "llava_next", "llava_onevision", "mistral3", "qwen2_5_vl", "qwen2_vl", "qwen3_5",
     "qwen3_5_moe", "qwen3_vl", "smolvlm"}
)  # fmt: skip
# Towers that compute what another family does, if all positions are those of text.
_SAME_AS: Mapping[str, str] = {
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
}
_OF_IMAGES = ("mrope_section", "mrope_interleaved")  # how rotations are split among the axes


def language_config(config: "PreTrainedConfig") -> "PreTrainedConfig":
    """The config of the language tower; another model's is returned as it is."""
    if config.model_type not in TOWERS:
        return config
    text = _as_language_model(config.get_text_config(decoder=True))
    text.dtype = config.dtype or text.dtype
    if (quantization := getattr(config, "quantization_config", None)) is not None:
        text.quantization_config = quantization
    return text


def language_model(whole: "PreTrainedModel") -> "PreTrainedModel":
    """The language tower as a model that shares its parameters; another model as it is."""
    import torch  # noqa: PLC0415 - takes seconds
    from accelerate import init_empty_weights  # noqa: PLC0415 - as above
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - as above

    if whole.config.model_type not in TOWERS:
        return whole
    config = language_config(whole.config)
    head = whole.get_output_embeddings()
    config.tie_word_embeddings = head.weight is whole.get_input_embeddings().weight
    with init_empty_weights(include_buffers=False):
        made: Any = AutoModelForCausalLM.from_config(config, dtype=whole.dtype)
    as_parameters(made)
    model: PreTrainedModel = made
    names = language_names(whole)
    parameters = dict(whole.named_parameters(remove_duplicate=False))
    for name, inner in names.items():
        parent, _, leaf = inner.rpartition(".")
        owner = model.get_submodule(parent)
        if not isinstance(owner._parameters.get(leaf), torch.nn.Parameter):
            raise ValueError(f"{inner} is no parameter of a {type(model).__name__}")
        owner._parameters[leaf] = parameters[name]
    model.generation_config = whole.generation_config
    return model


def language_names(whole: "PreTrainedModel") -> dict[str, str]:
    """Names of parameters in ``whole``, and those that ``language_model`` has for them."""
    if whole.config.model_type not in TOWERS:
        return {name: name for name, _ in whole.named_parameters(remove_duplicate=False)}
    modules = {id(module): name for name, module in whole.named_modules()}
    decoder = f"{modules[id(whole.get_decoder())]}."
    head = f"{modules[id(whole.get_output_embeddings())]}."
    names = {}
    for name, _ in whole.named_parameters(remove_duplicate=False):
        if name.startswith(decoder):
            names[name] = f"model.{name.removeprefix(decoder)}"
        elif name.startswith(head):
            names[name] = f"lm_head.{name.removeprefix(head)}"
    return names


def whole_config(path: Path) -> "PreTrainedConfig":
    """The config of the directory as it is. Raises what transformers raises."""
    from transformers import AutoConfig  # noqa: PLC0415 - takes seconds

    config: PreTrainedConfig = AutoConfig.from_pretrained(path, trust_remote_code=False)
    return config


def whole_without_weights(path: Path, model: "PreTrainedModel") -> "PreTrainedModel":
    """The whole model in the directory, without weights; ``model`` itself if it is whole."""
    import torch  # noqa: PLC0415 - takes seconds

    config = whole_config(path)
    if config.model_type not in TOWERS:
        return model
    with torch.device("meta"):
        whole: PreTrainedModel = auto_class(config).from_config(config, dtype=model.dtype)
    as_parameters(whole)
    return whole


def tower_type(path: Path) -> str | None:
    """The type of the whole model in the directory; None for a language model."""
    config = whole_config(path)
    return config.model_type if config.model_type in TOWERS else None


def auto_class(config: "PreTrainedConfig") -> Any:  # noqa: ANN401 - transformers has no type for it
    """The class of transformers that loads the whole model of this config."""
    from transformers import (  # noqa: PLC0415 - takes seconds
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    return AutoModelForImageTextToText if config.model_type in TOWERS else AutoModelForCausalLM


def _as_language_model(text: "PreTrainedConfig") -> "PreTrainedConfig":
    """A copy of the config, as that of the family whose blocks compute the same."""
    from transformers import AutoConfig  # noqa: PLC0415 - takes seconds

    if (same := _SAME_AS.get(text.model_type)) is None:
        return copy.deepcopy(text)
    fields = {key: value for key, value in text.to_dict().items() if key != "model_type"}
    rope = {k: v for k, v in fields["rope_parameters"].items() if k not in _OF_IMAGES}
    config: PreTrainedConfig = AutoConfig.for_model(same, **{**fields, "rope_parameters": rope})
    return config
