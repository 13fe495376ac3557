"""How tokens are written: by a tokenizer, or as the server wrote them that generated them."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from app.engine.text import token_bytes, token_text
from app.generation.output import Spelling, TokenKey


class NoTokenIds(ValueError):
    """The model's server tells texts, and nothing here knows its tokens by their ids."""

    def __init__(self, param: str) -> None:
        super().__init__(
            f"{param}: another server generates for this model, and its tokens are not known here "
            f"by their ids: leave it out"
        )
        self.param = param


class Vocabulary:
    """Of one model. Without a tokenizer it knows no ids."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self._tokenizer = tokenizer

    @property
    def has_ids(self) -> bool:
        return self._tokenizer is not None

    def spell(self, token: TokenKey) -> str:
        """What a token is inside of a text."""
        if isinstance(token, Spelling):
            return token.text
        assert self._tokenizer is not None
        return token_text(self._tokenizer, token)

    def raw(self, token: TokenKey) -> bytes | None:
        """UTF-8 of it, or of half a character its bytes; None if they are not known."""
        if isinstance(token, Spelling):
            return token.raw
        assert self._tokenizer is not None
        return token_bytes(self._tokenizer, token)

    def decode(self, token_ids: Sequence[int], param: str) -> str:
        """Raises ``NoTokenIds``, about that parameter of the request."""
        if self._tokenizer is None:
            raise NoTokenIds(param)
        text = self._tokenizer.decode(list(token_ids), clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text
