"""Texts and messages as tokens, and tokens as text, with the bodies of vLLM's routes."""

import asyncio
from typing import Annotated, Self

from fastapi import APIRouter
from pydantic import BaseModel, Field, StrictBool, model_validator

from app.api.deps import GeneratorDep
from app.api.generations import SheddingRoute
from app.api.openapi import responses_for
from app.api.schemas.bodies import Body, optional
from app.api.schemas.chat_template import TemplateFields
from app.api.schemas.generate import ModelName
from app.api.schemas.messages import Message, Text
from app.api.schemas.openai import MAX_MESSAGES
from app.api.schemas.sampling import TokenIds
from app.api.schemas.tools import Tools
from app.generation.generator import RAISES
from app.generation.request import Chat
from app.generation.tokenization import Rendered
from app.generation.vocabulary import Vocabulary

router = APIRouter(tags=["generate"], route_class=SheddingRoute)
_RESPONSES = responses_for(*RAISES, has_body=True)


class TokenizeBody(Body, TemplateFields):
    """A prompt, or messages for the chat template."""

    model: ModelName = Field(description="A model, a variant or an alias.")
    prompt: Text | None = optional("Text to tokenize.")
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] | None = (
        optional("Messages to tokenize, in place of a prompt.")
    )
    tools: Tools | None = optional("Functions for the chat template.")
    add_special_tokens: StrictBool | None = optional(
        "Whether a prompt gets the special tokens that the model begins with; true by default."
    )
    return_token_strs: StrictBool | None = optional("Return the texts of the tokens, too.")

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("expected either prompt or messages")
        return self

    @property
    def to_encode(self) -> str | Chat | Rendered:
        if self.messages is not None:
            messages = [message.as_template_input() for message in self.messages]
            tools = tuple(tool.as_template_input() for tool in self.tools or ())
            return Chat(messages, tools, **self.template_options)
        text = self.prompt or ""
        return Rendered(text) if self.add_special_tokens is False else text


class TokenizeView(BaseModel):
    count: int = Field(description="Number of tokens.")
    max_model_len: int | None = Field(description="Context length in tokens; null if unknown.")
    tokens: list[int] = Field(description="Token ids.")
    token_strs: list[str] | None = Field(description="Texts of the tokens; null unless requested.")


class DetokenizeBody(Body):
    model: ModelName = Field(description="A model, a variant or an alias.")
    tokens: TokenIds = Field(description="Token ids.")


class DetokenizeView(BaseModel):
    prompt: str = Field(description="Text of the tokens, with special tokens by name.")


@router.post("/tokenize", responses=_RESPONSES)
async def tokenize(body: TokenizeBody, generator: GeneratorDep) -> TokenizeView:
    """Return the token ids of a prompt, or of messages with the chat template. Loads no weights."""
    entry, tokenizer = await generator.tokenizer(body.model)
    tokens = await generator.engine.tokenize(body.to_encode, tokenizer, entry)
    spell, spelled = Vocabulary(tokenizer).spell, None
    if body.return_token_strs:
        spelled = await asyncio.to_thread(lambda: [*map(spell, tokens)])
    return TokenizeView(
        count=len(tokens),
        max_model_len=entry.info.max_positions if entry.info else None,
        tokens=list(tokens),
        token_strs=spelled,
    )


@router.post("/detokenize", responses=_RESPONSES)
async def detokenize(body: DetokenizeBody, generator: GeneratorDep) -> DetokenizeView:
    """Return the text of token ids. Loads no weights."""
    _, tokenizer = await generator.tokenizer(body.model)
    text = await asyncio.to_thread(Vocabulary(tokenizer).decode, body.tokens, "tokens")
    return DetokenizeView(prompt=text)
