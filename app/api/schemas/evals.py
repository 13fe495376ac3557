"""The request body of an evaluation."""

from typing import Annotated, Literal, get_args

from pydantic import Field

from app.api.schemas.generate import Body, ModelName

Text = Literal["prose", "code", "documentation"]
TEXTS: tuple[Text, ...] = get_args(Text)
MAX_WINDOWS = 128
MAX_SEQLEN = 4096


class EvalBody(Body):
    """Windows of packaged held-out text, which no job has calibrated on."""

    model: ModelName = Field(description="A dense model, a variant or an alias.")
    texts: Annotated[list[Text], Field(min_length=1, max_length=3)] = Field(
        default=list(TEXTS), description="The packaged texts to measure on."
    )
    num_windows: Annotated[int, Field(ge=1, le=MAX_WINDOWS)] = Field(
        default=16, description="Windows of each text; intervals need three."
    )
    seqlen: Annotated[int, Field(ge=2, le=MAX_SEQLEN)] = Field(
        default=128, description="Tokens of a window."
    )
