"""Chat completions in OpenAI's format."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from app.api.formats.openai import OpenAIFormat, finish_of, finite
from app.api.schemas.openai import (
    AssistantMessage,
    ChatBody,
    ChatChoice,
    ChatChunk,
    ChatView,
    ChoiceLogprobs,
    ChunkChoice,
    Finish,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from app.generation.output import Output, Piece, Token, TokenKey, Vocabulary


class ChatFormat(OpenAIFormat):
    """In a stream, the role comes with an answer's first piece, its end as a chunk of its own."""

    def __init__(self, body: ChatBody, vocabulary: Vocabulary) -> None:
        super().__init__("chatcmpl", body, vocabulary)
        self._has_logprobs = bool(body.logprobs)
        self._begun: set[int] = set()  # answers whose role has been said

    def whole(self, outputs: Sequence[Output]) -> ChatView:
        choices = [
            ChatChoice(
                index=index,
                message=AssistantMessage(content=output.text),
                logprobs=self._logprobs(output.tokens),
                finish_reason=finish_of(output),
            )
            for index, output in enumerate(outputs)
        ]
        return ChatView(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=choices,
            usage=self._usage(outputs),
        )

    def pieces(self, pieces: Sequence[Piece]) -> Iterator[bytes]:
        for piece in pieces:
            if piece.index not in self._begun:
                self._begun.add(piece.index)
                yield self._chunk(piece, {"role": "assistant", "content": ""})
            logprobs = self._logprobs(piece.tokens)
            if piece.text or (logprobs and logprobs.content):
                yield self._chunk(piece, {"content": piece.text}, logprobs)
            if piece.output:
                yield self._chunk(piece, {}, finish=finish_of(piece.output))

    def _last_chunk(self, usage: Usage) -> ChatChunk:
        return self._view([], usage)

    def _chunk(
        self,
        piece: Piece,
        delta: dict[Literal["role", "content"], str],
        logprobs: ChoiceLogprobs | None = None,
        finish: Finish | None = None,
    ) -> bytes:
        choice = ChunkChoice(
            index=piece.index, delta=delta, logprobs=logprobs, finish_reason=finish
        )
        return self._event(self._view([choice], self._usage_so_far(piece)))

    def _view(self, choices: list[ChunkChoice], usage: Usage | None) -> ChatChunk:
        return ChatChunk(
            id=self._id, created=self._created, model=self._model, choices=choices, usage=usage
        )

    def _logprobs(self, tokens: Iterable[Token]) -> ChoiceLogprobs | None:
        if not self._has_logprobs:
            return None
        return ChoiceLogprobs(content=[self._token(token) for token in tokens if token.is_text])

    def _token(self, token: Token) -> TokenLogprob:
        chosen = self._logprob(token.key, token.logprob)
        top = [self._logprob(key, logprob) for key, logprob in token.top_logprobs]
        return TokenLogprob(**chosen.model_dump(), top_logprobs=top)

    def _logprob(self, token: TokenKey, logprob: float | None) -> TopLogprob:
        raw = self._vocabulary.raw(token)
        return TopLogprob(
            token=self._vocabulary.spell(token),
            logprob=finite(logprob),
            bytes=None if raw is None else list(raw),
        )
