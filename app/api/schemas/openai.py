"""Request and response bodies of the OpenAI routes, with OpenAI's names, defaults and nulls.

A field that cannot change the output is accepted and ignored. A field that would, but is not
supported, is refused unless its value asks for nothing. Unknown fields are refused.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    StrictBool,
    StrictInt,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    WrapValidator,
    field_validator,
)
from pydantic_core import PydanticCustomError

from app.api.schemas.generate import MAX_PROMPTS, Body, ModelName, StopStrings
from app.api.schemas.sampling import OpenAISamplingFields
from app.engine.sequence import MAX_NEW_TOKENS, MAX_TOP_LOGPROBS

MAX_CHOICES = 128
DEFAULT_CHAT_TOKENS = 1024
MAX_MESSAGES = 2048  # as in OpenAI's API
# Beyond any vocabulary. Tokenizers raise for larger numbers when a prompt is echoed.
TokenId = Annotated[int, Field(strict=True, ge=0, lt=2**32)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]


def _encodable(text: str) -> str:
    text.encode()  # pydantic accepts lone surrogates in a union
    return text


AnyText = Annotated[str, AfterValidator(_encodable)]
Text = Annotated[AnyText, StringConstraints(min_length=1)]


def _or(message: str) -> WrapValidator:
    """Report one error with this message, in place of one per member of a union."""

    def check(value: object, handler: Callable[[object], object]) -> object:
        try:
            return handler(value)
        except ValidationError:
            raise PydanticCustomError("expected", message) from None

    return WrapValidator(check)


MaxTokens = Annotated[int, Field(strict=True, ge=1, le=MAX_NEW_TOKENS)]
Nothing = Annotated[list[Any], Field(max_length=0)]
NoTools = Annotated[Nothing | None, _or("tools are not supported: leave it out")]
NoToolChoice = Annotated[
    Literal["none", "auto"] | None, _or("tools are not supported: leave it out")
]
Unsupported = Annotated[None, _or("not supported: leave it out")]
Ignored = Annotated[Any, Field(description="Accepted and ignored.")]
Prompts = Annotated[
    Text
    | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
    | TokenIds
    | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)],
    _or(
        f"expected a text, a list of token ids from 0 on, or a list of 1 to {MAX_PROMPTS} of "
        "either kind, none of them empty"
    ),
]


class StreamOptions(Body):
    include_usage: StrictBool | None = None
    continuous_usage_stats: StrictBool | None = None  # vLLM's: usage in every chunk
    include_obfuscation: Ignored = None


class GenerationBody(Body, OpenAISamplingFields):
    """Fields of both kinds of completions."""

    model: ModelName
    n: Annotated[int, Field(strict=True, ge=1, le=MAX_CHOICES)] | None = None
    stop: Annotated[
        StopStrings | None, _or("expected a text or a list of up to 16, of 1 to 256 characters")
    ] = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    user: Ignored = None

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

    prompt: Prompts
    best_of: StrictInt | None = None
    echo: StrictBool | None = None
    logprobs: Annotated[int, Field(strict=True, ge=0, le=5)] | None = None
    max_tokens: MaxTokens | None = Field(default=None, description="16 by default.")
    suffix: Annotated[Literal[""] | None, _or("insertion is not supported: leave it out")] = None

    @field_validator("best_of")
    @classmethod
    def _returns_all(cls, best_of: int | None, info: ValidationInfo) -> int | None:
        if best_of is not None and best_of != (info.data.get("n") or 1):
            raise ValueError("expected the same as n: this service returns all outputs")
        return best_of

    @field_validator("logprobs")
    @classmethod
    def _are_of_the_answer(cls, logprobs: int | None, info: ValidationInfo) -> int | None:
        if logprobs is not None and info.data.get("echo"):
            raise ValueError("not together with echo: prompts have no log-probabilities")
        return logprobs


class TextPart(Body):
    type: Literal["text"]
    text: AnyText


class Message(Body):
    """A message. Null fields of an earlier response are accepted, so that it can be sent back."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        AnyText | list[TextPart],
        _or('expected a text or a list of parts {"type": "text", "text": "..."}, and no other'),
    ]
    name: AnyText | None = None
    annotations: Nothing | None = None
    audio: Unsupported = None
    function_call: Unsupported = None
    refusal: Unsupported = None
    tool_calls: NoTools = None

    def as_template_input(self) -> dict[str, str]:
        """Return what chat templates expect. Developer messages become system messages."""
        role = "system" if self.role == "developer" else self.role
        parts = [self.content] if isinstance(self.content, str) else self.content
        text = "\n".join(part if isinstance(part, str) else part.text for part in parts)
        return {"role": role, "content": text} | ({"name": self.name} if self.name else {})


class _TextFormat(Body):
    type: Literal["text"]


class ChatBody(GenerationBody):
    """Messages, to which the assistant's next one is generated."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[int, Field(strict=True, ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    max_completion_tokens: MaxTokens | None = Field(
        default=None,
        description=f"{DEFAULT_CHAT_TOKENS} by default, or fewer if the context ends before.",
    )
    max_tokens: MaxTokens | None = Field(default=None, description="Same as max_completion_tokens.")
    response_format: Annotated[_TextFormat | None, _or('only {"type": "text"} is supported')] = None
    modalities: Annotated[list[Literal["text"]] | None, _or('only ["text"] is supported')] = None
    tools: NoTools = None
    tool_choice: NoToolChoice = None
    functions: NoTools = None
    function_call: NoToolChoice = None
    audio: Unsupported = None
    moderation: Unsupported = None
    reasoning_effort: Unsupported = None
    verbosity: Unsupported = None
    web_search_options: Unsupported = None
    metadata: Ignored = None
    parallel_tool_calls: Ignored = None
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

    @field_validator("max_tokens")
    @classmethod
    def _is_one_limit(cls, limit: int | None, info: ValidationInfo) -> int | None:
        if limit is not None and info.data.get("max_completion_tokens") not in (None, limit):
            raise ValueError("differs from max_completion_tokens: send one of them")
        return limit


Finish = Literal["stop", "length"]


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, prompt_tokens: int, completion_tokens: int) -> Self:
        return cls(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
        )


class LegacyLogprobs(BaseModel):
    """Four lists with one element per token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int] = Field(description="Offset of the token in the output, in characters.")


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: LegacyLogprobs | None
    finish_reason: Finish | None


class CompletionView(BaseModel):
    """A whole completion, or a chunk of one."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(BaseModel):
    content: list[TokenLogprob]
    refusal: None = None


class AssistantMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    index: int
    message: AssistantMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: Finish


class ChatView(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ChunkChoice(BaseModel):
    index: int
    delta: dict[Literal["role", "content"], str]
    logprobs: ChoiceLogprobs | None
    finish_reason: Finish | None


class ChatChunk(BaseModel):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None


class ModelCard(BaseModel):
    """A model. ``root``, ``parent`` and ``max_model_len`` are vLLM's."""

    id: str
    root: str = Field(description="The model that an alias means; else the id.")
    object: Literal["model"] = "model"
    created: int = Field(
        description="Publication time in seconds since the epoch; 0 for a dense model."
    )
    owned_by: Literal["sleb-serve"] = "sleb-serve"
    parent: str | None
    max_model_len: int | None


class ModelCardList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorView(BaseModel):
    error: ErrorDetail
