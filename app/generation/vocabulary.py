"""Text and bytes of a model's tokens, and where the tokens of a prompt are in its text."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from app.engine.sampling.text import Detokenizer, token_bytes, token_text
from app.generation.output import Spelling, TokenKey


class NoTokenIds(ValueError):
    """Token ids were requested of a model of another server, which reports texts only."""

    def __init__(self, param: str) -> None:
        super().__init__(
            f"{param}: not supported for models on external servers, which do not report "
            "token ids: remove it from the request"
        )
        self.param = param


class Vocabulary:
    """Text and bytes of a model's tokens. Without a tokenizer, only spellings are known."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self._tokenizer = tokenizer
        self._spelled: dict[int, str] = {}

    @property
    def has_ids(self) -> bool:
        return self._tokenizer is not None

    def spell(self, token: TokenKey) -> str:
        """The text of a token within a longer text."""
        if isinstance(token, Spelling):
            return token.text
        if token not in self._spelled:
            assert self._tokenizer is not None
            self._spelled[token] = token_text(self._tokenizer, token)
        return self._spelled[token]

    def raw(self, token: TokenKey) -> bytes | None:
        """The bytes of a token, which may be part of a character; None if they are unknown."""
        if isinstance(token, Spelling):
            return token.raw
        assert self._tokenizer is not None
        return token_bytes(self._tokenizer, token)

    def decode(self, token_ids: Sequence[int], param: str) -> str:
        """The text of these tokens. Raises ``NoTokenIds`` naming ``param`` without a tokenizer."""
        if self._tokenizer is None:
            raise NoTokenIds(param)
        text = self._tokenizer.decode(list(token_ids), clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def offsets(self, token_ids: Sequence[int], text: str) -> list[int]:
        """Where each of these tokens begins in ``text``, of which they are the tokens.

        Special tokens that the tokenizer has put in front are at 0, as they are not in the text.
        """
        if not token_ids:
            return []
        assert self._tokenizer is not None
        detokenizer = Detokenizer(self._tokenizer, skip_special_tokens=False)
        begins, num_characters = [], 0
        for token_id in token_ids:
            begins.append(num_characters)
            num_characters += len(detokenizer.push(token_id))
        num_in_front = num_characters + len(detokenizer.flush()) - len(text)
        return [min(max(begin - num_in_front, 0), len(text)) for begin in begins]
