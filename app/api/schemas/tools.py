"""Functions that a chat completion may call, and the calls in its response, as OpenAI has them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StrictBool

from app.api.schemas.bodies import Body, documented, optional
from app.api.schemas.response_format import SchemaName

MAX_TOOLS = 128


class FunctionSpec(Body):
    name: SchemaName = Field(description="Name of the function.")
    description: str | None = optional("Description of the function, for the chat template.")
    parameters: dict[str, Any] | None = optional(
        "JSON schema of the arguments; any object by default. With tool_choice auto, it is "
        "enforced for templates in the form of Hermes and Qwen only."
    )
    strict: StrictBool | None = optional("Has no effect.")


class Tool(Body):
    type: Literal["function"] = Field(description="Type of the tool.")
    function: FunctionSpec = Field(description="Definition of the function.")

    def as_template_input(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True)


class FunctionName(Body):
    name: SchemaName = Field(description="Name of one of the tools.")


class NamedTool(Body):
    type: Literal["function"] = Field(description="Type of the tool.")
    function: FunctionName = Field(description="Function to call.")


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS)]
ToolChoice = Literal["none", "auto", "required"] | NamedTool


class CalledFunction(BaseModel):
    name: str = Field(description="Name of one of the tools.")
    arguments: str = Field(description="Arguments as JSON that matches the schema of the function.")


class ToolCall(BaseModel):
    id: str = Field(description="Id of the call.")
    type: Literal["function"] = documented("function", "Type of the tool.")
    function: CalledFunction = Field(description="Called function and its arguments.")
