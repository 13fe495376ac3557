"""Log-probabilities of prompts by OpenAI's older API, against one forward of transformers."""

from typing import Any

import openai
import pytest
import torch
from fastapi.testclient import TestClient
from openai.types import CompletionChoice

from app.config import ServeSettings
from pruning.evaluation.zero_shot import answer_tasks
from pruning.models.blocks import view
from pruning.models.store import LoadedModel
from tests.support.api_fixtures import publish_pruned
from tests.support.engine_requests import prompt
from tests.support.generate_requests import PROMPTS
from tests.support.serving import serving
from tests.support.zero_shot_tasks import write_tasks

ECHO: dict[str, Any] = {"model": "tiny", "temperature": 0, "echo": True}


@pytest.fixture
def api(client: TestClient) -> openai.OpenAI:
    return openai.OpenAI(
        base_url="http://localhost/v1", api_key="none", max_retries=0, http_client=client
    )


@torch.inference_mode()
def expected(loaded: LoadedModel, ids: list[int]) -> list[float]:
    logprobs = loaded.model(torch.tensor([ids])).logits[0].float().log_softmax(dim=-1)
    return [float(row[token_id]) for row, token_id in zip(logprobs, ids[1:], strict=False)]


def logprobs_of(choice: CompletionChoice) -> tuple[list[str], list[Any], list[Any], list[int]]:
    found = choice.logprobs
    assert found is not None
    assert found.tokens is not None
    assert found.token_logprobs is not None
    assert found.text_offset is not None
    return found.tokens, found.token_logprobs, found.top_logprobs or [], found.text_offset


def test_a_prompt_alone_has_those_of_one_forward(
    api: openai.OpenAI, tiny_loaded: LoadedModel
) -> None:
    all_ids: list[list[int]] = tiny_loaded.tokenizer(PROMPTS).input_ids
    prompts: list[Any] = [PROMPTS, all_ids, PROMPTS[0], all_ids[0]]
    for asked in prompts:
        answer = api.completions.create(**ECHO, prompt=asked, max_tokens=0, logprobs=2)
        for choice, ids, text in zip(answer.choices, all_ids, PROMPTS, strict=False):
            assert (choice.text, choice.finish_reason) == (text, "length")
            tokens, logprobs, tops, offsets = logprobs_of(choice)
            assert len(tokens) == len(logprobs) == len(tops) == len(offsets) == len(ids)
            assert (logprobs[0], tops[0]) == (None, None)
            assert logprobs[1:] == pytest.approx(expected(tiny_loaded, ids), abs=1e-4)
            assert offsets == sorted(offsets)
            for before, token, offset in zip(["", *tokens], tokens, offsets, strict=False):
                if "\ufffd" not in before + token:  # a part of a character
                    assert text[offset:].startswith(token)
        usage = answer.usage
        assert usage is not None
        assert usage.completion_tokens == 0
        assert usage.prompt_tokens == sum(map(len, all_ids[: len(answer.choices)]))


def test_an_output_follows_its_prompt(api: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"prompt": "the quick", "max_tokens": 6, "logprobs": 3}
    ask["extra_body"] = {"ignore_eos": True}
    plain = api.completions.create(model="tiny", temperature=0, **ask).choices[0]
    (whole,) = api.completions.create(**ECHO, **ask).choices
    tokens, logprobs, tops, offsets = logprobs_of(whole)
    num_prompt = len(tokens) - 6
    assert num_prompt > 1
    assert tokens[num_prompt:] == logprobs_of(plain)[0]
    assert logprobs[num_prompt:] == pytest.approx(logprobs_of(plain)[1], abs=1e-4)
    shift = len("the quick")
    assert offsets[num_prompt:] == [shift + offset for offset in logprobs_of(plain)[3]]
    for logprob, top in zip(logprobs[1:], tops[1:], strict=True):
        assert logprob in top.values()
        assert len(top) <= 4
    chunks = list(api.completions.create(**ECHO, **ask, stream=True))
    streamed = [logprobs_of(chunk.choices[0]) for chunk in chunks]
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.text
    assert [token for each in streamed for token in each[0]] == tokens
    assert [offset for each in streamed for offset in each[3]] == offsets
    assert len(streamed[0][0]) > num_prompt


def test_an_end_of_sequence_has_its_place(api: openai.OpenAI, tiny_loaded: LoadedModel) -> None:
    """Clients count on one entry for each token of ``usage``, whether it is text or not."""
    eos = tiny_loaded.tokenizer.eos_token_id
    ask: dict[str, Any] = {"prompt": "the dog", "max_tokens": 4, "logprobs": 1}
    ask["logit_bias"] = {str(eos): 100}
    (choice,) = api.completions.create(**ECHO, **ask).choices
    num_prompt = len(tiny_loaded.tokenizer("the dog").input_ids)
    assert (choice.text, choice.finish_reason) == ("the dog", "stop")
    assert len(logprobs_of(choice)[0]) == num_prompt + 1
    assert logprobs_of(choice)[3][-1] == len("the dog")


def test_without_log_probabilities_a_prompt_alone_is_an_echo(api: openai.OpenAI) -> None:
    (choice,) = api.completions.create(**ECHO, prompt="the dog", max_tokens=0).choices
    assert (choice.text, choice.logprobs, choice.finish_reason) == ("the dog", None, "length")
    (chunk,) = api.completions.create(**ECHO, prompt="the dog", max_tokens=0, stream=True)
    assert (chunk.choices[0].text, chunk.choices[0].finish_reason) == ("the dog", "length")


def test_zero_tokens_are_refused_without_an_echo(api: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="0 is only allowed with echo") as refusal:
        api.completions.create(model="tiny", prompt="the dog", max_tokens=0)
    assert refusal.value.param == "max_tokens"


def test_any_token_ids_have_offsets_in_their_text(api: openai.OpenAI) -> None:
    """Special tokens and parts of characters too: the texts between the offsets make the whole."""
    for seed in range(5):
        ids = [0, *prompt(30, seed), 1]
        answer = api.completions.create(**ECHO, prompt=ids, max_tokens=0, logprobs=0)
        text, (tokens, _, _, offsets) = answer.choices[0].text, logprobs_of(answer.choices[0])
        assert len(tokens) == 32
        assert offsets == sorted(offsets)
        assert offsets[0] == 0
        assert offsets[-1] <= len(text)


@pytest.mark.slow
def test_lm_eval_finds_what_sleb_eval_finds(
    settings: ServeSettings, redis_url: str, tiny_loaded: LoadedModel, tmp_path: Any
) -> None:
    from lm_eval import simple_evaluate  # noqa: PLC0415 - slow to import
    from lm_eval.tasks import TaskManager  # noqa: PLC0415 - as above

    removed = publish_pruned(settings.data_dir).removed_blocks
    folder = write_tasks(tmp_path / "tasks", "toy")
    with serving(settings, redis_url) as (_, url):
        for name, num_removed in (("tiny", 0), ("tiny@-2", 2)):
            arguments = {
                "model": name,
                "base_url": f"{url}/v1/completions",
                "tokenizer": str(settings.data_dir / "models" / "tiny"),
                "tokenizer_backend": "huggingface",
                "batch_size": 4,
                "max_length": 96,
            }
            found = simple_evaluate(
                "local-completions",
                model_args=arguments,
                tasks=["toy"],
                task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            )
            keep = [one for one in range(6) if one not in removed[:num_removed]]
            (answered,) = answer_tasks(
                view(tiny_loaded.model, keep), tiny_loaded.tokenizer, ["toy"], tasks_dir=folder
            )
            of_task = found["results"]["toy"]
            for metric in ("acc", "acc_norm"):
                assert of_task[f"{metric},none"] == pytest.approx(answered.score.metrics[metric])
