"""Int8 weights against plain ones: decode steps in alternating turns, and held-out perplexity.

Both forms run in one engine process on the same prompts, first few sequences and then many. The
products that were chosen for each shape of matrix are part of the report.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from app.engine.autotuning import Autotuner
from app.engine.engine import Engine
from app.engine.kernels.int8 import chosen_names, int8_model
from app.engine.scheduling.scheduler import EngineLimits
from app.engine.variant import Variant, make_variant
from benchmarks.model import model_store
from benchmarks.reports import facts, write
from benchmarks.steady import SteadyBatch, steady_output_len, steps_in_turn
from benchmarks.workload import Prompts
from pruning.config import Settings
from pruning.data.texts import default_seqlen, text_windows
from pruning.evaluation.perplexity import measure_perplexity
from pruning.evaluation.quality import Perplexity, text_of
from pruning.models.forward import InMemoryForward
from pruning.models.quantize import quantized_layers
from pruning.models.store import LoadedModel, set_up_torch
from pruning.spec.calibration import PACKAGED

_SIDES = ("plain", "int8")
_MIN_RATIOS = {1: 1.5, 64: 0.95}  # of int8 over plain, by sequences
_MAX_PERPLEXITY_RATIO = 1.01


def main(
    out: Annotated[Path, typer.Option(help="Where to write the JSON; a table goes beside it.")],
    model: Annotated[str, typer.Option(help="A dense model, by name or directory.")] = (
        "smollm2-135m"
    ),
    sequences: Annotated[str, typer.Option(help="Numbers of sequences in a step.")] = "1,64",
    turns: Annotated[int, typer.Option(min=2, help="Turns of each side.")] = 10,
    steps: Annotated[int, typer.Option(min=1, help="Decode steps of a turn.")] = 8,
    prompt_len: int = 64,
    num_windows: Annotated[
        int, typer.Option(min=1, help="Held-out windows of each packaged text.")
    ] = 8,
    seqlen: Annotated[int, typer.Option(min=2, help="Tokens of a window.")] = 512,
    seed: int = 0,
) -> None:
    """Measure int8 against plain weights, and compare with what int8 has to reach."""
    out.parent.mkdir(parents=True, exist_ok=True)  # fails before the measurement, not after it
    settings = Settings()
    loaded = model_store(model).load(model, device=settings.device)
    set_up_torch(settings.threads)
    tuner = Autotuner()
    int8 = int8_model(loaded.model, tuner)
    sides = {
        "plain": make_variant(model, model, loaded.model),
        "int8": make_variant(f"{model}+int8", model, int8),
    }
    prompts = Prompts(loaded.tokenizer, seed)
    found = [
        _steps(sides, prompts, int(number), (prompt_len, turns, steps), tuner)
        for number in sequences.split(",")
    ]
    texts = _perplexities(loaded, sides, settings, (num_windows, seqlen))
    report = {
        "steps": found,
        "perplexity": texts,
        "passes": _passes(found, texts),
        "products": chosen_names(quantized_layers(int8)),
        "weight_bytes": {name: _num_bytes(variant) for name, variant in sides.items()},
        "model": model,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        **facts("int8"),
    }
    text = markdown(report)
    write(report, out, text)
    Console().print(text, markup=False, soft_wrap=True)


def _steps(
    sides: Mapping[str, Variant],
    prompts: Prompts,
    batch_size: int,
    sizes: tuple[int, int, int],
    tuner: Autotuner,
) -> dict[str, Any]:
    """Seconds of decode steps: of each turn the median, and the ratio of adjacent turns."""
    prompt_len, turns, steps = sizes
    output_len = steady_output_len(batch_size, (turns + 1) * steps)
    requests = prompts.uniform(batch_size, prompt_len, output_len)

    def make_engine(limits: EngineLimits) -> Engine:
        engine = Engine(limits, tuner=tuner)
        engine.kernels.finish(*sides.values())
        return engine

    batches = {name: SteadyBatch(variant, requests, make_engine) for name, variant in sides.items()}
    return {"sequences": batch_size, **steps_in_turn(batches, turns, steps)}


def _perplexities(
    loaded: LoadedModel, sides: Mapping[str, Variant], settings: Settings, sizes: tuple[int, int]
) -> list[dict[str, Any]]:
    num_windows, seqlen = sizes[0], min(sizes[1], default_seqlen(loaded.model))
    found = []
    for text in PACKAGED:
        windows = text_windows(
            text,
            settings.data_dir / "texts",
            loaded.model,
            loaded.tokenizer,
            seqlen=seqlen,
            num_windows=num_windows,
        )
        plain, int8 = (
            measure_perplexity(InMemoryForward(sides[name].model), windows) for name in _SIDES
        )
        found.append(_pair(plain, int8))
    return found


def _pair(plain: Perplexity, int8: Perplexity) -> dict[str, Any]:
    return {
        "text": text_of(plain.text, plain.num_windows, plain.seqlen),
        "plain": plain.perplexity,
        "int8": int8.perplexity,
        "ratio": int8.perplexity / plain.perplexity,
    }


def _passes(steps: Sequence[Mapping[str, Any]], texts: Sequence[Mapping[str, Any]]) -> bool:
    """Whether every figure that has a target reaches it."""
    is_fast = all(one["ratio"] >= _MIN_RATIOS.get(one["sequences"], 0) for one in steps)
    return is_fast and all(one["ratio"] <= _MAX_PERPLEXITY_RATIO for one in texts)


def markdown(report: Mapping[str, Any]) -> str:
    lines = [
        f"# Int8 weights of {report['model']}, against {report['dtype']}",
        "",
        "| sequences | plain, ms a step | int8, ms a step | plain / int8 | needed |",
        "|--:|--:|--:|--:|--:|",
    ]
    for one in report["steps"]:
        plain_ms, int8_ms = (1e3 * one["step_s"][name] for name in _SIDES)
        needed = _MIN_RATIOS.get(one["sequences"], "")
        times = f"{one['sequences']} | {plain_ms:.1f} | {int8_ms:.1f}"
        lines.append(f"| {times} | {one['ratio']:.2f} | {needed} |")
    lines += ["", "| text | plain | int8 | ratio, at most 1.01 |", "|---|--:|--:|--:|"]
    lines += [
        f"| {one['text']} | {one['plain']:.3f} | {one['int8']:.3f} | {one['ratio']:.4f} |"
        for one in report["perplexity"]
    ]
    plain_bytes, int8_bytes = (report["weight_bytes"][name] for name in _SIDES)
    lines += ["", f"Weights: {plain_bytes:,} bytes plain, {int8_bytes:,} with int8.", ""]
    lines += ["Chosen products, by outputs x inputs, for 1, 2, 4 ... rows:", ""]
    lines += [f"- {shape}: {', '.join(names)}" for shape, names in report["products"].items()]
    return "\n".join(lines) + "\n"


def _num_bytes(variant: Variant) -> int:
    return sum(weight.nbytes for weight in variant.model.parameters())


if __name__ == "__main__":
    typer.run(main)
