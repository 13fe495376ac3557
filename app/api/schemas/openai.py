"""Request and response bodies of the OpenAI routes, with OpenAI's names, defaults and nulls.

A field that cannot change the output is accepted and ignored. A field that would, but is not
supported, is refused unless its value asks for nothing. Unknown fields are refused.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    WrapValidator,
    field_validator,
)
from pydantic_core import PydanticCustomError

from app.api.schemas.generate import CACHE_SALT, MAX_PROMPTS, Body, ModelName, StopStrings
from app.api.schemas.numbers import WHOLE, Integer, TokenIds
from app.api.schemas.sampling import OpenAISamplingFields
from app.api.schemas.tools import ToolCall, ToolChoice, Tools
from app.api.schemas.usage import Usage
from app.engine.scheduling.sequence import MAX_NEW_TOKENS, MAX_TOP_LOGPROBS

MAX_CHOICES = 128
DEFAULT_CHAT_TOKENS = 1024
MAX_MESSAGES = 2048  # as in OpenAI's API


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


MaxTokens = Annotated[int, Field(strict=True, ge=1, le=MAX_NEW_TOKENS), WHOLE]
Nothing = Annotated[list[Any], Field(max_length=0)]
NoTools = Annotated[Nothing | None, _or("not supported here: leave it out")]
NoToolChoice = Annotated[Literal["none", "auto"] | None, _or("not supported: use tool_choice")]


def _only_with(field: str, schema: Mapping[str, Any], other: str) -> dict[str, Any]:
    """A JSON schema: the field may be as in ``schema`` only if the other one is true."""
    return {
        "if": {"properties": {field: schema}, "required": [field]},
        "then": {"properties": {other: {"const": True}}, "required": [other]},
    }


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


_STREAM_OPTIONS = _only_with("stream_options", {"type": "object"}, "stream")


class StreamOptions(Body):
    include_usage: StrictBool | None = Field(
        default=None, description="Whether a last chunk has the usage."
    )
    continuous_usage_stats: StrictBool | None = Field(
        default=None, description="Whether every chunk has the usage, as in vLLM."
    )
    include_obfuscation: Ignored = None


class GenerationBody(Body, OpenAISamplingFields):
    """Fields of both kinds of completions."""

    model: ModelName = Field(description="A model, a variant or an alias.")
    n: Annotated[int, Field(strict=True, ge=1, le=MAX_CHOICES), WHOLE] | None = Field(
        default=None, description="Number of outputs of each prompt; 1 by default."
    )
    stop: Annotated[
        StopStrings | None, _or("expected a text or a list of up to 16, of 1 to 256 characters")
    ] = Field(default=None, description="An output ends before any of these strings.")
    stream: StrictBool | None = Field(default=None, description="Respond with server-sent events.")
    stream_options: StreamOptions | None = Field(default=None, description="Only with stream.")
    user: Ignored = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        default=None, description=CACHE_SALT
    )

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
    best_of: Integer | None = Field(default=None, description="Only the value of n.")
    echo: StrictBool | None = Field(
        default=None, description="Repeat the prompt in front of the output."
    )
    logprobs: Annotated[int, Field(strict=True, ge=0, le=5), WHOLE] | None = Field(
        default=None,
        description="Number of likeliest tokens to report at each position; with echo, of the "
        "prompt too.",
    )
    max_tokens: Annotated[int, Field(strict=True, ge=0, le=MAX_NEW_TOKENS), WHOLE] | None = Field(
        default=None, description="16 by default; 0 only with echo."
    )
    suffix: Annotated[Literal[""] | None, _or("insertion is not supported: leave it out")] = Field(
        default=None, description="Not supported."
    )

    @field_validator("max_tokens")
    @classmethod
    def _asks_for_something(cls, limit: int | None, info: ValidationInfo) -> int | None:
        if limit == 0 and not info.data.get("echo"):
            raise ValueError("expected at least 1: 0 is for echo, which returns the prompt")
        return limit


class TextPart(Body):
    type: Literal["text"] = Field(description="The kind of the part.")
    text: AnyText = Field(description="The text.")


class Message(Body):
    """A message. Null fields of an earlier response are accepted, so that it can be sent back."""

    role: Literal["system", "developer", "user", "assistant"] = Field(description="Who says it.")
    content: Annotated[
        AnyText | list[TextPart],
        _or('expected a text or a list of parts {"type": "text", "text": "..."}, and no other'),
    ] = Field(description="The text, or its parts.")
    name: AnyText | None = Field(default=None, description="Given to the chat template.")
    annotations: Nothing | None = Field(default=None, description="Only empty or null.")
    audio: Unsupported = Field(default=None, description="Only null.")
    function_call: Unsupported = Field(default=None, description="Only null.")
    refusal: Unsupported = Field(default=None, description="Only null.")
    tool_calls: NoTools = Field(default=None, description="Only empty or null.")

    def as_template_input(self) -> dict[str, str]:
        """Return what chat templates expect. Developer messages become system messages."""
        role = "system" if self.role == "developer" else self.role
        parts = [self.content] if isinstance(self.content, str) else self.content
        text = "\n".join(part if isinstance(part, str) else part.text for part in parts)
        return {"role": role, "content": text} | ({"name": self.name} if self.name else {})


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
    logprobs: StrictBool | None = Field(
        default=None, description="Whether tokens have their log-probabilities."
    )
    top_logprobs: Annotated[int, Field(strict=True, ge=0, le=MAX_TOP_LOGPROBS), WHOLE] | None = (
        Field(
            default=None,
            description="Number of likeliest tokens to report at each position; needs logprobs.",
        )
    )
    max_completion_tokens: MaxTokens | None = Field(
        default=None,
        description=f"{DEFAULT_CHAT_TOKENS} by default, or fewer if the context ends before.",
    )
    max_tokens: MaxTokens | None = Field(default=None, description="Same as max_completion_tokens.")
    modalities: Annotated[list[Literal["text"]] | None, _or('only ["text"] is supported')] = Field(
        default=None, description="Only text."
    )
    tools: Tools | None = Field(default=None, description="Functions that an output may call.")
    tool_choice: ToolChoice | None = Field(
        default=None,
        description="A function, or required: an output calls one. none: an output is text. auto, "
        "the default, is refused with tools.",
    )
    functions: NoTools = Field(default=None, description="Not supported: see tools.")
    function_call: NoToolChoice = Field(
        default=None, description="Has no effect without functions."
    )
    audio: Unsupported = Field(default=None, description="Not supported.")
    moderation: Unsupported = Field(default=None, description="Not supported.")
    reasoning_effort: Unsupported = Field(default=None, description="Not supported.")
    verbosity: Unsupported = Field(default=None, description="Not supported.")
    web_search_options: Unsupported = Field(default=None, description="Not supported.")
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


class CompletionView(BaseModel):
    """A whole completion, or a chunk of one."""

    id: str = Field(description="Of the response; the same in all its chunks.")
    object: Literal["text_completion"] = Field(
        default="text_completion", description="The kind of this object."
    )
    created: int = Field(description="Seconds since the epoch.")
    model: str = Field(description="The model that was asked for.")
    system_fingerprint: str | None = Field(
        default=None,
        description="Of weights, kernels and versions: with another one, outputs may differ. Null "
        "for a model of another server.",
    )
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
    refusal: None = Field(default=None, description="Always null.")


class AssistantMessage(BaseModel):
    role: Literal["assistant"] = Field(default="assistant", description="Always assistant.")
    content: str | None = Field(description="The generated text; null if it calls a tool.")
    tool_calls: list[ToolCall] | None = Field(
        default=None, description="What it calls; null unless asked for."
    )
    refusal: None = Field(default=None, description="Always null.")


class ChatChoice(BaseModel):
    index: int = Field(description="Index of the output, from 0.")
    message: AssistantMessage = Field(description="The answer.")
    logprobs: ChoiceLogprobs | None = Field(description="Null unless asked for.")
    finish_reason: ChatFinish = Field(description="Why the output ended.")


class ChatView(BaseModel):
    id: str = Field(description="Of the response.")
    object: Literal["chat.completion"] = Field(
        default="chat.completion", description="The kind of this object."
    )
    created: int = Field(description="Seconds since the epoch.")
    model: str = Field(description="The model that was asked for.")
    system_fingerprint: str | None = Field(
        default=None,
        description="Of weights, kernels and versions: with another one, outputs may differ. Null "
        "for a model of another server.",
    )
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


class ChatChunk(BaseModel):
    id: str = Field(description="The same in all chunks of a response.")
    object: Literal["chat.completion.chunk"] = Field(
        default="chat.completion.chunk", description="The kind of this object."
    )
    created: int = Field(description="Seconds since the epoch.")
    model: str = Field(description="The model that was asked for.")
    system_fingerprint: str | None = Field(
        default=None,
        description="Of weights, kernels and versions: with another one, outputs may differ. Null "
        "for a model of another server.",
    )
    choices: list[ChunkChoice] = Field(description="The next parts of the outputs.")
    usage: Usage | None = Field(description="Null, unless asked for.")


class ModelCard(BaseModel):
    """A model. ``root``, ``parent`` and ``max_model_len`` are vLLM's."""

    id: str = Field(description="The name to ask for.")
    root: str = Field(description="The model that an alias means; else the id.")
    object: Literal["model"] = Field(default="model", description="The kind of this object.")
    created: int = Field(
        description="Publication time in seconds since the epoch; 0 for a dense model."
    )
    owned_by: Literal["sleb-serve"] = Field(
        default="sleb-serve", description="Always this service."
    )
    parent: str | None = Field(description="The dense model that a variant was made of.")
    max_model_len: int | None = Field(
        description="Longest context in tokens; null if it is not known here."
    )


class ModelCardList(BaseModel):
    object: Literal["list"] = Field(default="list", description="The kind of this object.")
    data: list[ModelCard] = Field(description="The models.")


class ErrorDetail(BaseModel):
    message: str = Field(description="What was wrong, and what to do.")
    type: str = Field(description="Kind of the error, as in OpenAI's API.")
    param: str | None = Field(description="The field that caused it; null if none did.")
    code: str | None = Field(description="As in OpenAI's API; null if it has none for this.")


class ErrorView(BaseModel):
    error: ErrorDetail = Field(description="The error.")
