"""Batched generation, from the dense model or any of its pruned variants."""

import time

from asgi_correlation_id import correlation_id
from fastapi import APIRouter

from app.deps import GeneratorDep
from app.engine.sequence import SamplingParams
from app.generation import Output
from app.routes.models import variant_kind
from app.schemas import GenerateBody, GenerateView, OutputView, TimingsView

router = APIRouter(tags=["generate"])


@router.post("/generate")
async def generate(body: GenerateBody, generator: GeneratorDep) -> GenerateView:
    """Answer one or many prompts, served together as one batch."""
    params = SamplingParams(
        max_new_tokens=body.max_new_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        seed=body.seed,
        ignore_eos=body.ignore_eos,
    )
    served = await generator.load(body.model)
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    stop = [body.stop] if isinstance(body.stop, str) else body.stop
    outputs = await generator.generate(served, prompts, params, stop)
    return GenerateView(
        id=correlation_id.get() or "",
        model=body.model,
        variant=variant_kind(served.entry),
        created_at=time.time(),
        outputs=[
            _output_view(index, output, return_token_ids=body.return_token_ids)
            for index, output in enumerate(outputs)
        ],
    )


def _output_view(index: int, output: Output, *, return_token_ids: bool) -> OutputView:
    timings = output.timings
    return OutputView(
        index=index,
        text=output.text,
        finish_reason=output.finish_reason.value,
        prompt_tokens=output.num_prompt_tokens,
        completion_tokens=len(output.token_ids),
        timings=TimingsView(
            queue_s=timings.queue_s,
            ttft_s=timings.ttft_s,
            tpot_s=timings.tpot_s,
            e2e_s=timings.e2e_s,
        ),
        token_ids=list(output.token_ids) if return_token_ids else None,
    )
