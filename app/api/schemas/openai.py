"""Request and response bodies of the OpenAI routes, with OpenAI's names, defaults and nulls.

A field that cannot change the output is accepted and ignored. A field that would, but is not
supported, is refused unless its value asks for nothing. Unknown fields are refused.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationInfo, field_validator

from app.api.schemas.bodies import Body, documented, kind, optional
from app.api.schemas.generate import CACHE_SALT, MAX_PROMPTS, ModelName, StopStrings
from app.api.schemas.messages import Message, Nothing, Text, Unsupported, expected
from app.api.schemas.sampling import WHOLE, Integer, OpenAISamplingFields, TokenIds
from app.api.schemas.tools import ToolCall, ToolChoice, Tools
from app.engine.scheduling.sequence import MAX_NEW_TOKENS, MAX_TOP_LOGPROBS

MAX_CHOICES = 128
DEFAULT_CHAT_TOKENS = 1024
MAX_MESSAGES = 2048  # as in OpenAI's API


MaxTokens = Annotated[int, Field(strict=True, ge=1, le=MAX_NEW_TOKENS), WHOLE]
NoTools = Annotated[Nothing | None, expected("not supported here: leave it out")]
NoToolChoice = Annotated[Literal["none", "auto"] | None, expected("not supported: use tool_choice")]


def _only_with(field: str, schema: Mapping[str, Any], other: str) -> dict[str, Any]:
    """A JSON schema: the field may be as in ``schema`` only if the other one is true."""
    return {
        "if": {"properties": {field: schema}, "required": [field]},
        "then": {"properties": {other: {"const": True}}, "required": [other]},
    }


Ignored = Annotated[Any, Field(description="Accepted and ignored.")]
Prompts = Annotated[
    Text
    | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
    | TokenIds
    | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)],
    expected(
        f"expected a text, a list of token ids from 0 on, or a list of 1 to {MAX_PROMPTS} of "
        "either kind, none of them empty"
    ),
]


_STREAM_OPTIONS = _only_with("stream_options", {"type": "object"}, "stream")


class StreamOptions(Body):
    include_usage: StrictBool | None = optional("Whether a last chunk has the usage.")
    continuous_usage_stats: StrictBool | None = optional(
        "Whether every chunk has the usage, as in vLLM."
    )
    include_obfuscation: Ignored = None


class GenerationBody(Body, OpenAISamplingFields):
    """Fields of both kinds of completions."""

    model: ModelName = Field(description="A model, a variant or an alias.")
    n: Annotated[int, Field(strict=True, ge=1, le=MAX_CHOICES), WHOLE] | None = optional(
        "Number of outputs of each prompt; 1 by default."
    )
    stop: Annotated[
        StopStrings | None,
        expected("expected a text or a list of up to 16, of 1 to 256 characters"),
    ] = optional("An output ends before any of these strings.")
    stream: StrictBool | None = optional("Respond with server-sent events.")
    stream_options: StreamOptions | None = optional("Only with stream.")
    user: Ignored = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = optional(CACHE_SALT)

    @field_validator("stream_options")
    @classmethod
    def _needs_a_stream(
        cls, options: StreamOptions | None, info: ValidationInfo
    ) -> StreamOptions | None:
        if options and not info.data.get("stream"):
            raise ValueError("expected only with stream: true")
        return options


class CompletionBody(GenerationBody):
    """One or many prompts to continue, as texts or token ids."""

    model_config = ConfigDict(
        json_schema_extra={
            "allOf": [_STREAM_OPTIONS, _only_with("max_tokens", {"const": 0}, "echo")]
        }
    )

    prompt: Prompts = Field(description="One or many prompts, as text or token ids.")
    best_of: Integer | None = optional("Only the value of n.")
    echo: StrictBool | None = optional("Repeat the prompt in front of the output.")
    logprobs: Annotated[int, Field(strict=True, ge=0, le=5), WHOLE] | None = optional(
        "Number of likeliest tokens to report at each position; with echo, of the prompt too."
    )
    max_tokens: Annotated[int, Field(strict=True, ge=0, le=MAX_NEW_TOKENS), WHOLE] | None = (
        optional("16 by default; 0 only with echo.")
    )
    suffix: Annotated[Literal[""] | None, expected("insertion is not supported: leave it out")] = (
        optional("Not supported.")
    )

    @field_validator("max_tokens")
    @classmethod
    def _asks_for_something(cls, limit: int | None, info: ValidationInfo) -> int | None:
        if limit == 0 and not info.data.get("echo"):
            raise ValueError("expected at least 1: 0 is for echo, which returns the prompt")
        return limit


class ChatBody(GenerationBody):
    """Messages, to which the assistant's next one is generated."""

    model_config = ConfigDict(
        json_schema_extra={
            "allOf": [_STREAM_OPTIONS, _only_with("top_logprobs", {"type": "integer"}, "logprobs")]
        }
    )

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] = Field(
        description="The conversation so far."
    )
    logprobs: StrictBool | None = optional("Whether tokens have their log-probabilities.")
    top_logprobs: Annotated[int, Field(strict=True, ge=0, le=MAX_TOP_LOGPROBS), WHOLE] | None = (
        optional("Number of likeliest tokens to report at each position; needs logprobs.")
    )
    max_completion_tokens: MaxTokens | None = optional(
        f"{DEFAULT_CHAT_TOKENS} by default, or fewer if the context ends before."
    )
    max_tokens: MaxTokens | None = optional("Same as max_completion_tokens.")
    modalities: Annotated[list[Literal["text"]] | None, expected('only ["text"] is supported')] = (
        optional("Only text.")
    )
    tools: Tools | None = optional("Functions that an output may call.")
    tool_choice: ToolChoice | None = optional(
        "A function, or required: an output calls one. none: an output is text. auto, "
        "the default, leaves that to the model, if its chat template has calls of tools."
    )
    functions: NoTools = optional("Not supported: see tools.")
    function_call: NoToolChoice = optional("Has no effect without functions.")
    audio: Unsupported = optional("Not supported.")
    moderation: Unsupported = optional("Not supported.")
    reasoning_effort: Unsupported = optional("Not supported.")
    verbosity: Unsupported = optional("Not supported.")
    web_search_options: Unsupported = optional("Not supported.")
    parallel_tool_calls: StrictBool | None = optional(
        "false: an output calls one function at most."
    )
    metadata: Ignored = None
    prediction: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_options: Ignored = None
    prompt_cache_retention: Ignored = None
    safety_identifier: Ignored = None
    service_tier: Ignored = None
    store: Ignored = None

    @field_validator("top_logprobs")
    @classmethod
    def _needs_logprobs(cls, top: int | None, info: ValidationInfo) -> int | None:
        if top is not None and not info.data.get("logprobs"):
            raise ValueError("expected only with logprobs: true")
        return top


Finish = Literal["stop", "length"]
ChatFinish = Literal["stop", "length", "tool_calls"]


class LegacyLogprobs(BaseModel):
    """Four lists with one element per token."""

    tokens: list[str] = Field(description="Texts of the tokens.")
    token_logprobs: list[float | None] = Field(
        description="Of each token; null for the first of a prompt, which nothing predicts."
    )
    top_logprobs: list[dict[str, float] | None] | None = Field(
        description="The likeliest tokens at each position; null if none were asked for."
    )
    text_offset: list[int] = Field(description="Offset of the token in the text, in characters.")


class CompletionChoice(BaseModel):
    index: int = Field(description="Index of the output, from 0.")
    text: str = Field(description="The text, or its next part.")
    logprobs: LegacyLogprobs | None = Field(description="Null unless asked for.")
    finish_reason: Finish | None = Field(
        description="Why the output ended; null in a chunk before its end."
    )


class _Response(BaseModel):
    """What a response and its chunks begin with."""

    id: str = Field(description="Of the response; the same in all its chunks.")
    object: str = Field(description="The kind of this object.")
    created: int = Field(description="Seconds since the epoch.")
    model: str = Field(description="The model that was asked for.")
    system_fingerprint: str | None = optional(
        "Of weights, kernels and versions: with another one, outputs may differ. Null "
        "for a model of another server."
    )


class PromptTokensDetails(BaseModel):
    cached_tokens: int = Field(
        description="Tokens of the prompts that were not read again: an earlier request had."
    )


class Usage(BaseModel):
    prompt_tokens: int = Field(description="Tokens of the prompts.")
    completion_tokens: int = Field(description="Generated tokens.")
    total_tokens: int = Field(description="The sum of both.")
    prompt_tokens_details: PromptTokensDetails | None = optional(
        "Null where it is not known, as before the end of a stream."
    )

    @classmethod
    def of(
        cls, prompt_tokens: int, completion_tokens: int, cached_tokens: int | None = None
    ) -> Self:
        details = None
        if cached_tokens is not None:
            details = PromptTokensDetails(cached_tokens=cached_tokens)
        return cls(
            prompt_tokens_details=details,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
        )


class CompletionView(_Response):
    """A whole completion, or a chunk of one."""

    object: Literal["text_completion"] = kind("text_completion")
    choices: list[CompletionChoice] = Field(description="The outputs, or their next parts.")
    usage: Usage | None = Field(description="Null in chunks, unless asked for.")


class TopLogprob(BaseModel):
    token: str = Field(description="Text of the token.")
    logprob: float = Field(description="Natural logarithm of its probability.")
    bytes: list[int] | None = Field(description="Its text in UTF-8; null if it is not known.")


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob] = Field(description="The likeliest tokens at this position.")


class ChoiceLogprobs(BaseModel):
    content: list[TokenLogprob] = Field(description="One for each token.")
    refusal: None = optional("Always null.")


class AssistantMessage(BaseModel):
    role: Literal["assistant"] = documented("assistant", "Always assistant.")
    content: str | None = Field(description="The generated text; null if it calls a tool.")
    tool_calls: list[ToolCall] | None = optional("What it calls; null unless asked for.")
    refusal: None = optional("Always null.")


class ChatChoice(BaseModel):
    index: int = Field(description="Index of the output, from 0.")
    message: AssistantMessage = Field(description="The answer.")
    logprobs: ChoiceLogprobs | None = Field(description="Null unless asked for.")
    finish_reason: ChatFinish = Field(description="Why the output ended.")


class ChatView(_Response):
    object: Literal["chat.completion"] = kind("chat.completion")
    choices: list[ChatChoice] = Field(description="The outputs.")
    usage: Usage = Field(description="Numbers of tokens.")


class ChunkChoice(BaseModel):
    index: int = Field(description="Index of the output, from 0.")
    delta: dict[Literal["role", "content", "tool_calls"], Any] = Field(
        description="The role, the next part of the text, or of the call of a tool."
    )
    logprobs: ChoiceLogprobs | None = Field(description="Of this part; null unless asked for.")
    finish_reason: ChatFinish | None = Field(
        description="Why the output ended; null before its end."
    )


class ChatChunk(_Response):
    object: Literal["chat.completion.chunk"] = kind("chat.completion.chunk")
    choices: list[ChunkChoice] = Field(description="The next parts of the outputs.")
    usage: Usage | None = Field(description="Null, unless asked for.")


class ModelCard(BaseModel):
    """A model. ``root``, ``parent`` and ``max_model_len`` are vLLM's."""

    id: str = Field(description="The name to ask for.")
    root: str = Field(description="The model that an alias means; else the id.")
    object: Literal["model"] = kind("model")
    created: int = Field(
        description="When a dense model was added or a checkpoint was published, in seconds since "
        "the epoch; 0 for a model of another server."
    )
    owned_by: Literal["sleb-serve"] = documented("sleb-serve", "Always this service.")
    parent: str | None = Field(description="The dense model that a variant was made of.")
    max_model_len: int | None = Field(
        description="Longest context in tokens; null if it is not known here."
    )


class ModelCardList(BaseModel):
    object: Literal["list"] = kind("list")
    data: list[ModelCard] = Field(description="The models.")


class ErrorDetail(BaseModel):
    message: str = Field(description="What was wrong, and what to do.")
    type: str = Field(description="Kind of the error, as in OpenAI's API.")
    param: str | None = Field(description="The field that caused it; null if none did.")
    code: str | None = Field(description="As in OpenAI's API; null if it has none for this.")


class ErrorView(BaseModel):
    error: ErrorDetail = Field(description="The error.")
