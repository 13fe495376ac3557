"""Requests, the sequences that they become, and the events of the engine: plain values."""

import reprlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

    from app.engine.cache.block_table import BlockTable
    from app.engine.grammar import Grammar, Matcher
    from app.engine.variant import Variant

_MIN_TEMPERATURE = 1e-5  # below it, sampling is greedy and the division would overflow

_THEN = ", then "  # between two kernels that computed the same

MAX_NEW_TOKENS = 1_000_000
MAX_TOP_LOGPROBS = 20
MAX_TOKEN_ID = 2**32 - 1  # beyond any vocabulary
MAX_LOGIT_BIAS = 100
# The lowest and the highest value of each number; top_p is above 0 and at most 1
RANGES: Mapping[str, tuple[float, float]] = {
    "max_new_tokens": (1, MAX_NEW_TOKENS),
    "temperature": (0, 100),
    "top_k": (0, 1_000_000),
    "min_p": (0, 1),
    "repetition_penalty": (0.1, 2),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "seed": (0, 2**63 - 1),
    "num_logprobs": (0, MAX_TOP_LOGPROBS),
    "num_prompt_logprobs": (0, MAX_TOP_LOGPROBS),
}


class RequestRefused(ValueError):
    """The engine does not accept this request."""


class InvalidSampling(ValueError):
    """A sampling parameter is out of range; ``param`` is its name."""

    def __init__(self, param: str, value: object, expected: str) -> None:
        super().__init__(f"{param}={reprlib.repr(value)}: expected {expected}")
        self.param = param


class FinishReason(StrEnum):
    STOP = "stop"  # an end-of-sequence or stop token was generated
    LENGTH = "length"  # max_new_tokens were generated
    ABORT = "abort"  # cancelled
    TIMEOUT = "timeout"  # its deadline passed
    ERROR = "error"


@dataclass(frozen=True)
class ResponseFormat:
    """As OpenAI has it, or as vLLM has a structured output.

    ``name``, ``description`` and ``strict`` are for other servers only.
    """

    type: Literal["json_object", "json_schema", "regex", "choice", "grammar"]
    schema: str = '{"type":"object"}'  # JSON; a list of texts for a choice
    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    within: str = ""  # a Lark grammar with JSON_OF_SCHEMA where the schema begins; empty: it is all
    param: str = "response_format"  # that asked for it

    @property
    def what(self) -> str:
        """What ``schema`` is, in a message."""
        return "schema" if self.type.startswith("json") else self.type


@dataclass(frozen=True)
class SamplingParams:
    """Sampling and length of one request. Raises ``InvalidSampling``."""

    max_new_tokens: int = 128
    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 is off
    min_p: float = 0.0  # relative to the best token's probability; 0 is off
    repetition_penalty: float = 1.0  # of all prompt and generated tokens; 1 is off
    presence_penalty: float = 0.0  # of every generated token
    frequency_penalty: float = 0.0  # of every generated token, each time that it was
    logit_bias: tuple[tuple[int, float], ...] = ()  # token ids and what is added to their logits
    seed: int | None = None  # None draws a random one
    stop_token_ids: frozenset[int] = frozenset()  # besides the model's end of sequence
    ignore_eos: bool = False
    response_format: ResponseFormat | None = None  # None is any text
    num_logprobs: int | None = None  # best tokens to report; None reports no logprobs
    num_prompt_logprobs: int | None = None  # the same of the prompt, which may come alone
    reproducible: bool = False  # the output depends on no other request, at the cost of time

    def __post_init__(self) -> None:
        for param, (low, high) in RANGES.items():
            is_scored = param == "max_new_tokens" and self.num_prompt_logprobs is not None
            if (value := getattr(self, param)) is not None:
                _check(param, value, 0 if is_scored else low, high)
        if not 0 < self.top_p <= 1:  # also refuses nan
            raise InvalidSampling("top_p", self.top_p, "more than 0 and at most 1")
        for token_id in self.stop_token_ids:
            _check("stop_token_ids", token_id, 0, MAX_TOKEN_ID)
        for token_id, bias in self.logit_bias:
            _check("logit_bias", token_id, 0, MAX_TOKEN_ID)
            _check("logit_bias", bias, -MAX_LOGIT_BIAS, MAX_LOGIT_BIAS)

    @property
    def needs_only_logits(self) -> bool:
        """Whether a token is chosen without the tokens before it, and reported without more."""
        penalties = self.presence_penalty, self.frequency_penalty, self.repetition_penalty - 1
        is_plain = self.response_format is None and self.num_logprobs is None
        return is_plain and not any(penalties)

    @property
    def is_greedy(self) -> bool:
        return self.temperature < _MIN_TEMPERATURE


@dataclass(frozen=True)
class Request:
    request_id: str
    variant: "Variant"
    prompt_ids: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    arrived_s: float = field(default_factory=time.monotonic, compare=False)
    deadline_s: float | None = None  # on the monotonic clock; ends the request with TIMEOUT
    is_background: bool = False  # runs only while no live request waits or runs
    # Requests of one scope may share the pages of their prompts; None: the prompt is read in full.
    cache_scope: str | None = None
    tenant: str | None = None  # whose share it is; None: that of all without a tenant
    grammar: "Grammar | None" = None  # of the response format


@dataclass(frozen=True)
class Timings:
    """Moments on the monotonic clock, None if not reached, and the durations between them."""

    arrived_s: float
    scheduled_s: float | None
    first_token_s: float | None
    finished_s: float
    num_tokens: int  # generated, an end-of-sequence token included
    mean_batch_size: float | None = None  # mean over its decode steps; None without any
    was_alone: bool = False  # no other request was in the engine, from its first step to its end
    # What computed it, by what for: {"blocks, decode of 1": "compiled"}. A mapping has no hash.
    kernels: Mapping[str, str] = field(default_factory=dict, hash=False)
    # Tokens of the prompt whose keys and values were there; None where that is not known.
    num_cached_tokens: int | None = None

    @property
    def queue_s(self) -> float:
        """Arrival to the first forward, or to the end without one."""
        return (self.finished_s if self.scheduled_s is None else self.scheduled_s) - self.arrived_s

    @property
    def ttft_s(self) -> float | None:
        """Arrival to the first token."""
        return None if self.first_token_s is None else self.first_token_s - self.arrived_s

    @property
    def prefill_s(self) -> float | None:
        """The first forward to the first token."""
        if self.scheduled_s is None or self.first_token_s is None:
            return None
        return self.first_token_s - self.scheduled_s

    @property
    def decode_s(self) -> float | None:
        """The first token to the end."""
        return None if self.first_token_s is None else self.finished_s - self.first_token_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time per token after the first; None for fewer than two tokens."""
        if self.first_token_s is None or self.num_tokens < 2:
            return None
        return (self.finished_s - self.first_token_s) / (self.num_tokens - 1)

    @property
    def e2e_s(self) -> float:
        return self.finished_s - self.arrived_s


@dataclass(frozen=True)
class PromptToken:
    """A token of a prompt, and how likely it was after the tokens before it."""

    token_id: int
    logprob: float | None = None  # None for the first token, which nothing predicts
    top_logprobs: tuple[tuple[int, float], ...] = ()  # token ids, most likely first


@dataclass(frozen=True)
class TokenEvent:
    """One generated token, or the end of a request, or both.

    Every generated token has one event. The last event has ``finish_reason`` and ``timings``. With
    STOP, its token ended the sequence and is not text. With ABORT, TIMEOUT and ERROR, it has no
    token, nor with LENGTH if none was asked for. Log-probabilities are the model's own, before
    penalty, temperature and filters. Those of the prompt come with the first event.
    """

    request_id: str
    token_id: int | None
    finish_reason: FinishReason | None = None
    timings: Timings | None = None
    logprob: float | None = None  # of the token; None if not requested
    top_logprobs: tuple[tuple[int, float], ...] = ()  # token ids, most likely first
    prompt: tuple[PromptToken, ...] = ()  # empty unless requested
    failure: str | None = None  # with ERROR, if the request is the reason

    @property
    def is_text(self) -> bool:
        """Whether the token belongs to the text."""
        return self.token_id is not None and self.finish_reason is not FinishReason.STOP


@dataclass(slots=True, eq=False)
class Sequence:
    """The state of a request in the engine. Only the engine and its scheduler change it."""

    request: Request
    generator: "torch.Generator | None"  # None for greedy
    matcher: "Matcher | None" = None  # of what may follow its tokens; None: anything
    tokens: list[int] = field(init=False)  # prompt, then generated tokens
    scored: list[PromptToken] = field(init=False)  # of the prompt, as far as it is cached
    table: "BlockTable | None" = None  # of its pages
    is_cut_alone: bool = False  # its prompt is cut into the same chunks whatever else runs
    num_cached: int = 0  # leading tokens whose keys and values are in its pages
    num_reused: int = 0  # tokens of the prompt whose pages were there
    is_running: bool = False  # false while it waits
    serial: int = 0  # in the order of arrival
    num_passed: int = 0  # prefills without it, since it arrived or since the last one with it
    num_preemptions: int = 0
    scheduled_s: float | None = None
    first_token_s: float | None = None
    num_decodes: int = 0
    sum_batch_sizes: int = 0  # over its decode steps
    was_alone: bool = True  # false once there is another live request
    kernels: dict[str, str] = field(default_factory=dict)  # that computed its steps, by what for

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt_ids)
        self.reset_scored()

    @property
    def pages(self) -> "BlockTable":
        """The table of its pages, which the engine has given it."""
        assert self.table is not None
        return self.table

    def take_found(self) -> int:
        """Take the pages of its next tokens that are there. Returns how many tokens of its prompt
        are not read for the first time therefore."""
        num_found = self.pages.reuse(self.tokens, self.num_cached)
        self.num_cached += num_found
        if self.num_preemptions:
            return 0
        self.num_reused += num_found
        return num_found

    def restart(self) -> None:
        """Leave all pages. Its tokens stay, and are read again from the first one."""
        self.pages.release()
        self.num_cached, self.num_passed, self.is_running = 0, 0, False
        self.num_preemptions += 1
        if not self.num_generated:
            self.reset_scored()

    def reset_scored(self) -> None:
        """Forget the log-probabilities of the prompt, which is read again from its beginning."""
        is_scored = self.request.params.num_prompt_logprobs is not None
        self.scored = [PromptToken(self.tokens[0])] if is_scored else []

    def take_scored(self) -> tuple[PromptToken, ...]:
        """The log-probabilities of the prompt, for one event."""
        taken, self.scored = tuple(self.scored), []
        return taken

    @property
    def num_uncached(self) -> int:
        return len(self.tokens) - self.num_cached

    def ran(self, kernels: Mapping[str, str]) -> None:
        """Note what has computed a step."""
        for purpose, kernel in kernels.items():
            before = self.kernels.setdefault(purpose, kernel)
            if kernel not in before.split(_THEN):
                self.kernels[purpose] = f"{before}{_THEN}{kernel}"

    def append(self, token_id: int) -> None:
        """Add a generated token."""
        self.tokens.append(token_id)
        if self.matcher is not None:
            self.matcher.advance(token_id)

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - len(self.request.prompt_ids)

    @property
    def generated(self) -> list[int]:
        return self.tokens[len(self.request.prompt_ids) :]

    @property
    def is_at_its_last(self) -> bool:
        """Whether its next token is the last one, whatever it is."""
        return self.num_generated + 1 >= self.request.params.max_new_tokens

    def finish_reason(self) -> FinishReason | None:
        """Why the sequence ends with its last token, None if it goes on."""
        params = self.request.params
        ends = not params.ignore_eos and self.tokens[-1] in self.request.variant.eos_token_ids
        if ends or self.tokens[-1] in params.stop_token_ids:
            return FinishReason.STOP
        return FinishReason.LENGTH if self.num_generated >= params.max_new_tokens else None

    def timings(self, now_s: float) -> Timings:
        return Timings(
            arrived_s=self.request.arrived_s,
            scheduled_s=self.scheduled_s,
            first_token_s=self.first_token_s,
            finished_s=now_s,
            num_tokens=self.num_generated,
            mean_batch_size=self.sum_batch_sizes / self.num_decodes if self.num_decodes else None,
            was_alone=self.was_alone and self.scheduled_s is not None,
            kernels=MappingProxyType(dict(self.kernels)),
            num_cached_tokens=self.num_reused,
        )


def _check(param: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also refuses nan
        raise InvalidSampling(param, value, f"{low} to {high}")
