"""Log-likelihoods with shared contexts are those of lm-eval's own model."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from lm_eval.models.huggingface import HFLM

from pruning.evaluation.log_likelihoods import SharedContexts, shares_contexts
from pruning.evaluation.task_errors import TaskUnusable
from pruning.evaluation.zero_shot import _detached
from pruning.models.store import LoadedModel, load
from tests.support.tiny_checkpoints import write_checkpoint

_Request = tuple[tuple[str, str], list[int], list[int]]


def requests(vocab_size: int, seed: int = 0) -> list[_Request]:
    """Contexts with one to four continuations, also of one token, in any order."""
    rng = random.Random(seed)

    def tokens(most: int) -> list[int]:
        return [rng.randrange(4, vocab_size) for _ in range(rng.randint(1, most))]

    made: list[_Request] = []
    for _ in range(12):
        context = tokens(14)
        made += [((str(len(made)), str(at)), context, tokens(5)) for at in range(rng.randint(1, 4))]
    rng.shuffle(made)
    return made


def assert_same(loaded: LoadedModel, asked: Sequence[_Request]) -> None:
    model = _detached(loaded.model)
    told: list[tuple[int, int]] = []
    ours = SharedContexts(model, loaded.tokenizer, lambda done, total: told.append((done, total)))
    plain = HFLM(pretrained=model, tokenizer=loaded.tokenizer, batch_size=3)
    found = ours._loglikelihood_tokens(asked)
    expected = plain._loglikelihood_tokens(list(asked), disable_tqdm=True)
    assert [value for value, _ in found] == pytest.approx([v for v, _ in expected], abs=1e-4)
    assert [is_greedy for _, is_greedy in found] == [is_greedy for _, is_greedy in expected]
    assert told[-1] == (len(asked), len(asked))


def greedy(loaded: LoadedModel, context: Sequence[int], length: int) -> list[int]:
    tokens = list(context)
    for _ in range(length):
        tokens.append(int(loaded.model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(context) :]


@pytest.mark.parametrize(
    ("family", "is_shared"), [("llama", True), ("gpt2", False), ("mistral", False)]
)
def test_they_are_those_of_lm_eval(tmp_path: Path, family: str, is_shared: bool) -> None:
    write_checkpoint(tmp_path / family, family)
    loaded = load(tmp_path / family)
    assert shares_contexts(loaded.model) == is_shared
    asked = requests(loaded.model.config.vocab_size)
    context = asked[0][1]
    likeliest = greedy(loaded, context, 3)
    asked.append((("greedy", "three"), context, likeliest))
    asked.append((("greedy", "one"), context, likeliest[:1]))
    assert_same(loaded, asked)


def test_a_context_that_is_too_long_loses_its_start(tiny_loaded: LoadedModel) -> None:
    most = tiny_loaded.model.config.max_position_embeddings
    context = [4 + number % 20 for number in range(most)]
    asked = [(("long", str(at)), context, [5 + at] * (1 + at)) for at in range(3)]
    assert_same(tiny_loaded, asked)


def test_an_answer_that_is_too_long_by_itself_is_refused(tiny_loaded: LoadedModel) -> None:
    most = tiny_loaded.model.config.max_position_embeddings
    ours = SharedContexts(_detached(tiny_loaded.model), tiny_loaded.tokenizer, lambda *_: None)
    with pytest.raises(TaskUnusable, match=rf"has {most + 1} tokens.* {most} at most"):
        ours._loglikelihood_tokens([(("a", "b"), [5], [5] * (most + 1))])
