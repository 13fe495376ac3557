"""How likely outputs are under the dense model, which the engine or vLLM reads them with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from app.engine.async_engine import AsyncEngine
from app.engine.sampling.logprobs import score
from app.engine.scheduling.sequence import SamplingParams
from app.generation.generator import Generator
from app.generation.output import Output
from app.generation.request import GenerationRequest, Served, ServedElsewhere
from app.models.registry import ServedModel


@dataclass(frozen=True)
class Scorer:
    """Reads texts of known tokens. ``scored`` is called with the number of tokens of each."""

    generator: Generator
    engine: AsyncEngine
    scored: Callable[[int], object]

    async def logprobs(
        self, served: Served, prompt: Sequence[int], output: Sequence[int]
    ) -> Sequence[float]:
        """Of the tokens of ``output`` after ``prompt``; none if vLLM has no room for one more."""
        if isinstance(served, ServedModel):
            pieces = score(served.variant, prompt, output, self.engine.max_chunk)
            values: Sequence[float] = await self.engine.run(pieces, served.variant)
        else:
            values = await self._in_vllm(served, (*prompt, *output), len(output))
        self.scored(len(prompt) + len(output))
        return values

    async def _in_vllm(
        self, served: ServedElsewhere, ids: Sequence[int], num_tokens: int
    ) -> list[float]:
        if served.vllm is None or len(ids) > served.vllm.max_scored:
            return []
        params = SamplingParams(max_new_tokens=0, num_prompt_logprobs=0)
        request = GenerationRequest(served, [ids], params, traffic="bench")
        [output] = await self.generator.generate(request)
        return [token.logprob or 0.0 for token in output.prompt[-num_tokens:]]

    async def mean_logprobs(
        self,
        served: Sequence[Served],
        prompts: Sequence[Sequence[int]],
        rounds: Sequence[Sequence[Output]],
    ) -> list[list[float | None]]:
        """Per variant and prompt, under the dense model; equal outputs are scored once.

        None without a dense model.
        """
        dense = await self._dense(served)
        if dense is None:
            return [[None] * len(prompts) for _ in rounds]
        known: dict[tuple[int, tuple[int, ...]], float | None] = {}
        for outputs in rounds:
            for index, output in enumerate(outputs):
                key = index, token_ids(output)
                if key not in known:
                    known[key] = await self._mean_logprob(dense, prompts[index], key[1])
        return [
            [known[index, token_ids(output)] for index, output in enumerate(outputs)]
            for outputs in rounds
        ]

    async def _dense(self, served: Sequence[Served]) -> Served | None:
        """None unless all are views of it: a parent may be gone or replaced.

        In vLLM, only one that is compared: another server may have no room.
        """
        if not all(one.entry.is_view for one in served):
            return None
        if any(isinstance(one, ServedElsewhere) for one in served):
            return next((one for one in served if one.entry.name == one.entry.base), None)
        return await self.generator.load(served[0].entry.base)

    async def _mean_logprob(
        self, dense: Served, prompt: Sequence[int], output: Sequence[int]
    ) -> float | None:
        if not output:
            return None
        logprobs = await self.logprobs(dense, prompt, output)
        return fmean(logprobs) if logprobs else None


def token_ids(output: Output) -> tuple[int, ...]:
    """Those of the output that have ids: all of them, unless another server generated it."""
    return tuple(token.key for token in output.tokens if isinstance(token.key, int))
