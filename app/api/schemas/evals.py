"""The request body of an evaluation."""

from typing import Annotated, Literal, get_args

from pydantic import Field

from app.api.schemas.fields import documented
from app.api.schemas.generate import Body, ModelName

Text = Literal["prose", "code", "documentation"]
TEXTS: tuple[Text, ...] = get_args(Text)
MAX_WINDOWS = 128
MAX_SEQLEN = 4096


class EvalBody(Body):
    """Windows of packaged held-out text, which no job has calibrated on."""

    model: ModelName = Field(description="A dense model, a variant or an alias.")
    texts: Annotated[list[Text], Field(min_length=1, max_length=3)] = documented(
        list(TEXTS), "The packaged texts to measure on."
    )
    num_windows: Annotated[int, Field(ge=1, le=MAX_WINDOWS)] = documented(
        16, "Windows of each text; intervals need three."
    )
    seqlen: Annotated[int, Field(ge=2, le=MAX_SEQLEN)] = documented(128, "Tokens of a window.")
