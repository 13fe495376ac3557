"""What published clients do with a service: run by a Python that has them, with the service's URL.

Nothing of this project is imported here. A failed assertion ends the script with its traceback.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import litellm
import openai
from langchain_openai import ChatOpenAI, OpenAI

QUESTION = "the dog"
USER = [{"role": "user", "content": QUESTION}]
SCHEMA = {
    "title": "person",
    "description": "A person.",
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 4},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "city": {"type": "string", "enum": ["Rome", "Oslo"]},
    },
    "required": ["name", "age", "city"],
    "additionalProperties": False,
}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
MANY = 6  # requests at once, more than the service takes


def by_openai(url: str, key: str) -> list[str]:
    api: Any = openai.OpenAI(base_url=url, api_key=key, max_retries=0)
    assert [model.id for model in api.models.list()] == ["tiny"]
    assert api.models.retrieve("tiny").id == "tiny"
    ask: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 8}
    chat = api.chat.completions.create(messages=USER, logprobs=True, top_logprobs=2, **ask)
    text = chat.choices[0].message.content
    assert text
    assert chat.usage.completion_tokens == len(chat.choices[0].logprobs.content)
    chunks = api.chat.completions.create(
        messages=USER, stream=True, stream_options={"include_usage": True}, **ask
    )
    parts = list(chunks)
    assert "".join(each.choices[0].delta.content or "" for each in parts if each.choices) == text
    assert parts[-1].usage == chat.usage
    completion = api.completions.create(prompt=[QUESTION, "a"], logprobs=1, **ask)
    assert completion.choices[0].text == text  # the template adds nothing
    assert len(completion.choices) == 2
    long = {**ask, "max_tokens": 120, "temperature": 1, "seed": 5}
    answer = api.chat.completions.create(messages=USER, response_format=FORMAT, **long)
    jsonschema.validate(json.loads(answer.choices[0].message.content), SCHEMA)
    raises(
        openai.NotFoundError, lambda: api.completions.create(**{**ask, "model": "no"}, prompt="a")
    )
    raises(openai.NotFoundError, lambda: api.embeddings.create(model="tiny", input="a"))
    raises(
        openai.BadRequestError, lambda: api.completions.create(**{**ask, "top_p": 3}, prompt="a")
    )
    wrong = {**FORMAT, "json_schema": {"name": "a", "schema": {"uniqueItems": True}}}
    raises(
        openai.BadRequestError,
        lambda: api.chat.completions.create(messages=USER, response_format=wrong, **ask),
    )
    raises(
        openai.AuthenticationError,
        openai.OpenAI(base_url=url, api_key="wrong", max_retries=0).models.list,
    )
    patient = api.with_options(max_retries=20)
    return at_once(
        lambda: patient.chat.completions.create(messages=USER, **ask).choices[0].message.content
    )


def by_langchain(url: str, key: str) -> list[str]:
    options: dict[str, Any] = {"base_url": url, "api_key": key, "model": "tiny", "max_retries": 0}
    chat = ChatOpenAI(**options, temperature=0, max_tokens=8)
    message = chat.bind(logprobs=True).invoke(QUESTION)
    text = message.content
    assert text
    assert message.usage_metadata["output_tokens"] == len(
        message.response_metadata["logprobs"]["content"]
    )
    assert "".join(part.content for part in chat.stream(QUESTION)) == text
    assert OpenAI(**options, temperature=0, max_tokens=8).invoke(QUESTION) == text
    long = ChatOpenAI(**options, temperature=1, seed=5, max_tokens=120)
    answer = long.with_structured_output(SCHEMA, method="json_schema").invoke(QUESTION)
    jsonschema.validate(answer, SCHEMA)
    mode = long.bind(response_format={"type": "json_object"})
    assert mode.invoke(QUESTION).content.startswith("{")
    raises(openai.NotFoundError, lambda: ChatOpenAI(**{**options, "model": "no"}).invoke("a"))
    raises(openai.BadRequestError, lambda: chat.bind(top_p=3).invoke("a"))
    patient = ChatOpenAI(**{**options, "max_retries": 20}, temperature=0, max_tokens=8)
    return at_once(lambda: patient.invoke(QUESTION).content)


def by_litellm(url: str, key: str) -> list[str]:
    ask: dict[str, Any] = {
        "model": "openai/tiny",
        "api_base": url,
        "api_key": key,
        "temperature": 0,
    }
    ask |= {"max_tokens": 8, "messages": USER}
    chat = litellm.completion(**ask, logprobs=True)
    text = chat.choices[0].message.content
    assert text
    assert chat.usage.completion_tokens == len(chat.choices[0].logprobs.content)
    parts = litellm.completion(**ask, stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == text
    of_text = {**ask, "model": "text-completion-openai/tiny", "prompt": QUESTION}
    del of_text["messages"]
    assert litellm.text_completion(**of_text).choices[0].text == text
    long = {**ask, "max_tokens": 120, "temperature": 1, "seed": 5}
    answer = litellm.completion(**long, response_format=FORMAT)
    jsonschema.validate(json.loads(answer.choices[0].message.content), SCHEMA)
    raises(litellm.NotFoundError, lambda: litellm.completion(**{**ask, "model": "openai/no"}))
    raises(litellm.BadRequestError, lambda: litellm.completion(**{**ask, "top_p": 3}))
    return at_once(lambda: litellm.completion(**ask, max_retries=20).choices[0].message.content)


def at_once(ask: Any) -> list[str]:
    """More requests than the service takes: those refused come back when it has told them to."""
    with ThreadPoolExecutor(MANY) as pool:
        return list(pool.map(lambda _: ask(), range(MANY)))


def raises(kind: type[Exception], call: Any) -> None:
    try:
        call()
    except kind:
        return
    raise AssertionError(f"{kind.__name__} expected")


if __name__ == "__main__":
    texts = {by.__name__: by(*sys.argv[1:]) for by in (by_openai, by_langchain, by_litellm)}
    sys.stdout.write(f"{json.dumps(texts)}\n")
