"""What a published repair gives back on text of other origin: a loop in plain transformers.

Nothing of the product measures here. The dense model is loaded by transformers, blocks are taken
out of its list, and the tensors of a repair take the place of its own. The share that comes back is
(pruned - repaired) / (pruned - dense), in nats per predicted token. Windows are spread evenly over
each text.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any

import torch
import typer
from safetensors import safe_open
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from benchmarks.reports import facts, table, write

Losses = list[float]  # nats per predicted token of each window


def main(
    checkpoint: Annotated[Path, typer.Option(help="Folder of a published pruned checkpoint.")],
    model: Annotated[Path, typer.Option(help="Folder of its dense model.")],
    text: Annotated[list[str], typer.Option(help="NAME=FILE of a text or .jsonl; repeat it.")],
    out: Annotated[Path, typer.Option(help="Where to write the JSON and the table.")],
    num_windows: int = 8,
    seqlen: int = 512,
    depths: Annotated[str | None, typer.Option(help="Removed blocks; all by default.")] = None,
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    dense = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    removed = json.loads((checkpoint / "manifest.json").read_text())["removed_blocks"]
    numbers = [int(each) for each in depths.split(",")] if depths else range(1, len(removed) + 1)
    windows = {
        name: spread(read(Path(path)), num_windows, seqlen, tokenizer)
        for name, path in (each.split("=", 1) for each in text)
    }
    report = {
        "checkpoint": checkpoint.name,
        "removed": removed,
        "windows": {name: list(ids.shape) for name, ids in windows.items()},
        "dtype": str(dense.dtype).removeprefix("torch."),
        "depths": measured(dense, checkpoint, removed, list(numbers), windows),
        **facts("elsewhere"),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write(report, out, markdown(report["depths"]))


def measured(
    dense: PreTrainedModel,
    checkpoint: Path,
    removed: Sequence[int],
    numbers: Sequence[int],
    windows: Mapping[str, torch.Tensor],
) -> list[dict[str, Any]]:
    """The losses of each depth, raw and repaired, and what came back, for each text."""
    whole = {name: losses(dense, ids) for name, ids in windows.items()}
    depths = []
    for number in numbers:
        with pruned(dense, removed[:number], None):
            raw = {name: losses(dense, ids) for name, ids in windows.items()}
        file = checkpoint / "repair" / f"depth-{number}.safetensors"
        with pruned(dense, removed[:number], file):
            after = {name: losses(dense, ids) for name, ids in windows.items()}
        texts = {name: came_back(whole[name], raw[name], after[name]) for name in windows}
        depths.append({"num_removed": number, "texts": texts})
    return depths


def came_back(dense: Losses, raw: Losses, repaired: Losses) -> dict[str, float]:
    lost = fmean(raw) - fmean(dense)
    gains = [before - after for before, after in zip(raw, repaired, strict=True)]
    error = stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
    return {
        "dense": fmean(dense),
        "raw": fmean(raw),
        "repaired": fmean(repaired),
        "came_back": fmean(gains) / lost,
        "standard_error": error / abs(lost),
    }


def read(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".jsonl":
        return text
    return "\n\n".join(json.loads(line)["text"] for line in text.splitlines() if line.strip())


def spread(
    text: str, num_windows: int, seqlen: int, tokenizer: PreTrainedTokenizerBase
) -> torch.Tensor:
    """Windows ``[num_windows, seqlen]``, evenly spread, with what the tokenizer puts in front."""
    first = tokenizer("").input_ids[:1]  # the BOS, where it adds one
    pieces = [text[at : at + 10_000] for at in range(0, len(text), 10_000)]
    ids = [
        token for each in tokenizer(pieces, add_special_tokens=False).input_ids for token in each
    ]
    size = seqlen - len(first)
    starts = [at * (len(ids) - size) // max(1, num_windows - 1) for at in range(num_windows)]
    return torch.tensor([[*first, *ids[start : start + size]] for start in starts])


@torch.inference_mode()
def losses(model: PreTrainedModel, token_ids: torch.Tensor) -> Losses:
    def of(window: torch.Tensor) -> float:
        logits = model(window.unsqueeze(0), use_cache=False).logits[0, :-1].float()
        return float(nn.functional.cross_entropy(logits, window[1:]))

    return [of(window) for window in token_ids]


@contextmanager
def pruned(model: PreTrainedModel, removed: Sequence[int], repair: Path | None) -> Iterator[None]:
    """Meanwhile the model lacks these blocks, and has what the file of a repair changes."""
    blocks = model.model.layers
    own = dict(model.named_parameters())
    kept = [block for at, block in enumerate(blocks) if at not in removed]
    hooks, before = [], {}
    if repair is not None:
        with safe_open(repair, framework="pt") as file:
            scales = json.loads(file.metadata()["scales"])
            changed = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        hooks = [blocks[at].register_forward_hook(_scaled(factor)) for at, _, factor in scales]
        before = {name: own[name].data for name in changed}
        for name, tensor in changed.items():
            own[name].data = tensor.to(own[name].dtype)
    model.model.layers, model.config.num_hidden_layers = nn.ModuleList(kept), len(kept)
    try:
        yield
    finally:
        model.model.layers, model.config.num_hidden_layers = blocks, len(blocks)
        for name, tensor in before.items():
            own[name].data = tensor
        for hook in hooks:
            hook.remove()


def _scaled(factor: float) -> Any:  # noqa: ANN401 - a hook of torch
    def hook(_block: nn.Module, _inputs: object, output: Any) -> Any:  # noqa: ANN401 - what a block returns
        return output * factor if isinstance(output, torch.Tensor) else (output[0] * factor,)

    return hook


def markdown(depths: Sequence[Mapping[str, Any]]) -> str:
    """A row for each depth: nats of dense, raw and repaired, and the share that came back."""
    rows = []
    for depth in depths:
        for text, of in depth["texts"].items():
            share = f"{of['came_back']:.0%} ± {of['standard_error']:.0%}"
            nats = (f"{of[name]:.3f}" for name in ("dense", "raw", "repaired"))
            rows.append([text, str(depth["num_removed"]), *nats, share])
    return table(("text", "removed", "dense", "pruned", "repaired", "came back"), rows)


if __name__ == "__main__":
    typer.run(main)
