"""``sleb prune``: a pruning run as the user asks for it. Imports of weight are lazy."""

from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.options import (
    DtypeOption,
    MetricOption,
    ModelArgument,
    ProtectFirstOption,
    ProtectLastOption,
    ResidentOption,
    SamplingOption,
    SearchOption,
    SeqlenOption,
    calibration_of,
)
from pruning.spec.calibration import CalibrationSpec
from pruning.spec.gate import Gate, GateAction, gate_of
from pruning.spec.prune import PruneSpec, Quantize


def prune(
    model: ModelArgument,
    out: Annotated[Path, typer.Option(help="Directory to publish the checkpoint in.")],
    num_remove: Annotated[
        int | None, typer.Option(help="How many blocks to remove.")
    ] = PruneSpec.num_remove,
    sparsity: Annotated[
        float | None, typer.Option(help="Share of the blocks to remove, rounded up.")
    ] = PruneSpec.sparsity,
    max_perplexity_ratio: Annotated[
        float | None, typer.Option(help="Stop before pruned / dense perplexity passes this.")
    ] = PruneSpec.max_perplexity_ratio,
    target_speedup: Annotated[
        float | None, typer.Option(help="Remove the fewest blocks that decode this much faster.")
    ] = PruneSpec.target_speedup,
    calibration: Annotated[
        list[str],
        typer.Option(
            help="A text or jsonl file, or self, wikitext2, c4; several are mixed, as in "
            "--calibration A.txt --calibration B.txt=2.",
            metavar="TEXT[=WEIGHT]",
        ),
    ] = [CalibrationSpec.dataset.value],  # noqa: B006 - typer needs a list, and never changes it
    sampling: SamplingOption = CalibrationSpec.sampling,
    num_samples: Annotated[
        int, typer.Option(help="Windows, or rows of raw text.")
    ] = CalibrationSpec.num_samples,
    seqlen: SeqlenOption = CalibrationSpec.seqlen,
    seed: Annotated[int, typer.Option(help="Of the calibration sample.")] = CalibrationSpec.seed,
    protect_first: ProtectFirstOption = PruneSpec.protect_first,
    protect_last: ProtectLastOption = PruneSpec.protect_last,
    dtype: DtypeOption = PruneSpec.dtype,
    evaluate: Annotated[
        bool, typer.Option(help="Perplexity of every depth at the end.")
    ] = PruneSpec.evaluate,
    metric: MetricOption = PruneSpec.metric,
    search: SearchOption = PruneSpec.search,
    resident: ResidentOption = PruneSpec.resident,
    gate_max_probe_drop: Annotated[
        float | None, typer.Option(help="How much of the probe's score, 0 to 1, may be lost.")
    ] = Gate.max_probe_drop,
    gate_max_perplexity_ratio: Annotated[
        float | None, typer.Option(help="Pruned / dense perplexity on held-out text, at most.")
    ] = Gate.max_perplexity_ratio,
    gate_action: Annotated[
        GateAction, typer.Option(help="What comes of more: publish with a warning, or not at all.")
    ] = Gate.action,
    quantize: Annotated[
        Quantize | None,
        typer.Option(help="Measure the pruned model with weights of 8 or 4 bits as well."),
    ] = PruneSpec.quantize,
    zero_shot: Annotated[
        bool, typer.Option("--zero-shot", help="Ask the paper's five tasks of dense and pruned.")
    ] = PruneSpec.zero_shot,
    state_budget: Annotated[
        str | None, typer.Option(help="Bytes of hidden states to keep, as 4GiB.", metavar="BYTES")
    ] = None,
    actors: Annotated[int | None, typer.Option(help="Ray actors to search on, 0 for none.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Prune a model here and now, without any server, and write a Hugging Face checkpoint.

    One of --num-remove, --sparsity, --max-perplexity-ratio and --target-speedup says how far to go.
    """
    from pruning.config import Settings

    spec = PruneSpec(
        model=model,
        num_remove=num_remove,
        sparsity=sparsity,
        max_perplexity_ratio=max_perplexity_ratio,
        target_speedup=target_speedup,
        calibration=calibration_of(calibration, sampling, num_samples, seqlen, seed),
        protect_first=protect_first,
        protect_last=protect_last,
        dtype=dtype,
        evaluate=evaluate,
        metric=metric,
        search=search,
        resident=resident,
        gate=gate_of(gate_max_probe_drop, gate_max_perplexity_ratio, gate_action),
        quantize=quantize,
        zero_shot=zero_shot,
    )
    given: dict[str, Any] = {"state_budget": state_budget, "num_actors": actors}
    settings = Settings(**{name: value for name, value in given.items() if value is not None})
    from app.commands.prune import run_prune  # brings torch: what is wrong above is told without it

    run_prune(spec, out, settings, as_json=as_json)
