"""The share of valid answers of a model: generated greedily by the engine, in one batch."""

from collections.abc import Callable, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app.engine.engine import Engine, PromptTooLong
from app.engine.sampling.text import TextStream
from app.engine.scheduling.sequence import FinishReason, Request, SamplingParams, TokenEvent
from app.engine.variant import make_variant
from pruning.evaluation.json_questions import END, MAX_NEW_TOKENS, JsonQuestion, JsonScore


def json_score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[JsonQuestion],
    observe: Callable[[int, int], object] = lambda _done, _total: None,
) -> JsonScore | None:
    """Ask all questions. None if they do not fit into the positions of the model.

    Calls ``observe(done, total)`` whenever answers have ended.
    """
    variant = make_variant("model", "model", model)
    engine = Engine()
    params = SamplingParams(max_new_tokens=MAX_NEW_TOKENS)
    try:
        for number, question in enumerate(questions):
            prompt_ids = tuple(tokenizer(question.prompt).input_ids)
            engine.add(Request(str(number), variant, prompt_ids, params))
    except PromptTooLong:
        return None
    streams = {str(number): TextStream(tokenizer, (END,)) for number in range(len(questions))}
    answers, num_ended = dict.fromkeys(streams, ""), 0
    while engine.has_work:
        for event in engine.step():
            stream = streams[event.request_id]
            answers[event.request_id] += _text(event, stream)
            if event.finish_reason is None and stream.is_stopped:
                engine.cancel(event.request_id, FinishReason.STOP)
            num_ended += event.finish_reason is not None or stream.is_stopped
        observe(num_ended, len(questions))
    pairs = zip(questions, answers.values(), strict=True)
    return JsonScore.of(sum(question.is_answered_by(text) for question, text in pairs), questions)


def _text(event: TokenEvent, stream: TextStream) -> str:
    """What an event adds to its answer, which ends before a blank line."""
    text = ""
    if event.token_id is not None and event.is_text:
        text = stream.push(event.token_id)
    return text if event.finish_reason is None else text + stream.flush()
