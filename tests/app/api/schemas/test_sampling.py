"""Sampling parameters have the same names and defaults in every body and in the engine."""

import json
from dataclasses import fields
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from app.api.schemas.compare import CompareBody
from app.api.schemas.generate import GenerateBody
from app.api.schemas.heal import HealBody
from app.api.schemas.jobs import PruneJobBody
from app.api.schemas.openai import ChatBody, CompletionBody
from app.api.schemas.sampling import OpenAISamplingFields, SamplingFields, sampling_params
from app.engine.scheduling.sequence import RANGES, InvalidSampling, ResponseFormat, SamplingParams

ENGINE = {field.name for field in fields(SamplingParams)}
OF_ROUTES = {"num_logprobs", "num_prompt_logprobs"}  # which name them each in their own way
MESSAGES = [{"role": "user", "content": "a"}]


def test_bodies_have_the_parameters_of_the_engine() -> None:
    assert set(SamplingFields.model_fields) == ENGINE - OF_ROUTES
    openai = ENGINE - OF_ROUTES - {"max_new_tokens"} | {"structured_outputs"}  # a response_format
    assert set(OpenAISamplingFields.model_fields) == openai


@pytest.mark.parametrize(
    "body",
    [
        GenerateBody(model="tiny", prompt="a"),
        CompareBody(models=["tiny", "tiny@-1"], prompt="a"),
        CompletionBody.model_validate({"model": "tiny", "prompt": "a"}),
        ChatBody.model_validate({"model": "tiny", "messages": MESSAGES}),
    ],
    ids=lambda body: type(body).__name__,
)
def test_an_empty_body_gives_the_defaults_of_the_engine(
    body: SamplingFields | OpenAISamplingFields,
) -> None:
    assert sampling_params(body) == SamplingParams()


def test_every_field_reaches_the_engine() -> None:
    given = {
        "max_new_tokens": 3,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "min_p": 0.1,
        "repetition_penalty": 1.5,
        "presence_penalty": -0.5,
        "frequency_penalty": 1.25,
        "logit_bias": {"5": 100, "0": -7.5},
        "seed": 7,
        "reproducible": True,
        "stop_token_ids": [1, 2],
        "ignore_eos": True,
        "response_format": {"type": "text"},
    }
    body = GenerateBody.model_validate({"model": "tiny", "prompt": "a", **given})
    expected = {**given, "stop_token_ids": frozenset({1, 2}), **dict.fromkeys(OF_ROUTES, 2)}
    expected["logit_bias"] = ((5, 100), (0, -7.5))
    expected["response_format"] = None
    params = sampling_params(body, **dict.fromkeys(OF_ROUTES, 2))
    assert {name: getattr(params, name) for name in ENGINE} == expected
    openai = OpenAISamplingFields.model_validate(
        {name: value for name, value in given.items() if name != "max_new_tokens"}
    )
    assert sampling_params(openai, max_new_tokens=3, **dict.fromkeys(OF_ROUTES, 2)) == params


def test_a_number_without_a_fraction_is_an_integer_as_in_json() -> None:
    given = {"model": "tiny", "n": 2.0, "seed": 3.0, "top_k": 4.0, "prompt": [[1.0, 2], [3]]}
    body = CompletionBody.model_validate(given)
    assert (body.n, body.seed, body.top_k, body.prompt) == (2, 3, 4, [[1, 2], [3]])
    for wrong in ({"n": 1.5}, {"n": True}, {"n": "1"}, {"prompt": [1.5]}, {"prompt": [True, 1.0]}):
        with pytest.raises(ValidationError):
            CompletionBody.model_validate({**given, **wrong})


def test_the_description_has_the_ranges_of_the_engine() -> None:
    schema = GenerateBody.model_json_schema()["properties"]
    for name, (low, high) in RANGES.items():
        if name in SamplingFields.model_fields and name != "seed":
            assert (schema[name]["minimum"], schema[name]["maximum"]) == (low, high)
    # as doubles, as which many readers compare it, all that the description allows is allowed
    seeds, _null = schema["seed"]["anyOf"]
    assert float(seeds["maximum"]) < float(RANGES["seed"][1]) == float(2**63)


@pytest.mark.parametrize("fields", [SamplingFields, OpenAISamplingFields])
def test_a_response_format_reaches_the_engine(
    fields: type[SamplingFields | OpenAISamplingFields],
) -> None:
    def of(given: dict[str, Any]) -> ResponseFormat | None:
        return sampling_params(fields.model_validate({"response_format": given})).response_format

    assert of({"type": "text"}) is None
    assert of({"type": "json_object"}) == ResponseFormat("json_object", '{"type":"object"}')
    spec = {"name": "n", "description": "d", "strict": True, "schema": {"const": "ü"}}
    whole = ResponseFormat("json_schema", '{"const": "\\u00fc"}', "n", "d", True)
    assert of({"type": "json_schema", "json_schema": spec}) == whole
    unnamed = of({"type": "json_schema", "json_schema": {"name": "n"}})
    assert unnamed is not None
    assert json.loads(unnamed.schema) == {"type": "object"}


def test_the_engine_checks_the_ranges() -> None:
    with pytest.raises(InvalidSampling, match="top_p"):
        sampling_params(GenerateBody(model="tiny", prompt="a", top_p=2))


BOOLEANS: list[tuple[type[BaseModel], dict[str, Any]]] = [
    (GenerateBody, {"model": "a", "prompt": "b"}),
    (PruneJobBody, {"model": "a", "num_remove": 1}),
    (HealBody, {}),
]


@pytest.mark.parametrize(("body", "required"), BOOLEANS)
def test_a_number_or_a_text_is_no_boolean(body: type[BaseModel], required: dict[str, Any]) -> None:
    names = [name for name, field in body.model_fields.items() if isinstance(field.default, bool)]
    assert names
    for name in names:
        for value in (0, 1, "true", "no", 1.0):
            with pytest.raises(ValidationError, match=name):
                body.model_validate({**required, name: value})
        for value in (True, False):
            assert getattr(body.model_validate({**required, name: value}), name) is value
