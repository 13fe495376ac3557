"""Requests to a vLLM that this service runs. Token ids go in, and come back with the texts."""

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

from transformers import PreTrainedTokenizerBase

from app.engine.sampling.text import Detokenizer
from app.engine.scheduling.sequence import PromptToken, RequestRefused, SamplingParams
from app.generation.openai_chunks import Choice, Chunk, ChunkReader, Usage
from app.generation.openai_client import OpenAIRequest, openai_request
from app.generation.output import Token
from app.generation.request import Chat, GenerationRequest
from app.vllm.servers import VllmModel

_ID = "token_id:"
_STOPPED = ("stop", "tool_calls")


class NotOnVllm(RequestRefused):
    """vLLM has nothing like this parameter."""

    def __init__(self, param: str, instead: str) -> None:
        super().__init__(f"{param}: vLLM generates for this model and cannot do that: {instead}")
        self.param = param


def check_params(params: SamplingParams) -> None:
    """Raises ``NotOnVllm``."""
    if params.reproducible:
        raise NotOnVllm(
            "reproducible", "leave it out, or ask for a model of the engine of this service"
        )


def vllm_request(
    request: GenerationRequest, model: VllmModel, prompt: Sequence[int], scope: str | None
) -> OpenAIRequest:
    """A request for one output. ``prompt`` has the token ids of its prompt.

    Requests of one ``scope`` share what is read of their prompts; None: it is read in full.
    """
    params = request.params
    [asked] = request.prompts
    if isinstance(asked, Chat) and asked.may_call:
        plain = _with_tools(openai_request(request, asked, 0), asked, prompt)
    else:
        plain = openai_request(request, prompt, 0)
    body = {**plain.body, "return_token_ids": True}
    num_top = params.num_logprobs
    if params.num_prompt_logprobs is not None:
        num_top = params.num_prompt_logprobs
        body |= {"echo": True, "logprobs": num_top, "max_tokens": max(1, params.max_new_tokens)}
    if num_top is not None:
        body["return_tokens_as_token_ids"] = True
    # of a random salt, nothing is kept that could be read again
    body["cache_salt"] = scope or secrets.token_urlsafe(16)
    reader = partial(VllmChunkReader, model.tokenizer, num_top, params.max_new_tokens)
    return replace(plain, body=body, reader=reader)


def _with_tools(plain: OpenAIRequest, chat: Chat, prompt: Sequence[int]) -> OpenAIRequest:
    """The chat route, which finds calls of tools in an output.

    It takes these token ids as the prompt, as if another vLLM had rendered the messages.
    """
    body = {
        **plain.body,
        "tools": list(chat.tools),
        "tool_choice": "auto",
        "parallel_tool_calls": chat.may_call_many,
        "kv_transfer_params": {"prompt_token_ids": list(prompt)},
    }
    return replace(plain, body=body)


class VllmChunkReader(ChunkReader):
    """Reads the events of one output. ``num_top`` are the likeliest tokens to report, if any."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, num_top: int | None, max_new_tokens: int
    ) -> None:
        super().__init__()
        self._num_top = num_top
        self._detokenizer = None if num_top is None else Detokenizer(tokenizer)
        self._num_detokenized = 0  # characters
        self._is_prompt_alone = max_new_tokens == 0

    def read(self, data: str) -> Chunk:
        chunk = super().read(data)
        if not self._is_prompt_alone:
            return chunk
        usage = chunk.usage
        if usage is not None:
            usage = Usage(prompt_tokens=usage.prompt_tokens, completion_tokens=0)
        return replace(chunk, text="", tokens=(), usage=usage)

    def _prompt(self, choice: Choice) -> Iterable[PromptToken]:
        ids = choice.prompt_token_ids or []
        logprobs = self._logprobs(choice)
        if len(logprobs) > len(choice.token_ids or ()):
            for token_id, (logprob, top) in zip(ids, logprobs, strict=False):
                yield PromptToken(token_id, logprob, top)

    def _tokens(self, choice: Choice) -> Iterable[Token]:
        ids = choice.token_ids or []
        logprobs = self._logprobs(choice)[-len(ids) :] or [(None, ())] * len(ids)
        for at, (token_id, offset, (logprob, top)) in enumerate(
            zip(ids, self._offsets(ids), logprobs, strict=True)
        ):
            is_last = choice.finish_reason in _STOPPED and at == len(ids) - 1
            is_end = is_last and not isinstance(choice.stop_reason, str)
            yield Token(token_id, not is_end, offset, logprob, top)

    def _offsets(self, ids: Sequence[int]) -> list[int]:
        """Where tokens begin. The text of an event may lag: it may be held back for a stop."""
        if self._detokenizer is None:
            return [0] * len(ids)  # nothing reports them
        offsets = []
        for token_id in ids:
            offsets.append(self._num_detokenized)
            self._num_detokenized += len(self._detokenizer.push(token_id))
        return offsets

    def _logprobs(self, choice: Choice) -> list[tuple[float | None, tuple[tuple[int, float], ...]]]:
        """Of the prompt, if it is echoed, and of the tokens."""
        if choice.logprobs is None:
            return []
        if choice.logprobs.content is not None:  # of the chat route
            return [
                (
                    token.logprob,
                    self._ranked({top.token: top.logprob for top in token.top_logprobs}),
                )
                for token in choice.logprobs.content
            ]
        logprobs = choice.logprobs.token_logprobs
        tops = choice.logprobs.top_logprobs or [None] * len(logprobs)
        return [
            (logprob, self._ranked(top or {})) for logprob, top in zip(logprobs, tops, strict=True)
        ]

    def _ranked(self, top: dict[str, float]) -> tuple[tuple[int, float], ...]:
        best_first = sorted(top.items(), key=lambda item: -item[1])[: self._num_top or 0]
        return tuple((int(text.removeprefix(_ID)), logprob) for text, logprob in best_first)
