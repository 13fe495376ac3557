"""Checks around the loading of a model, which transformers would only log.

It fills what is missing with random numbers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.models.safetensors_headers import NotAModel, shapes_in
from pruning.models.towers import auto_class, language_config

if TYPE_CHECKING:  # both take seconds to import
    from transformers import PreTrainedConfig, PreTrainedModel

_SLACK = 2**20  # parameters: a small surplus is named key by key, which says more


@contextmanager
def foreign_code(what: str, *but: type[Exception]) -> Iterator[None]:
    """Raise as ``NotAModel`` whatever code raises that runs on files of others.

    The message begins with ``what``. Errors of memory and those of ``but`` stay as they are.
    """
    kept: tuple[type[Exception], ...] = (MemoryError, NotAModel, *but)
    try:
        yield
    except kept:
        raise
    except Exception as error:
        raise NotAModel(f"{what}: {error}") from error


def check_size(path: Path, config: "PreTrainedConfig") -> None:
    """Raise ``NotAModel`` if the config describes a far larger model than the files hold.

    transformers would fill all of it with random numbers before the keys are compared.
    """
    import torch  # noqa: PLC0415 - takes seconds

    shapes = [shape for file in path.glob("*.safetensors") for _, shape in shapes_in(file)]
    num_stored, num_tensors = sum(map(prod, shapes)), len(shapes)
    towers = (language_config(config), getattr(config, "vision_config", None))
    num_blocks = max(getattr(tower, "num_hidden_layers", 0) for tower in towers)
    if num_blocks > num_tensors:
        raise NotAModel(
            f"{path}: config and weights do not match ({num_blocks} blocks, {num_tensors} "
            "tensors): save the model again"
        )
    with torch.device("meta"):
        model = auto_class(config).from_config(config, trust_remote_code=False)
    number = sum(parameter.numel() for parameter in model.parameters())
    if number > 2 * num_stored + _SLACK:
        raise NotAModel(
            f"{path}: config and weights do not match ({number} parameters, {num_stored} "
            "stored values): save the model again"
        )


def load_strictly(path: Path, kind: Any, **options: Any) -> Any:  # noqa: ANN401 - transformers has no types for them
    """The model in the directory by this class of transformers, from safetensors alone.

    Raises ``NotAModel`` if a key is missing, unexpected or of the wrong shape, and what the class
    raises.
    """
    model, report = kind.from_pretrained(
        path,
        use_safetensors=True,
        output_loading_info=True,
        trust_remote_code=False,
        local_files_only=True,
        use_kernels=False,  # by default, transformers downloads compiled code and runs it
        **options,
    )
    refuse_wrong_keys(path, report)
    return model


def refuse_wrong_keys(path: Path, report: dict[str, Any]) -> None:
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if keys := sorted(str(key) for key in report.get(kind, ())):
            raise NotAModel(
                f"{path}: config and weights do not match, {len(keys)} {kind.replace('_', ' ')} "
                f"({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}): save the model "
                "again"
            )


def refuse_wrong_buffers(path: Path, model: "PreTrainedModel") -> None:
    """Buffers are computed from the config, as the frequencies of positions are."""
    for name, buffer in model.named_buffers():
        if not buffer.is_meta and not buffer.isfinite().all():
            raise NotAModel(f"{path}/config.json: {name} is not finite with these settings")
