"""A program of vLLM's own Python: load directories one after the other, and continue prompts.

``vllm_families.py JOBS RESULTS``: JOBS is JSON, RESULTS gets a line of JSON for each directory.
"""

import gc
import json
import sys
import traceback
from pathlib import Path
from typing import Any


def main(jobs: Path, results: Path) -> None:
    for job in json.loads(jobs.read_text()):
        line = json.dumps({"name": job["name"], **_outcome(job)})
        with results.open("a") as file:
            file.write(f"{line}\n")


def _outcome(job: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"outputs": _outputs(job)}
    except Exception as error:  # noqa: BLE001 - whatever vLLM raises is the outcome
        traceback.print_exc()
        return {"refused": f"{type(error).__name__}: {error}"}


def _outputs(job: dict[str, Any]) -> list[list[Any]]:
    """Of each prompt, the tokens that follow and their log-probabilities."""
    from vllm import LLM, SamplingParams  # noqa: PLC0415
    from vllm.distributed import cleanup_dist_env_and_memory  # noqa: PLC0415

    model = None
    try:
        model = LLM(
            job["path"],
            dtype=job["dtype"],
            enforce_eager=True,
            max_model_len=64,
            max_num_seqs=len(job["prompts"]),
            max_num_batched_tokens=64,
            num_gpu_blocks_override=64,
            disable_log_stats=True,
            **job["options"],
        )
        sampling = SamplingParams(
            temperature=0, max_tokens=job["num_tokens"], logprobs=0, ignore_eos=True
        )
        asked = [{"prompt_token_ids": prompt} for prompt in job["prompts"]]
        found = [each.outputs[0] for each in model.generate(asked, sampling, use_tqdm=False)]
        return [
            [list(each.token_ids), [step[token].logprob for step, token in _steps(each)]]
            for each in found
        ]
    finally:
        if model is not None:
            model.llm_engine.engine_core.shutdown()
        del model
        cleanup_dist_env_and_memory()
        gc.collect()


def _steps(output: Any) -> Any:
    return zip(output.logprobs, output.token_ids, strict=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
