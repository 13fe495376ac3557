"""Request and response bodies of the OpenAI routes, with OpenAI's names, defaults and nulls.

A field that cannot change the output is accepted and ignored. A field that would, but is not
supported, is refused unless its value asks for nothing. Unknown fields are refused.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationInfo, field_validator

from app.api.schemas.bodies import Body, Ignored, documented, kind, optional
from app.api.schemas.chat_template import NOT_BOTH, TemplateFields
from app.api.schemas.generate import CACHE_SALT, MAX_PROMPTS, ModelName, StopStrings
from app.api.schemas.messages import Message, Nothing, Text, Unsupported, expected
from app.api.schemas.sampling import WHOLE, Integer, OpenAISamplingFields, TokenIds
from app.api.schemas.tools import ToolCall, ToolChoice, Tools
from app.engine.scheduling.sequence import MAX_NEW_TOKENS, MAX_TOP_LOGPROBS

MAX_CHOICES = 128
DEFAULT_CHAT_TOKENS = 1024
MAX_MESSAGES = 2048  # as in OpenAI's API


MaxTokens = Annotated[int, Field(strict=True, ge=1, le=MAX_NEW_TOKENS), WHOLE]
NoTools = Annotated[Nothing | None, expected("not supported here: remove it from the request")]
NoToolChoice = Annotated[Literal["none", "auto"] | None, expected("not supported: use tool_choice")]


def _only_with(field: str, schema: Mapping[str, Any], other: str) -> dict[str, Any]:
    """A JSON schema: the field may be as in ``schema`` only if the other one is true."""
    return {
        "if": {"properties": {field: schema}, "required": [field]},
        "then": {"properties": {other: {"const": True}}, "required": [other]},
    }


Prompts = Annotated[
    Text
    | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
    | TokenIds
    | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)],
    expected(
        "expected a string, a list of token ids of 0 or more, or a list of 1 to "
        f"{MAX_PROMPTS} of these; empty prompts are not allowed"
    ),
]


_STREAM_OPTIONS = _only_with("stream_options", {"type": "object"}, "stream")


class StreamOptions(Body):
    include_usage: StrictBool | None = optional("Send the token usage in a last chunk.")
    continuous_usage_stats: StrictBool | None = optional(
        "Send the token usage in every chunk, as in vLLM."
    )
    include_obfuscation: Ignored = None


class GenerationBody(Body, OpenAISamplingFields):
    """Fields shared by completions and chat completions."""

    model: ModelName = Field(description="A model, a variant or an alias.")
    n: Annotated[int, Field(strict=True, ge=1, le=MAX_CHOICES), WHOLE] | None = optional(
        "Number of outputs per prompt; 1 by default."
    )
    stop: Annotated[
        StopStrings | None,
        expected("expected a string, or a list of up to 16 strings of 1 to 256 characters"),
    ] = optional("Stop strings; the output ends before any of them.")
    stream: StrictBool | None = optional("Respond with server-sent events.")
    stream_options: StreamOptions | None = optional("Options for streaming; requires stream.")
    user: Ignored = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = optional(CACHE_SALT)

    @field_validator("stream_options")
    @classmethod
    def _needs_a_stream(
        cls, options: StreamOptions | None, info: ValidationInfo
    ) -> StreamOptions | None:
        if options and not info.data.get("stream"):
            raise ValueError("requires stream: true")
        return options


class CompletionBody(GenerationBody):
    """One or more prompts to complete, as strings or token ids."""

    model_config = ConfigDict(
        json_schema_extra={
            "allOf": [_STREAM_OPTIONS, _only_with("max_tokens", {"const": 0}, "echo")]
        }
    )

    prompt: Prompts = Field(description="One or more prompts, as strings or token ids.")
    best_of: Integer | None = optional("Must be equal to n.")
    echo: StrictBool | None = optional("Return the prompt before the output.")
    logprobs: Annotated[int, Field(strict=True, ge=0, le=5), WHOLE] | None = optional(
        "Number of most likely tokens to return at each position; with echo, also for the prompt."
    )
    max_tokens: Annotated[int, Field(strict=True, ge=0, le=MAX_NEW_TOKENS), WHOLE] | None = (
        optional("Maximum number of new tokens; 16 by default, 0 only with echo.")
    )
    suffix: Annotated[
        Literal[""] | None, expected("insertion is not supported: remove it from the request")
    ] = optional("Not supported.")

    @field_validator("max_tokens")
    @classmethod
    def _asks_for_something(cls, limit: int | None, info: ValidationInfo) -> int | None:
        if limit == 0 and not info.data.get("echo"):
            raise ValueError(
                "expected at least 1; 0 is only allowed with echo, which returns the prompt"
            )
        return limit


class ChatBody(GenerationBody, TemplateFields):
    """A conversation, for which the next message of the assistant is generated."""

    model_config = ConfigDict(
        json_schema_extra={
            "allOf": [
                _STREAM_OPTIONS,
                _only_with("top_logprobs", {"type": "integer"}, "logprobs"),
                NOT_BOTH,
            ]
        }
    )

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] = Field(
        description="Messages of the conversation so far."
    )
    logprobs: StrictBool | None = optional("Return the log probabilities of the output tokens.")
    top_logprobs: Annotated[int, Field(strict=True, ge=0, le=MAX_TOP_LOGPROBS), WHOLE] | None = (
        optional("Number of most likely tokens to return at each position; requires logprobs.")
    )
    max_completion_tokens: MaxTokens | None = optional(
        f"Maximum number of new tokens; {DEFAULT_CHAT_TOKENS} by default, or fewer if "
        "the context length is reached."
    )
    max_tokens: MaxTokens | None = optional("Same as max_completion_tokens.")
    modalities: Annotated[list[Literal["text"]] | None, expected('only ["text"] is supported')] = (
        optional("Must be text.")
    )
    tools: Tools | None = optional("Functions that the output may call.")
    tool_choice: ToolChoice | None = optional(
        "A function, or required: the output calls a function. none: the output is "
        "text. auto (default): the model decides, which requires a chat template with tool calls."
    )
    functions: NoTools = optional("Not supported: use tools.")
    function_call: NoToolChoice = optional("Has no effect without functions.")
    audio: Unsupported = optional("Not supported.")
    moderation: Unsupported = optional("Not supported.")
    reasoning_effort: Unsupported = optional("Not supported.")
    verbosity: Unsupported = optional("Not supported.")
    web_search_options: Unsupported = optional("Not supported.")
    parallel_tool_calls: StrictBool | None = optional(
        "false: an output calls at most one function."
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
            raise ValueError("requires logprobs: true")
        return top


Finish = Literal["stop", "length"]
ChatFinish = Literal["stop", "length", "tool_calls"]


class LegacyLogprobs(BaseModel):
    """Four lists with one element per token."""

    tokens: list[str] = Field(description="Texts of the tokens.")
    token_logprobs: list[float | None] = Field(
        description="Log probability of each token; null for the first prompt token."
    )
    top_logprobs: list[dict[str, float] | None] | None = Field(
        description="Most likely tokens at each position; null unless requested."
    )
    text_offset: list[int] = Field(description="Character offset of each token in the text.")


class CompletionChoice(BaseModel):
    index: int = Field(description="Index of the output, from 0.")
    text: str = Field(description="The text, or its next part.")
    logprobs: LegacyLogprobs | None = Field(description="Log probabilities; null unless requested.")
    finish_reason: Finish | None = Field(
        description="Finish reason; null in chunks before the last."
    )


class _Response(BaseModel):
    """Fields shared by a response and its chunks."""

    id: str = Field(description="Id of the response; the same in all its chunks.")
    object: str = Field(description="Type of this object.")
    created: int = Field(description="Creation time, in seconds since the epoch.")
    model: str = Field(description="Requested model.")
    system_fingerprint: str | None = optional(
        "Fingerprint of weights, kernels and versions; if it changes, outputs may "
        "change. Null for models on external servers."
    )


class PromptTokensDetails(BaseModel):
    cached_tokens: int = Field(description="Prompt tokens that were found in the prefix cache.")


class Usage(BaseModel):
    prompt_tokens: int = Field(description="Number of prompt tokens.")
    completion_tokens: int = Field(description="Number of generated tokens.")
    total_tokens: int = Field(description="Sum of prompt and generated tokens.")
    prompt_tokens_details: PromptTokensDetails | None = optional(
        "Details of the prompt tokens; null if unknown, e.g. before the end of a stream."
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
    usage: Usage | None = Field(description="Token usage; null in chunks unless requested.")


class TopLogprob(BaseModel):
    token: str = Field(description="Text of the token.")
    logprob: float = Field(description="Natural logarithm of its probability.")
    bytes: list[int] | None = Field(description="UTF-8 bytes of the token's text; null if unknown.")


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob] = Field(description="Most likely tokens at this position.")


class ChoiceLogprobs(BaseModel):
    content: list[TokenLogprob] = Field(description="Log probabilities, one per token.")
    refusal: None = optional("Always null.")


class AssistantMessage(BaseModel):
    role: Literal["assistant"] = documented("assistant", "Always assistant.")
    content: str | None = Field(description="Generated text; null if the output is a tool call.")
    tool_calls: list[ToolCall] | None = optional("Tool calls of the output; null unless requested.")
    refusal: None = optional("Always null.")


class ChatChoice(BaseModel):
    index: int = Field(description="Index of the output, from 0.")
    message: AssistantMessage = Field(description="The generated message.")
    logprobs: ChoiceLogprobs | None = Field(description="Log probabilities; null unless requested.")
    finish_reason: ChatFinish = Field(description="Finish reason of the output.")


class ChatView(_Response):
    object: Literal["chat.completion"] = kind("chat.completion")
    choices: list[ChatChoice] = Field(description="The outputs.")
    usage: Usage = Field(description="Token usage.")


class ChunkChoice(BaseModel):
    index: int = Field(description="Index of the output, from 0.")
    delta: dict[Literal["role", "content", "tool_calls"], Any] = Field(
        description="Role, next part of the text, or next part of a tool call."
    )
    logprobs: ChoiceLogprobs | None = Field(
        description="Log probabilities of this part; null unless requested."
    )
    finish_reason: ChatFinish | None = Field(
        description="Finish reason; null until the output ends."
    )


class ChatChunk(_Response):
    object: Literal["chat.completion.chunk"] = kind("chat.completion.chunk")
    choices: list[ChunkChoice] = Field(description="The next parts of the outputs.")
    usage: Usage | None = Field(description="Token usage; null unless requested.")


class ModelCard(BaseModel):
    """A model. ``root``, ``parent`` and ``max_model_len`` are as in vLLM."""

    id: str = Field(description="Model name for requests.")
    root: str = Field(description="Target of an alias; otherwise equal to id.")
    object: Literal["model"] = kind("model")
    created: int = Field(
        description="When a dense model was added or a checkpoint was published, in seconds since "
        "the epoch; 0 for a model of another server."
    )
    owned_by: Literal["sleb-serve"] = documented("sleb-serve", "Owner; always this service.")
    parent: str | None = Field(description="Dense model of a variant.")
    max_model_len: int | None = Field(description="Context length in tokens; null if unknown.")


class ModelCardList(BaseModel):
    object: Literal["list"] = kind("list")
    data: list[ModelCard] = Field(description="The models.")


class ErrorDetail(BaseModel):
    message: str = Field(description="What was wrong, and what to do.")
    type: str = Field(description="Kind of the error, as in OpenAI's API.")
    param: str | None = Field(description="Field that caused the error; null if none did.")
    code: str | None = Field(
        description="Error code of OpenAI's API; null if it has none for this error."
    )


class ErrorView(BaseModel):
    error: ErrorDetail = Field(description="The error.")
