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
            help="NAME, NAME@-3, NAME@JOB, NAME@JOB-3, these with +raw or +int8, or a directory."
        ),
    ],
    out_dir: Annotated[
        Path | None, typer.Argument(help="Directory for the model; optional with --gguf.")
    ] = None,
    dtype: Annotated[
        Dtype,
        typer.Option("--dtype", "--merge-dtype", help="Of the weights; auto is the model's own."),
    ] = "auto",
    max_shard_size: Annotated[
        str, typer.Option(help="Maximum size of a safetensors file, as 2GB.", metavar="BYTES")
    ] = "5GB",
    gguf: Annotated[Path | None, typer.Option(help="Write this file for llama.cpp too.")] = None,
    quantize: Annotated[
        Quantize | None,
        typer.Option(help="Round the blocks' matrices to int8 or int4, and write them for vLLM."),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(help="Write the directory to this URL as well, as s3://BUCKET/NAME."),
    ] = None,
    accept: Annotated[
        bool,
        typer.Option(help="Write quantized weights that raise perplexity by more than 5 % too."),
    ] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing model or file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a dense or pruned model as a Hugging Face directory, and load it to verify it."""
    if out_dir is None and gguf is None and to is None:
        raise typer.BadParameter("expected OUT_DIR, --gguf FILE or --to URL, or several of them")
    url = None if to is None else url_of(to)
    shard_bytes = num_bytes(max_shard_size)
    settings = WorkerSettings()
    with starting():
        from app.commands.export import Export, run_export

    wanted = Export(model, out_dir, gguf, dtype, shard_bytes, overwrite, quantize, url, accept)
    run_export(wanted, settings, as_json=as_json)
