"""Asks the process that checks schemas."""

import logging
from dataclasses import asdict, dataclass
from typing import Any

from app.engine.grammar import ResponseFormatRefused
from app.engine.scheduling.sequence import ResponseFormat
from app.generation import schema_server
from app.generation.limited_process import LimitedProcess, ProcessEnded

logger = logging.getLogger(__name__)


class TakesLonger(Exception):
    """The schema was not compiled in the time that it was given."""


@dataclass(frozen=True)
class Vocabulary:
    """What ``grammar_tokens`` needs."""

    tokenizer: str  # its tokenizer.json
    vocab_size: int
    eos_token_ids: tuple[int, ...]


class SchemaClient(LimitedProcess):
    def __init__(self) -> None:
        super().__init__(schema_server)

    async def source(
        self, wanted: ResponseFormat, name: str, vocabulary: Vocabulary, cpu_s: float
    ) -> str:
        """The source of the grammar of this format. ``name`` stands for the vocabulary.

        Raises ``ResponseFormatRefused``, ``TakesLonger`` than ``cpu_s``, or ``ProcessEnded``
        if the process ends twice.
        """
        request = {
            "wanted": (wanted.schema, wanted.within, wanted.type),
            "tokens": name,
            "cpu_s": cpu_s,
        }
        try:
            answer = await self._checked(request, vocabulary)
        except ProcessEnded:
            logger.warning("the schema process exited: starting another one")
            answer = await self._checked(request, vocabulary)
        if "takes_longer" in answer:
            raise TakesLonger
        if "refused" in answer:
            raise ResponseFormatRefused(answer["refused"])
        return str(answer["source"])

    async def prepare(self, name: str, vocabulary: Vocabulary) -> None:
        """Let the process build the table of this vocabulary. Raises ``ProcessEnded``."""
        await self.ask({"tokens": name, "tokenizer": asdict(vocabulary)})

    async def _checked(self, request: dict[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
        answer = await self.ask(request)
        if "needs_tokenizer" in answer:
            answer = await self.ask({**request, "tokenizer": asdict(vocabulary)})
        return answer
