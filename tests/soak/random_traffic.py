"""Random traffic on one engine, and what each output has to be.

Clients draw prompts of 1 to 8192 tokens, many of which begin alike, for three variants. They leave
some outputs early. Variants are unloaded and made again meanwhile. Pages are few, so that running
sequences lose theirs.
"""

import asyncio
import itertools
import math
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from copy import deepcopy
from functools import partial
from random import Random
from weakref import ref

import torch
from transformers import AutoConfig, PreTrainedModel

from app.engine.async_engine import AsyncEngine
from app.engine.engine import Engine
from app.engine.scheduling.sequence import FinishReason, Request, SamplingParams, TokenEvent
from app.engine.step import NEVER, Interruption
from app.engine.variant import Variant, make_variant
from pruning.models.blocks import view
from tests.support.engine_scenarios import until
from tests.support.families import LLAMA_LIKE
from tests.support.integrity import check_engine
from tests.support.tiny import VOCAB_SIZE, random_model

LONGEST_PROMPT = 8192
LONGEST_OUTPUT = 200
NUM_CLIENTS = 40
KEEPS: Sequence[Sequence[int] | None] = (None, (0, 2, 3, 5), (0, 1, 5))  # blocks of each variant
TIE = (
    1e-4  # of the largest logit: tokens this near to each other are equally likely but for rounding
)
_STEPS_BETWEEN_CHECKS = 16
_UNLOAD_S = 600.0
_NUM_TEXTS, _NUM_HISTORIES = 6, 32
_GREEDY, _LEFT, _CONTINUED, _LONG = 0.85, 0.15, 0.3, 0.15  # shares of the requests


def long_model() -> PreTrainedModel:
    longest = LONGEST_PROMPT + LONGEST_OUTPUT
    shape = {**LLAMA_LIKE, "max_position_embeddings": longest, "tie_word_embeddings": False}
    return random_model(AutoConfig.for_model("llama", **shape))


class CheckedEngine(Engine):
    """Looks for lost pages and sequences after some of its steps."""

    num_steps = 0

    def step(self, interruption: Interruption = NEVER) -> list[TokenEvent]:
        events = super().step(interruption)
        self.num_steps += 1
        if self.num_steps % _STEPS_BETWEEN_CHECKS == 0:
            check_engine(self)
        return events


class Oracle:
    """What greedy outputs have to be: one forward of transformers, in float32, without a cache.

    It has weights of its own. Each token must be the likeliest one behind those before it.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        own = deepcopy(model)
        self._models = [own if keep is None else view(own, keep) for keep in KEEPS]
        self.num_tokens = 0
        self.num_ties = 0

    @torch.inference_mode()
    def objection(self, which: int, prompt: Sequence[int], output: Sequence[int]) -> str | None:
        """What is wrong with an output of a variant, None if nothing is."""
        model = self._models[which]
        ids = torch.tensor([[*prompt, *output]])
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        logits = model.get_output_embeddings()(hidden[0, len(prompt) - 1 : -1]).float()
        best, found = logits.max(dim=-1).values, logits.gather(1, ids[0, len(prompt) :, None])[:, 0]
        behind = (best - found) / logits.abs().max()
        self.num_tokens += len(output)
        self.num_ties += int(((behind > 0) & (behind <= TIE)).sum())
        wrong = (behind > TIE).nonzero().flatten().tolist()
        if not wrong:
            return None
        return (
            f"variant {which}, prompt of {len(prompt)}: {len(wrong)} of {len(output)} tokens are "
            f"wrong, the first one at {wrong[0]}"
        )


class Slot:
    """One variant that clients use, and that is unloaded and made again."""

    def __init__(self, which: int, model: PreTrainedModel) -> None:
        self.which = which
        self._model = model
        self._variant: Variant | None = None
        self._num_open = 0
        self.is_closing = False
        self.load()

    def load(self) -> None:
        self._variant = make_variant(
            f"variant-{self.which}", "tiny", self._model, KEEPS[self.which]
        )
        self.is_closing = False

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[Variant]:
        await until(lambda: not self.is_closing)
        assert self._variant is not None
        self._num_open += 1
        try:
            yield self._variant
        finally:
            self._num_open -= 1

    async def unload(self) -> None:
        """Wait for its requests, and until nothing holds it."""
        self.is_closing = True
        async with asyncio.timeout(_UNLOAD_S):
            await until(lambda: self._num_open == 0)
            assert self._variant is not None
            held = ref(self._variant)
            self._variant = None
            await until(lambda: held() is None)


class RandomTraffic:
    """Clients of one engine. ``failures`` says what was wrong, ``counts`` what happened."""

    def __init__(self, engine: AsyncEngine, model: PreTrainedModel, seed: int) -> None:
        self.oracle = Oracle(model)
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self._engine = engine
        self._random = Random(seed)
        self._slots = [Slot(which, model) for which in range(len(KEEPS))]
        self._texts = [self._tokens(LONGEST_PROMPT) for _ in range(_NUM_TEXTS)]
        self._histories: deque[list[int]] = deque(maxlen=_NUM_HISTORIES)
        self._ids = itertools.count()
        self._judge = ThreadPoolExecutor(1)
        self._clients: list[asyncio.Task[None]] = []
        self._is_over = False

    def start(self) -> None:
        self._clients = [asyncio.create_task(self._client()) for _ in range(NUM_CLIENTS)]

    async def stop(self) -> None:
        """Wait for the last outputs, and raise what a client has raised."""
        self._is_over = True
        await asyncio.gather(*self._clients)
        self._judge.shutdown()

    async def reload(self) -> None:
        """Unload some of the variants, or all of them, and make them again."""
        slots = self._random.sample(self._slots, self._random.choice((1, 1, 2, 3)))
        for slot in slots:
            slot.is_closing = True
        for slot in slots:
            await slot.unload()
            self.counts["unloads"] += 1
        for slot in slots:
            slot.load()

    async def _client(self) -> None:
        while not self._is_over:
            slot = self._random.choice(self._slots)
            prompt, output, is_greedy = await self._served(slot)
            if is_greedy and output:
                judge = partial(self.oracle.objection, slot.which, prompt, output)
                objection = await asyncio.get_running_loop().run_in_executor(self._judge, judge)
                self.failures += [] if objection is None else [objection]

    async def _served(self, slot: Slot) -> tuple[Sequence[int], list[int], bool]:
        """One request. A frame of its own, as the client would hold the variant meanwhile."""
        async with slot.lent() as variant:
            request = self._request(variant)
            return request.prompt_ids, await self._output(request), request.params.is_greedy

    def _request(self, variant: Variant) -> Request:
        draw = self._random
        is_greedy = draw.random() < _GREEDY
        params = SamplingParams(
            max_new_tokens=draw.choice((1, 8, 40, LONGEST_OUTPUT, LONGEST_OUTPUT)),
            temperature=0.0 if is_greedy else 1.0,
            seed=None if is_greedy else draw.randrange(2**31),
            ignore_eos=True,
        )
        prompt, scope = self._prompt(), draw.choice(("", "", "", "salt", None))
        name = f"request-{next(self._ids)}"
        return Request(name, variant, tuple(prompt), params, cache_scope=scope)

    def _prompt(self) -> list[int]:
        """A conversation that goes on, or the beginning of a text and something else."""
        draw = self._random
        if self._histories and draw.random() < _CONTINUED:
            begin = draw.choice(self._histories)
        else:
            length = round(math.exp(draw.uniform(0, math.log(LONGEST_PROMPT))))
            if draw.random() < _LONG:
                length = draw.randint(LONGEST_PROMPT // 2, LONGEST_PROMPT)
            begin = draw.choice(self._texts)[: draw.choice((length, 32 * (length // 32)))]
        return [*begin, *self._tokens(draw.randint(1, 64))][-LONGEST_PROMPT:]

    async def _output(self, request: Request) -> list[int]:
        """The tokens of a request, of which some are left early."""
        longest = request.params.max_new_tokens
        is_left = self._random.random() < _LEFT
        num_read = self._random.randint(0, longest) if is_left else longest + 1
        output: list[int] = []
        async with self._engine.stream(request) as events:
            async for event in events:
                if event.finish_reason is FinishReason.ERROR:
                    self.failures.append(f"{request.request_id} ended with an error: {event}")
                output += [] if event.token_id is None else [event.token_id]
                if len(output) >= num_read:
                    break
        if not is_left and len(output) != longest:
            self.failures.append(f"{len(output)} of {longest} tokens")
        self.counts["left" if is_left else "whole"] += 1
        self.counts["long"] += len(request.prompt_ids) > LONGEST_PROMPT // 2
        self._histories.append([*request.prompt_ids, *output])
        return output

    def _tokens(self, number: int) -> list[int]:
        return self._random.choices(range(3, VOCAB_SIZE), k=number)
