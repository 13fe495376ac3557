"""The plain text of pages in HTML and of articles in MediaWiki's markup."""

import re
from html.parser import HTMLParser


class _PageText(HTMLParser):
    """The text of a page, without scripts and navigation."""

    _VOID = frozenset({"br", "hr", "img", "input", "link", "meta"})
    _BLOCKS = frozenset({"p", "h1", "h2", "h3", "h4", "pre", "blockquote", "table", "ul", "ol"})
    _LINES = frozenset({"br", "li", "tr", "dt", "dd", "div"})

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self._hidden: list[str] = []  # open elements from a hidden one on
        self._is_verbatim = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        is_hidden = tag in {"script", "style", "title"} or ("class", "nosearch") in attrs
        if (self._hidden or is_hidden) and tag not in self._VOID:
            self._hidden.append(tag)
        self._break(tag)
        self._is_verbatim = self._is_verbatim or tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        if tag in self._hidden:
            del self._hidden[len(self._hidden) - 1 - self._hidden[::-1].index(tag) :]
        self._break(tag)
        self._is_verbatim = self._is_verbatim and tag != "pre"

    def handle_data(self, data: str) -> None:
        if self._hidden:
            return
        if not self._is_verbatim:
            data = re.sub(r"\s+", " ", data)
            data = data.lstrip() if "".join(self.pieces[-1:]).endswith("\n") else data
        self.pieces.append(data)

    def _break(self, tag: str) -> None:
        line_break = "\n\n" * (tag in self._BLOCKS) or "\n" * (tag in self._LINES)
        if line_break and not self._hidden and not self._is_verbatim:
            self.pieces.append(line_break)


def text_of_html(page: str) -> str:
    """The visible text, with a blank line between blocks."""
    parser = _PageText()
    parser.feed(page)
    text = re.sub(r"[ \t]+\n", "\n", "".join(parser.pieces))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


_LAST_SECTIONS = re.compile(
    r"^==+ *(?:See also|References|Notes|Further reading|External links|Bibliography|Footnotes)",
    re.MULTILINE,
)
# each pattern matches innermost pairs only, so it is applied until nothing changes
_NESTED = (
    r"\{\{[^{}]*\}\}",
    r"\{\|[^{}]*?\|\}",
    r"\[\[(?:File|Image|Category):(?:[^\[\]]|\[\[[^\[\]]*\]\])*\]\]",
)
_PLAIN = (
    (r"(?s)<!--.*?-->", ""),
    (r"(?s)<ref[^>/]*/>|<ref[^>]*>.*?</ref>", ""),
    (r"(?s)<(gallery|math|timeline|score|imagemap)[^>]*>.*?</\1>", ""),
    (r"\[\[(?:[^|\[\]]*\|)?([^\[\]]*)\]\]", r"\1"),
    (r"\[https?://\S+ ([^\]]*)\]", r"\1"),
    (r"'{2,5}|<[^>]*>", ""),
    (r"(?m)^=+ *(.*?) *=+ *$", r"\n\1\n"),
    (r"(?m)^[*#:;|!].*$", ""),  # lists and what is left of tables
    (r"\[https?://[^\]]*\]|&nbsp;|\(\s*[;,]?\s*\)", " "),
    (r"[ \t]+", " "),
    (r" *\n(?: *\n)+", "\n\n"),
)


def text_of_wiki(article: str) -> str:
    """The paragraphs and headings of an article, without tables, notes and lists."""
    last = _LAST_SECTIONS.search(article)
    text = article[: last.start()] if last else article
    for pattern, by in _PLAIN[:3]:
        text = re.sub(pattern, by, text)
    for pattern in _NESTED:
        before = ""
        while before != text:
            before, text = text, re.sub(pattern, "", text)
    for pattern, by in _PLAIN[3:]:
        text = re.sub(pattern, by, text)
    return text.strip()
