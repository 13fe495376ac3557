"""What the engine generates: the tokens of ``generate``, in any batch."""

import copy
from typing import Any

import pytest
from transformers import PreTrainedModel

from app.engine.engine import (
    Engine,
)
from app.engine.scheduling.scheduler import EngineLimits
from app.engine.scheduling.sequence import FinishReason
from app.engine.variant import make_variant
from pruning.models.blocks import view
from pruning.repair.folding import folded
from tests.support.engine_requests import (
    PRUNED_BLOCKS,
    Outcome,
    expected,
    prompt,
    request,
    run,
    variant,
)
from tests.support.quick import slow_but
from tests.support.repairs import methods_of, repaired_by
from tests.support.tiny import EOS, SERVED, generated, tiny_model

DENSE, PRUNED = variant(), variant(pruned=True)


@pytest.mark.parametrize("family", SERVED)
@pytest.mark.contract
def test_greedy_output_is_that_of_generate(family: str) -> None:
    variants = variant(family=family), variant(pruned=True, family=family)
    requests = [
        request(prompt(length, seed=length), variants[length % 2], max_new_tokens=num_new)
        for length, num_new in ((1, 9), (30, 12), (8, 12), (3, 1), (5, 12), (20, 7))
    ]
    outcome = run(Engine(EngineLimits(max_batch_tokens=16, max_num_seqs=4)), *requests)
    for each in requests:
        assert outcome.of(each) == expected(each)


@pytest.mark.parametrize("family", slow_but(SERVED, "gpt2", "qwen2_moe"))
def test_raw_and_repaired_of_one_depth_run_together_and_never_mix(family: str) -> None:
    """Each gives what it gives alone: what ``generate`` gives for the folded model."""
    model, folds = tiny_model(family), {}
    together = [variant(pruned=True, family=family)]
    for method in methods_of(model.config):
        repaired = repaired_by(method, model, PRUNED_BLOCKS)
        together.append(make_variant("tiny@-2", "tiny", model, PRUNED_BLOCKS, repaired))
        folds[together[-1]] = view(model, PRUNED_BLOCKS, folded(model, PRUNED_BLOCKS, repaired))
    requests = [
        request(prompt(length, seed=length), of, max_new_tokens=num_new)
        for length, num_new in ((30, 12), (8, 12))
        for of in together
    ]
    outcome = run(Engine(EngineLimits(max_batch_tokens=64, max_num_seqs=8)), *requests)
    for each in requests:
        assert outcome.of(each) == run(Engine(), each).of(each)
        oracle = folds.get(each.variant, each.variant.model)
        assert outcome.of(each) == generated(oracle, each.prompt_ids, each.params.max_new_tokens)


def test_a_variant_that_arrives_in_mid_flight_changes_no_other() -> None:
    engine, outcome = Engine(), Outcome()
    early = request(prompt(9), DENSE, max_new_tokens=20)
    engine.add(early)
    for _ in range(5):
        outcome.take(engine.step())
    late = request(prompt(25, seed=1), PRUNED, max_new_tokens=5)
    run(engine, late, outcome=outcome)
    assert outcome.of(early) == expected(early)
    assert outcome.of(late) == expected(late)


def test_short_prompts_do_not_cut_the_cache_of_a_long_one() -> None:
    long = request(prompt(90), max_new_tokens=10)
    shorts = [request(prompt(5, seed=seed), max_new_tokens=4) for seed in range(3)]
    engine, outcome = Engine(), Outcome()
    for each in (long, *shorts):
        engine.add(each)
        outcome.take(engine.step())
    run(engine, outcome=outcome)
    for each in (long, *shorts):
        assert outcome.of(each) == expected(each)


def test_an_end_of_sequence_token_counts_and_stops() -> None:
    greedy = generated(DENSE.model, prompt(9), 10)
    ending = make_variant("tiny", "tiny", _with_eos(greedy[4]))
    each = request(prompt(9), ending, max_new_tokens=10)
    outcome = run(Engine(), each)
    assert outcome.of(each) == expected(each) == greedy[: greedy.index(greedy[4]) + 1]
    assert outcome.reason(each) is FinishReason.STOP
    assert not outcome.last[each.request_id].is_text


def test_an_end_of_sequence_token_can_be_ignored() -> None:
    greedy = generated(DENSE.model, prompt(9), 10)
    ending = make_variant("tiny", "tiny", _with_eos(greedy[4]))
    each = request(prompt(9), ending, max_new_tokens=10, ignore_eos=True)
    outcome = run(Engine(), each)
    assert outcome.of(each) == greedy
    assert outcome.reason(each) is FinishReason.LENGTH


def test_a_stop_token_of_the_request_stops_it_too() -> None:
    greedy = generated(DENSE.model, prompt(9), 10)
    each = request(prompt(9), stop_token_ids=frozenset({greedy[3], EOS}), max_new_tokens=10)
    outcome = run(Engine(), each)
    assert outcome.of(each) == greedy[: greedy.index(greedy[3]) + 1]
    assert outcome.reason(each) is FinishReason.STOP


def test_one_new_token_is_one_event() -> None:
    each = request(prompt(9), max_new_tokens=1)
    engine = Engine()
    engine.add(each)
    [event] = engine.step()
    assert event.token_id == expected(each)[0]
    assert event.finish_reason is FinishReason.LENGTH
    assert event.timings is not None
    assert event.timings.tpot_s is None
    assert not engine.has_work


def test_a_request_knows_what_it_shared_its_decode_steps_with() -> None:
    """Four tokens are three decode steps: of both for two of them, then of the longer one alone."""
    short, long = request(max_new_tokens=3), request(max_new_tokens=5)
    last = run(Engine(), short, long).last
    sizes = []
    for each in (short, long):
        timings = last[each.request_id].timings
        assert timings is not None
        assert timings.prefill_s is not None
        assert timings.decode_s is not None
        assert timings.queue_s + timings.prefill_s + timings.decode_s == pytest.approx(
            timings.e2e_s
        )
        sizes.append(timings.mean_batch_size)
    assert sizes == [2, (2 + 2 + 1 + 1) / 4]


def test_timings_are_in_order() -> None:
    each = request(prompt(9), max_new_tokens=5)
    timings = run(Engine(), each).last[each.request_id].timings
    assert timings is not None
    assert timings.scheduled_s is not None
    assert timings.first_token_s is not None
    assert each.arrived_s <= timings.scheduled_s <= timings.first_token_s < timings.finished_s


def test_a_seed_gives_the_same_text_whatever_else_is_in_the_batch() -> None:
    settings: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9, "max_new_tokens": 15, "seed": 11}
    alone = request(prompt(9), **settings)
    tokens = run(Engine(), alone).of(alone)
    again = request(prompt(9), **settings)
    others = [
        request(prompt(length, seed=length), of, temperature=length / 10, seed=11)
        for length, of in ((3, DENSE), (30, PRUNED), (12, DENSE), (1, PRUNED))
    ]
    crowded = run(Engine(EngineLimits(max_batch_tokens=16)), *others[:2], again, *others[2:])
    assert crowded.of(again) == tokens
    other_seed = request(prompt(9), **{**settings, "seed": 12})
    assert run(Engine(), other_seed).of(other_seed) != tokens


def _with_eos(token_id: int) -> PreTrainedModel:
    model = copy.copy(tiny_model("llama"))
    model.generation_config = copy.deepcopy(model.generation_config)
    model.generation_config.eos_token_id = token_id
    return model
