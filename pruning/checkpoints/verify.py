"""Verify before publishing that a checkpoint loads as the model that was measured.

A fresh process loads it as a user would, which shares nothing with the model in memory. It runs
``python -m pruning.checkpoints.verify DIRECTORY EXPECTATION VERDICT PARENT``, and writes what
differs to ``VERDICT``.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, GenerationConfig, GenerationMixin, PreTrainedModel

from pruning.checkpoints.quantized import load_quantized
from pruning.checkpoints.staging import scratch_for
from pruning.checkpoints.verify_expected import (
    Expectation,
    companions,
    digest,
    expectation,
    logits_of,
    others_of,
    sample_ids,
)
from pruning.config import Verify
from pruning.environment import offline_environment
from pruning.models.blocks import NO_OWN, Own, num_blocks
from pruning.models.forward import StreamedForward
from pruning.models.store import load_tokenizer, load_whole, read_config, set_up_torch
from pruning.models.streaming import StreamedModel
from pruning.models.towers import language_model
from pruning.plural import counted
from pruning.process import end_with_parent, hide_gguf_bar
from pruning.search.dense_model import DenseModel
from pruning.sleb import Blocks
from pruning.spec.prune import Quantize

POLL_S = 1.0
_LIMIT_S = 600
_BYTES_PER_S = 20e6  # that the slowest disk is taken to give, on top of that
# Allowed difference of logits, relative to the largest. On one device they are usually equal.
TOLERANCES: Mapping[str, float] = {
    "float64": 1e-9,
    "float32": 1e-4,
    "float16": 1e-2,
    "bfloat16": 5e-2,
}
_MAX_NAMED = 3  # weights in a message
_WHOLE = (
    "files as a whole, and there is not enough memory: free some, or set SLEB_VERIFY=off to skip "
    "this check"
)


class CheckpointNotPortable(RuntimeError):
    """The written files do not load as the model that they were written from."""


def verify_portable(
    directory: Path,
    dense: DenseModel,
    keep: Blocks,
    own: Own = NO_OWN,
    *,
    quantize: Quantize | None = None,
    how: Verify = Verify.PROCESS,
    ask: Callable[[], object] = lambda: None,
) -> None:
    """Load the checkpoint that keeps these blocks from ``directory`` and compare it with ``dense``.

    ``own`` are the tensors that its repair has changed, and ``quantize`` is what its weights were
    rounded to. While a process does it, ``ask`` is asked once a second, and what it raises ends
    that. Raises ``CheckpointNotPortable``, which says what differs.
    """
    if how is Verify.OFF:
        return
    expected = expectation(dense, keep, own, quantize)
    try:
        if how is Verify.INLINE:
            compare(directory, expected)
        else:
            _in_a_fresh_process(directory, expected, ask)
    except CheckpointNotPortable as error:
        raise CheckpointNotPortable(
            f"not published, because the written files do not match the measured model: {error}"
        ) from error


def _in_a_fresh_process(directory: Path, expected: Expectation, ask: Callable[[], object]) -> None:
    with scratch_for(directory) as scratch:  # swept if this process is killed
        file, verdict, log = (scratch / name for name in ("expected", "verdict", "log"))
        expected.save(file)
        command = [sys.executable, "-m", "pruning.checkpoints.verify"]
        arguments = [str(directory), str(file), str(verdict), str(os.getpid())]
        with log.open("wb") as errors:
            process = subprocess.Popen(  # noqa: S603 - our own module, over our own files
                [*command, *arguments],
                env=offline_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        try:
            num_bytes = sum(weights.stat().st_size for weights in directory.glob("*.safetensors"))
            code = _ended(process, _LIMIT_S + num_bytes / _BYTES_PER_S, ask)
        finally:
            process.kill()
            process.wait()
        if verdict.is_file():
            raise CheckpointNotPortable(verdict.read_text(encoding="utf-8"))
        if code != 0:
            raise CheckpointNotPortable(_broken_off(code, log))


def _ended(process: "subprocess.Popen[bytes]", limit_s: float, ask: Callable[[], object]) -> int:
    """The exit code. Raises ``CheckpointNotPortable`` at the limit, and what ``ask`` raises."""
    deadline_s = time.monotonic() + limit_s
    while time.monotonic() < deadline_s:
        try:
            return process.wait(timeout=POLL_S)
        except subprocess.TimeoutExpired:
            ask()
    raise CheckpointNotPortable(f"loading took longer than {limit_s:.0f} s")


def _broken_off(code: int, log: Path) -> str:
    if code < 0:
        return (
            f"the verification process was killed by signal {-code}: if it ran out of "
            "memory, free memory, or set SLEB_VERIFY=inline or off"
        )
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"the verification process failed: {said[-1] if said else f'exit code {code}'}"


def compare(directory: Path, expected: Expectation) -> None:
    """Load the model in ``directory`` and raise ``CheckpointNotPortable`` for the first difference.

    Cheap comparisons come first. Weights must be equal bit for bit, logits within the tolerance of
    their dtype, and a greedy continuation token by token, unless two tokens are tied within it.
    """
    _compare_files(companions(directory), expected)
    try:
        _compare_config(directory, expected)
        ids = sample_ids(load_tokenizer(directory))
        _same("token ids of a sample text", ids, list(expected.sample_ids))
        if expected.is_quantized:
            _compare_quantized(directory, expected)
        elif expected.is_streamed:
            _compare_streamed(directory, expected)
        else:
            _compare_whole(directory, expected)
    except (ValueError, OSError, SafetensorError) as error:
        raise CheckpointNotPortable(f"transformers cannot load it: {error}") from error


def _compare_files(actual: Mapping[str, str | None], expected: Expectation) -> None:
    for name, sha256 in expected.companions.items():
        if actual[name] == sha256:
            continue
        how = "is missing" if actual[name] is None else "does not exist in the parent"
        if sha256 is not None and actual[name] is not None:
            how = "differs from the parent's"
        raise CheckpointNotPortable(f"the tokenizer differs from the parent's: {name} {how}")


def _compare_config(directory: Path, expected: Expectation) -> None:
    config = read_config(directory)
    _same("num_hidden_layers of config.json", config.num_hidden_layers, expected.num_blocks)
    _same("dtype of config.json", str(config.dtype).removeprefix("torch."), expected.dtype)
    for key, entries in expected.per_block.items():
        _same(f"{key} of config.json", getattr(config, key, None), list(entries))


def compare_gguf(file: Path, expected: Expectation) -> None:
    """Compare a GGUF file as transformers loads it. Raises ``CheckpointNotPortable``.

    The tokenizer is not compared: transformers ignores the pre-tokenizer that the file names.
    """
    if expected.is_streamed:
        raise CheckpointNotPortable(f"transformers loads GGUF {_WHOLE}")
    hide_gguf_bar()
    try:
        read: Any = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=getattr(torch, expected.dtype),
            output_loading_info=True,
            local_files_only=True,
            use_kernels=False,
        )
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        raise CheckpointNotPortable(f"transformers cannot load it: {error}") from error
    model, report = read
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        _same(kind.replace("_", " "), sorted(map(str, report[kind])), [])
    del model.config.quantization_config  # transformers has converted all weights to floats
    _compare_model(model.to(expected.device).eval(), expected)


def _compare_whole(directory: Path, expected: Expectation) -> None:
    loaded: Any = load_whole(directory)
    whole = loaded.to(expected.device)
    model = language_model(whole)
    _compare_model(model, expected)
    _same("tensors of other towers", others_of(directory, model), expected.others)
    if model is not whole:
        with torch.inference_mode():
            logits = whole(expected.token_ids.to(whole.device), use_cache=False).logits
        _compare_logits(logits, expected)


def _compare_quantized(directory: Path, expected: Expectation) -> None:
    if expected.is_streamed:
        raise CheckpointNotPortable(f"transformers loads quantized {_WHOLE}")
    _compare_model(load_quantized(directory, expected.device), expected)


@torch.inference_mode()
def _compare_model(model: PreTrainedModel, expected: Expectation) -> None:
    _compare_shape(model, expected)
    actual = {name: digest(values) for name, values in model.named_parameters()}
    _compare_weights(actual, expected)
    token_ids = expected.token_ids.to(model.device)
    _compare_logits(model(token_ids, use_cache=False).logits, expected)
    _compare_continuation(model, token_ids[:1], expected)


@torch.inference_mode()
def _compare_streamed(directory: Path, expected: Expectation) -> None:
    streamed = StreamedModel(directory, device=expected.device)
    _compare_shape(streamed.model, expected)
    _same("tensors of other towers", others_of(directory, streamed.model), expected.others)
    names = [name for name, _ in streamed.model.named_parameters()]
    _compare_weights({name: digest(values) for name, values in streamed.read(names)}, expected)
    forward = StreamedForward(streamed, tuple(range(expected.num_blocks)))
    _compare_logits(logits_of(forward, expected.token_ids), expected)


def _compare_shape(model: PreTrainedModel, expected: Expectation) -> None:
    _same("number of blocks", num_blocks(model), expected.num_blocks)
    _same("dtype of the model", str(model.dtype).removeprefix("torch."), expected.dtype)


def _compare_weights(actual: Mapping[str, str], expected: Expectation) -> None:
    wrong = sorted(
        name
        for name in {*actual, *expected.weights}
        if actual.get(name) != expected.weights.get(name)
    )
    if wrong:
        named = f"{', '.join(wrong[:_MAX_NAMED])}{', ...' if len(wrong) > _MAX_NAMED else ''}"
        raise CheckpointNotPortable(f"{counted(len(wrong), 'weight')} not as expected: {named}")


def _compare_logits(actual: torch.Tensor, expected: Expectation) -> None:
    logits = expected.logits.double()
    if not torch.isfinite(logits).all():
        raise CheckpointNotPortable(
            f"some logits of the model are not finite in {expected.dtype}: its weights or "
            "hidden states exceed the range of this dtype; choose another dtype"
        )
    difference = float((actual.cpu().double() - logits).abs().max())
    if not difference <= (allowed := _tolerance(logits, expected)):  # also if it is NaN
        raise CheckpointNotPortable(
            f"logits for fixed token ids differ by up to {difference:.3g}, expected at most "
            f"{allowed:.3g} in {expected.dtype}"
        )


def _compare_continuation(
    model: PreTrainedModel, prompt: torch.Tensor, expected: Expectation
) -> None:
    """Generate with transformers, with a cache and without the checkpoint's settings."""
    if not expected.continuation:
        return
    assert isinstance(model, GenerationMixin)
    num_tokens = len(expected.continuation)
    model.generation_config = GenerationConfig(do_sample=False, max_new_tokens=num_tokens)
    output = model.generate(prompt, attention_mask=torch.ones_like(prompt))
    generated: list[int] = output[0, prompt.shape[1] :].tolist()
    for step, (token, wanted) in enumerate(zip(generated, expected.continuation, strict=True)):
        if token == wanted:
            continue
        scores = expected.scores[step].double()
        if float(scores[wanted] - scores[token]) <= _tolerance(scores, expected):
            return  # a tie: from here on the texts differ
        raise CheckpointNotPortable(
            f"greedy generation differs at token {step + 1}: got {token}, expected {wanted}"
        )


def _tolerance(logits: torch.Tensor, expected: Expectation) -> float:
    return TOLERANCES[expected.dtype] * float(logits.abs().max())


def _same(what: str, actual: object, wanted: object) -> None:
    if actual != wanted:
        raise CheckpointNotPortable(f"{what}: got {actual}, expected {wanted}")


def _main(directory: str, expectation: str, verdict: str, parent: str) -> int:
    """Return the exit code: 0 if nothing differs, else 1 after writing the difference."""
    end_with_parent(int(parent), signal.SIGKILL)
    expected = Expectation.read(Path(expectation))
    set_up_torch(expected.threads)
    try:
        compare(Path(directory), expected)
    except CheckpointNotPortable as error:
        Path(verdict).write_text(str(error), encoding="utf-8")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
