"""``sleb export``: write a model for other programs. Imports are lazy."""

from pathlib import Path
from typing import Annotated

import typer

from app.cli.options import AsJson, num_bytes, url_of
from app.terminal import starting
from pruning.config import WorkerSettings
from pruning.spec.prune import Dtype, Quantize


def export(
    model: Annotated[
        str,
        typer.Argument(
            help="NAME, NAME@-3, NAME@JOB or NAME@JOB-3, each optionally with +raw or +int8; or "
            "a directory."
        ),
    ],
    out_dir: Annotated[
        Path | None, typer.Argument(help="Output directory; optional with --gguf or --to.")
    ] = None,
    dtype: Annotated[
        Dtype,
        typer.Option(
            "--dtype", "--merge-dtype", help="dtype of the weights; auto uses the model's dtype."
        ),
    ] = "auto",
    max_shard_size: Annotated[
        str, typer.Option(help="Maximum size of a safetensors file, e.g. 2GB.", metavar="BYTES")
    ] = "5GB",
    gguf: Annotated[Path | None, typer.Option(help="Also write a GGUF file for llama.cpp.")] = None,
    quantize: Annotated[
        Quantize | None,
        typer.Option(
            help="Quantize the weight matrices of the blocks to int8 or int4, in the format "
            "that vLLM reads."
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(help="Also upload the directory to this URL, e.g. s3://BUCKET/NAME."),
    ] = None,
    accept: Annotated[
        bool,
        typer.Option(help="Also write quantized weights that raise perplexity by more than 5 %."),
    ] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing model or file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Export a dense or pruned model as a Hugging Face directory, and verify that it loads."""
    if out_dir is None and gguf is None and to is None:
        raise typer.BadParameter(
            "no output given: expected at least one of OUT_DIR, --gguf FILE and --to URL"
        )
    url = None if to is None else url_of(to)
    shard_bytes = num_bytes(max_shard_size)
    settings = WorkerSettings()
    with starting():
        from app.commands.export import Export, run_export

    wanted = Export(model, out_dir, gguf, dtype, shard_bytes, overwrite, quantize, url, accept)
    run_export(wanted, settings, as_json=as_json)
