"""Functions that a chat completion may call, and the calls in its response, as OpenAI has them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StrictBool

from app.api.schemas.bodies import Body, documented, optional
from app.api.schemas.response_format import SchemaName

MAX_TOOLS = 128


class FunctionSpec(Body):
    name: SchemaName = Field(description="Its name.")
    description: str | None = optional("What it does, for a chat template that tells the model.")
    parameters: dict[str, Any] | None = optional(
        "A JSON schema of its arguments; by default, of any object. It is enforced unless "
        "tool_choice is auto."
    )
    strict: StrictBool | None = optional("Has no effect.")


class Tool(Body):
    type: Literal["function"] = Field(description="The kind of the tool.")
    function: FunctionSpec = Field(description="The function.")


class FunctionName(Body):
    name: SchemaName = Field(description="One of the tools.")


class NamedTool(Body):
    type: Literal["function"] = Field(description="The kind of the tool.")
    function: FunctionName = Field(description="The function to call.")


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS)]
ToolChoice = Literal["none", "auto", "required"] | NamedTool


class CalledFunction(BaseModel):
    name: str = Field(description="One of the tools.")
    arguments: str = Field(description="JSON by the schema of its parameters.")


class ToolCall(BaseModel):
    id: str = Field(description="Of the call.")
    type: Literal["function"] = documented("function", "The kind of the tool.")
    function: CalledFunction = Field(description="What to call, and with what.")
