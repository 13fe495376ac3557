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
    answers = _Answers(engine, tokenizer)
    params = SamplingParams(max_new_tokens=MAX_NEW_TOKENS)
    try:
        for number, question in enumerate(questions):
            prompt_ids = tuple(tokenizer(question.prompt).input_ids)
            engine.add(Request(str(number), variant, prompt_ids, params))
    except PromptTooLong:
        return None
    while engine.has_work:
        answers.take(engine.step())
        observe(answers.num_ended, len(questions))
    valid = [
        question.is_answered_by(answers.text(str(number)))
        for number, question in enumerate(questions)
    ]
    return JsonScore.of(sum(valid), questions)


class _Answers:
    """Texts by request, each up to a blank line, where its request is ended."""

    def __init__(self, engine: Engine, tokenizer: PreTrainedTokenizerBase) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._streams: dict[str, TextStream] = {}
        self._texts: dict[str, list[str]] = {}
        self.num_ended = 0

    def text(self, request_id: str) -> str:
        return "".join(self._texts[request_id])

    def take(self, events: Sequence[TokenEvent]) -> None:
        for event in events:
            stream = self._streams.setdefault(event.request_id, TextStream(self._tokenizer, (END,)))
            text = self._texts.setdefault(event.request_id, [])
            if event.token_id is not None and event.is_text:
                text.append(stream.push(event.token_id))
            if event.finish_reason is not None:
                text.append(stream.flush())
                self.num_ended += 1
            elif stream.is_stopped:
                self._engine.cancel(event.request_id, FinishReason.STOP)
                self.num_ended += 1
