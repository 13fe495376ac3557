"""What published clients do with tools: run by a Python that has them, with the service's URL.

Nothing of this project is imported here. A failed assertion ends the script with its traceback.
"""

import json
import sys
from importlib.metadata import version
from typing import Any

import openai
from langchain.agents import create_agent
from langchain_openai import ChatOpenAI

QUESTION = "the dog"
RESULTS = {"weather": "sunny=", "clock": "noon+"}
ANSWER = "It is noon and sunny."
ARGUMENTS = {"weather": {"city": "Oslo"}, "clock": {"zone": 3}}
PARAMETERS = {
    "weather": {"type": "object", "properties": {"city": {"type": "string"}}},
    "clock": {"type": "object", "properties": {"zone": {"type": "integer"}}},
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "parameters": {**schema, "required": [*schema["properties"]]}},
    }
    for name, schema in PARAMETERS.items()
]


def by_openai(url: str, *, is_streamed: bool) -> list[str]:
    """The loop of OpenAI's documentation: call what the model asks for until it answers."""
    api: Any = openai.OpenAI(base_url=url, api_key="-", max_retries=0)
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    called: list[str] = []
    while True:
        asked: dict[str, Any] = {
            "model": "scripted",
            "messages": messages,
            "tools": TOOLS,
            "temperature": 0,
        }
        if is_streamed:
            with api.chat.completions.stream(**asked) as stream:
                events = [event.type for event in stream]
                choice = stream.get_final_completion().choices[0]
        else:
            events, choice = [], api.chat.completions.create(**asked).choices[0]
        message = choice.message
        if not message.tool_calls:
            assert choice.finish_reason == "stop"
            return [*called, message.content]
        assert choice.finish_reason == "tool_calls"
        assert not message.content
        [call] = message.tool_calls
        name = call.function.name
        assert json.loads(call.function.arguments) == ARGUMENTS[name]
        if is_streamed:
            assert events.count("tool_calls.function.arguments.delta") > 1
        called.append(name)
        messages += [message, {"role": "tool", "tool_call_id": call.id, "content": RESULTS[name]}]


def weather(city: str) -> str:
    """Say how the weather is."""
    assert city == "Oslo"
    return RESULTS["weather"]


def clock(zone: int) -> str:
    """Say what time it is."""
    assert zone == 3
    return RESULTS["clock"]


def by_langchain(url: str) -> list[str]:
    chat = ChatOpenAI(base_url=url, api_key="-", model="scripted", temperature=0, max_retries=0)
    bound = chat.bind_tools([weather, clock])
    [call] = bound.invoke(QUESTION).tool_calls
    assert (call["name"], call["args"]) == ("weather", ARGUMENTS["weather"])
    whole: Any = None
    for chunk in bound.stream(QUESTION):
        whole = chunk if whole is None else whole + chunk
    assert [(each["name"], each["args"]) for each in whole.tool_calls] == [
        (call["name"], call["args"])
    ]
    agent = create_agent(chat, [weather, clock])
    result = agent.invoke({"messages": [{"role": "user", "content": QUESTION}]})
    called = [
        each["name"]
        for message in result["messages"]
        for each in getattr(message, "tool_calls", ())
    ]
    return [*called, result["messages"][-1].content]


if __name__ == "__main__":
    [service] = sys.argv[1:]
    said = {
        "openai": by_openai(service, is_streamed=False),
        "openai, streamed": by_openai(service, is_streamed=True),
        "langchain": by_langchain(service),
    }
    packages = ("openai", "langchain", "langchain-core", "langchain-openai")
    sys.stdout.write(
        f"{json.dumps({'said': said, 'versions': {each: version(each) for each in packages}})}\n"
    )
