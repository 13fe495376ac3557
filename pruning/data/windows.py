"""Windows of token ids, where they come from, and how several texts are mixed."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

MAX_EXCERPT = 80  # characters of a window that are quoted
_TOKENS_QUOTED = 40  # as a rule more than MAX_EXCERPT characters
_REPEATING_EACH = 4  # of so many windows, one repeats its first half


@dataclass(frozen=True)
class Windows:
    """Token ids ``[num_windows, seqlen]`` (int64) and where they come from.

    ``kinds`` has the kind of text of each window where a source has several, as fiction and news.
    ``documents`` has the document of each window where they are known. ``origins`` has the source
    and the domain of each window of a mix.
    """

    token_ids: torch.Tensor
    source: str
    domain: str = ""  # empty for a mix
    kinds: tuple[str, ...] = ()
    documents: tuple[str, ...] = ()
    origins: tuple[tuple[str, str], ...] = ()

    @property
    def domains(self) -> tuple[str, ...]:
        """The domain of each window."""
        return tuple(domain for _, domain in self.origins) or (self.domain,) * len(self.token_ids)

    @property
    def digest(self) -> str:
        """Hex sha256 of shape and ids: equal for equal windows in the same order."""
        header = ",".join(str(size) for size in self.token_ids.shape).encode()
        return hashlib.sha256(header + self.token_ids.numpy().astype("<i8").tobytes()).hexdigest()

    def first(self, num_windows: int) -> "Windows":
        """The first of these windows."""
        origins = self.origins[:num_windows]
        return Windows(
            token_ids=self.token_ids[:num_windows],
            source=_named([source for source, _ in origins]) or self.source,
            domain=self.domain,
            kinds=self.kinds[:num_windows],
            documents=self.documents[:num_windows],
            origins=origins,
        )

    def by_kind(self) -> dict[str, torch.Tensor]:
        """The token ids of each kind, or all of them as one without a name."""
        places: dict[str, list[int]] = {}
        for at, kind in enumerate(self.kinds or [""] * len(self.token_ids)):
            places.setdefault(kind, []).append(at)
        return {kind: self.token_ids[at] for kind, at in places.items()}


def mixed(parts: Sequence[Windows]) -> Windows:
    """The windows of all parts, each part spread evenly, so that any first few represent all."""
    if len(parts) == 1:
        return parts[0]
    sizes = [len(part.token_ids) for part in parts]
    order = sorted(
        ((at + 0.5) / size, number, at) for number, size in enumerate(sizes) for at in range(size)
    )
    return Windows(
        token_ids=torch.stack([parts[number].token_ids[at] for _, number, at in order]),
        source=_named([part.source for part in parts for _ in part.token_ids]),
        kinds=tuple(_kind(parts[number], at) for _, number, at in order),
        documents=tuple(_document(parts[number], number, at) for _, number, at in order),
        origins=tuple((parts[number].source, parts[number].domain) for _, number, _ in order),
    )


def with_repeats(windows: Windows, tokenizer: PreTrainedTokenizerBase) -> Windows:
    """The windows, of which every fourth has its first half twice, but for what a text begins with.

    Logs, patches and quoted mails repeat themselves. A removal costs more nats there than in other
    text, and what is fitted to other text alone gives few of them back.
    """
    begin, seqlen = len(beginning(tokenizer)), windows.token_ids.shape[1]
    half = (seqlen - begin) // 2
    token_ids = windows.token_ids.clone()
    repeating = token_ids[::_REPEATING_EACH]
    repeating[:, seqlen - half :] = repeating[:, begin : begin + half].clone()
    return replace(windows, token_ids=token_ids)


def _kind(windows: Windows, at: int) -> str:
    return windows.kinds[at] if windows.kinds else ""


def _document(windows: Windows, part: int, at: int) -> str:
    return f"{part} {windows.documents[at] if windows.documents else at}"


def _named(sources: Sequence[str]) -> str:
    """The sources of windows, with how many each gives."""
    return " + ".join(f"{number} × {source}" for source, number in Counter(sources).items())


def described(windows: Windows, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """A JSON object: the digest of all windows, and source, digest and first words of each."""
    num_windows, seqlen = windows.token_ids.shape
    origins = [source for source, _ in windows.origins] or [windows.source] * num_windows
    return {
        "source": windows.source,
        "num_windows": num_windows,
        "seqlen": seqlen,
        "digest": windows.digest,
        "windows": [
            {
                "source": origin,
                "digest": Windows(token_ids.unsqueeze(0), origin).digest,
                "begins": excerpt(str(tokenizer.decode(token_ids[:_TOKENS_QUOTED]))),
            }
            for origin, token_ids in zip(origins, windows.token_ids, strict=True)
        ],
    }


def excerpt(text: str) -> str:
    """The first words on one line, without control characters that a terminal would obey."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(shown.split())[:MAX_EXCERPT].rstrip()


def beginning(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token ids that the tokenizer puts in front of a text: as a rule a BOS, or none."""
    bare: list[int] = tokenizer("a", add_special_tokens=False).input_ids
    framed: list[int] = tokenizer("a").input_ids
    return framed[: framed.index(bare[0])] if bare and bare[0] in framed else []


def behind_beginning(name: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The name of a text, and what its windows begin with, which older records do not have."""
    begins = beginning(tokenizer)
    return f"{name} behind {tokenizer.decode(begins)}" if begins else name


def text_tokens(seqlen: int, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens of a text a window of ``seqlen`` tokens takes: one at least."""
    return max(1, seqlen - len(beginning(tokenizer)))


def all_windows(text: str, seqlen: int, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """All windows ``[num_windows, seqlen]`` of the text in order; drops the last partial one.

    Each begins as the tokenizer begins a text. A model that was trained behind a BOS may be lost
    without it: Gemma's perplexity is 30 times as high (Shortened LLaMA, pull request 6).
    """
    return next(windows_of_texts([text], seqlen, tokenizer))


def windows_of_texts(
    texts: Iterable[str], seqlen: int, tokenizer: PreTrainedTokenizerBase
) -> Iterator[torch.Tensor]:
    """``all_windows`` of each text, when it is asked for."""
    begins = torch.tensor(beginning(tokenizer)[: seqlen - 1], dtype=torch.int64)
    size = seqlen - len(begins)
    for text in texts:
        token_ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        num_windows = len(token_ids) // size
        of_text = torch.tensor(token_ids[: num_windows * size], dtype=torch.int64)
        yield torch.cat([begins.expand(num_windows, -1), of_text.view(num_windows, size)], dim=1)
