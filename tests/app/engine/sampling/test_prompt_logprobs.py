"""Log-probabilities of a prompt as the engine reads it, against one forward of transformers."""

import pytest

from app.engine.engine import Engine
from app.engine.scheduling.scheduler import EngineLimits
from app.engine.scheduling.sequence import (
    FinishReason,
    InvalidSampling,
    Request,
    SamplingParams,
    TokenEvent,
)
from tests.support.engine_requests import check_scored, prompt, request, scored_prompt, variant
from tests.support.integrity import check_engine
from tests.support.tiny import SERVED

NUM_BEST = 3


def events(engine: Engine, *requests: Request) -> dict[str, list[TokenEvent]]:
    found: dict[str, list[TokenEvent]] = {each.request_id: [] for each in requests}
    for each in requests:
        engine.add(each)
    while engine.has_work:
        for event in engine.step():
            found[event.request_id].append(event)
        check_engine(engine)
    return found


@pytest.mark.parametrize("family", SERVED)
@pytest.mark.parametrize("max_batch_tokens", [1, 8, 512])
def test_every_family_gives_those_of_one_forward(family: str, max_batch_tokens: int) -> None:
    """Several prompts at once, in one forward or in chunks, with the head in chunks of rows."""
    of = variant(family=family)
    sizes = [1, 2, 9, 17]
    asked = [
        request(prompt(size, size), of, max_new_tokens=new, num_prompt_logprobs=NUM_BEST)
        for size, new in zip(sizes, [0, 3, 0, 1], strict=True)
    ]
    engine = Engine(EngineLimits(max_batch_tokens=max_batch_tokens))
    for each, found in zip(asked, events(engine, *asked).values(), strict=True):
        check_scored(found[0].prompt, scored_prompt(of, each.prompt_ids, NUM_BEST))
        assert not any(event.prompt for event in found[1:])


def test_the_head_runs_on_few_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    of, rows = variant(), []
    monkeypatch.setattr("pruning.models.loss.LOGITS_BYTES", 4 * of.vocab_size * 5)
    head = of.model.get_output_embeddings()
    assert head is not None
    hook = head.register_forward_hook(lambda _module, args, _output: rows.append(len(args[0])))
    try:
        ids = prompt(33)
        asked = request(ids, of, max_new_tokens=0, num_prompt_logprobs=NUM_BEST)
        found = events(Engine(), asked)[asked.request_id]
    finally:
        hook.remove()
    check_scored(found[0].prompt, scored_prompt(of, ids, NUM_BEST))
    assert max(rows) == 5


def test_a_prompt_alone_ends_without_a_token() -> None:
    asked = request(prompt(9), max_new_tokens=0, num_prompt_logprobs=0)
    (event,) = events(Engine(), asked)[asked.request_id]
    assert (event.token_id, event.finish_reason) == (None, FinishReason.LENGTH)
    assert event.timings is not None
    assert event.timings.num_tokens == 0
    assert all(each.top_logprobs == () for each in event.prompt)
    assert all(each.logprob is not None for each in event.prompt[1:])


def test_a_prompt_is_reported_only_if_that_was_asked_for() -> None:
    asked = request(prompt(9), num_logprobs=2)
    assert not any(event.prompt for event in events(Engine(), asked)[asked.request_id])
    with pytest.raises(InvalidSampling, match="1 to"):
        SamplingParams(max_new_tokens=0)


def test_a_partly_read_prompt_goes_on_in_the_decodes_of_others() -> None:
    """Each decode of a running sequence reads one token of the long prompt too."""
    engine = Engine(EngineLimits(max_batch_tokens=8))
    first = request(prompt(3), max_new_tokens=40, ignore_eos=True)
    long = request(prompt(60, 5), max_new_tokens=2, num_prompt_logprobs=NUM_BEST)
    found = events(engine, first, long)[long.request_id]
    check_scored(found[0].prompt, scored_prompt(variant(), long.prompt_ids, NUM_BEST))


def test_a_preempted_background_prompt_is_read_again_from_its_beginning() -> None:
    engine = Engine()
    ids = prompt(100, 7)
    background = Request(
        "background",
        variant(),
        ids,
        SamplingParams(max_new_tokens=1, num_prompt_logprobs=NUM_BEST),
        is_background=True,
    )
    engine.add(background)
    assert engine.step() == []  # a first chunk
    engine.add(request(prompt(2), max_new_tokens=1))
    found = [event for _ in range(6) for event in engine.step()]
    (event,) = [event for event in found if event.request_id == "background"]
    check_scored(event.prompt, scored_prompt(variant(), ids, NUM_BEST))
