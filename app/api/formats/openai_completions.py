"""Completions in OpenAI's format, with its older shape of log-probabilities."""

from collections.abc import Iterable, Iterator, Sequence

from app.api.formats.openai import OpenAIFormat, finish_of, finite
from app.api.schemas.openai import (
    CompletionBody,
    CompletionChoice,
    CompletionView,
    LegacyLogprobs,
    Usage,
)
from app.generation.output import Output, Piece, Token, Vocabulary


class CompletionFormat(OpenAIFormat):
    """``prompts`` are those of the body, as texts or token ids. Raises ``NoTokenIds``."""

    def __init__(
        self,
        body: CompletionBody,
        vocabulary: Vocabulary,
        prompts: Sequence[str | Sequence[int]],
    ) -> None:
        super().__init__("cmpl", body, vocabulary)
        self._num_logprobs = body.logprobs
        self._to_echo: dict[int, str] = {}  # what goes in front of an answer's first text
        if body.echo:
            texts = [
                its if isinstance(its, str) else vocabulary.decode(its, "echo") for its in prompts
            ]
            self._to_echo = dict(enumerate(text for text in texts for _ in range(self._n)))

    def whole(self, outputs: Sequence[Output]) -> CompletionView:
        choices = [
            CompletionChoice(
                index=index,
                text=self._to_echo.get(index, "") + output.text,
                logprobs=self._logprobs(output.tokens),
                finish_reason=finish_of(output),
            )
            for index, output in enumerate(outputs)
        ]
        return self._view(choices, self._usage(outputs))

    def pieces(self, pieces: Sequence[Piece]) -> Iterator[bytes]:
        for piece in pieces:
            choice = CompletionChoice(
                index=piece.index,
                text=self._to_echo.pop(piece.index, "") + piece.text,
                logprobs=self._logprobs(piece.tokens),
                finish_reason=finish_of(piece.output) if piece.output else None,
            )
            yield self._event(self._view([choice], self._usage_so_far(piece)))

    def _last_chunk(self, usage: Usage) -> CompletionView:
        return self._view([], usage)

    def _view(self, choices: list[CompletionChoice], usage: Usage | None) -> CompletionView:
        return CompletionView(
            id=self._id, created=self._created, model=self._model, choices=choices, usage=usage
        )

    def _logprobs(self, tokens: Iterable[Token]) -> LegacyLogprobs | None:
        if self._num_logprobs is None:
            return None
        tokens = [token for token in tokens if token.is_text]
        return LegacyLogprobs(
            tokens=[self._vocabulary.spell(token.key) for token in tokens],
            token_logprobs=[finite(token.logprob) for token in tokens],
            top_logprobs=[self._top(token) for token in tokens] if self._num_logprobs else None,
            text_offset=[token.offset for token in tokens],
        )

    def _top(self, token: Token) -> dict[str, float]:
        """The best ones and the chosen one; of tokens with the same text, the most likely."""
        found: dict[str, float] = {}
        for key, logprob in (*token.top_logprobs, (token.key, token.logprob)):
            found.setdefault(self._vocabulary.spell(key), finite(logprob))
        return found
