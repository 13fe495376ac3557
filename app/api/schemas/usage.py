"""Numbers of tokens, as OpenAI reports them."""

from typing import Self

from pydantic import BaseModel, Field

from app.api.schemas.fields import optional


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
