"""``sleb prune``: prune a model in this process. Imports are lazy."""

from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.options import (
    AsJson,
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
        float | None, typer.Option(help="Stop before pruned / dense perplexity exceeds this.")
    ] = PruneSpec.max_perplexity_ratio,
    target_speedup: Annotated[
        float | None, typer.Option(help="Remove as few blocks as reach this speed-up in decoding.")
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
        int, typer.Option(help="Number of windows, or of rows of raw text.")
    ] = CalibrationSpec.num_samples,
    seqlen: SeqlenOption = CalibrationSpec.seqlen,
    seed: Annotated[
        int, typer.Option(help="Seed of the calibration sample.")
    ] = CalibrationSpec.seed,
    protect_first: ProtectFirstOption = PruneSpec.protect_first,
    protect_last: ProtectLastOption = PruneSpec.protect_last,
    dtype: DtypeOption = PruneSpec.dtype,
    evaluate: Annotated[
        bool, typer.Option(help="Measure the perplexity of every depth at the end.")
    ] = PruneSpec.evaluate,
    metric: MetricOption = PruneSpec.metric,
    search: SearchOption = PruneSpec.search,
    resident: ResidentOption = PruneSpec.resident,
    gate_max_probe_drop: Annotated[
        float | None, typer.Option(help="Maximum loss of the probe's score, 0 to 1.")
    ] = Gate.max_probe_drop,
    gate_max_perplexity_ratio: Annotated[
        float | None, typer.Option(help="Maximum of pruned / dense perplexity on held-out text.")
    ] = Gate.max_perplexity_ratio,
    gate_action: Annotated[
        GateAction,
        typer.Option(help="Beyond a limit: publish with a warning, or refuse to publish."),
    ] = Gate.action,
    quantize: Annotated[
        Quantize | None,
        typer.Option(help="Measure the pruned model with weights of 8 or 4 bits too."),
    ] = PruneSpec.quantize,
    zero_shot: Annotated[
        bool, typer.Option("--zero-shot", help="Measure both models on the paper's five tasks.")
    ] = PruneSpec.zero_shot,
    state_budget: Annotated[
        str | None,
        typer.Option(help="Maximum size of cached hidden states, as 4GiB.", metavar="BYTES"),
    ] = None,
    actors: Annotated[
        int | None, typer.Option(help="Ray actors for the search, 0 for none.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Prune a model in this process, without a server, and write a Hugging Face checkpoint.

    Exactly one of --num-remove, --sparsity, --max-perplexity-ratio and --target-speedup is needed.
    """
    from pruning.config import WorkerSettings

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
    settings = WorkerSettings(**{name: value for name, value in given.items() if value is not None})
    from app.commands.prune import run_prune  # imports torch, after the checks above

    run_prune(spec, out, settings, as_json=as_json)
