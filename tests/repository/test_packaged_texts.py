"""The tool that builds the packaged texts: what it keeps of a page, and how it splits documents."""

import json
import string
from collections import Counter
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pruning.data.corpora import Split
from tools.packaged_texts import (
    MAX_DOCUMENT_CHARACTERS,
    SHARES,
    chosen,
    factbook,
    shortened,
    text_of_html,
)

PAGE = """<!DOCTYPE html><html><head><title>SELECT</title><style>p {}</style></head><body>
<div class=nosearch><a href="index.html">Home<br></a><img src="a.gif"><div>Menu</div></div>
<script>var x = "<p>no</p>";</script>
<h1>1. The   SELECT
statement</h1><p>It reads <b>rows</b> &amp; columns.</p>
<pre>SELECT *
   FROM t;</pre><ul><li>one<li>two</ul></body></html>"""


def test_a_page_keeps_its_words_and_examples_and_loses_its_navigation() -> None:
    assert text_of_html(PAGE) == (
        "1. The SELECT statement\n\nIt reads rows & columns.\n\nSELECT *\n   FROM t;\n\none\ntwo"
    )


def test_a_country_is_its_paragraphs(tmp_path: Path) -> None:
    folder = tmp_path / "package" / "europe"
    folder.mkdir(parents=True)
    profile = {
        "Introduction": {"Background": {"text": "Once an empire. "}},
        "Economy": {"Economy - overview": {"text": "A small economy."}, "Industries": {}},
    }
    (folder / "au.json").write_text(json.dumps(profile))
    documents = list(factbook(tmp_path))
    assert documents == [("The World Factbook, europe/au", "Once an empire.\n\nA small economy.")]


@given(st.lists(st.integers(1_000, 3_000), min_size=20, max_size=40), st.integers(5_000, 30_000))
def test_splits_have_their_shares_of_what_is_chosen(lengths: list[int], wanted: int) -> None:
    documents = [(f"work {at}", "x" * length) for at, length in enumerate(lengths)]
    found = chosen(documents, wanted)
    total = sum(len(document.text) for document in found)
    assert min(wanted, sum(lengths)) <= total < wanted + 3_000
    assert found == chosen(documents[::-1], wanted)
    sizes = Counter[Split]()
    for document in found:
        sizes[document.split] += len(document.text)
    for split, share in SHARES.items():
        assert abs(sizes[split] - share * total) <= 2 * 3_000  # two documents


def test_what_is_too_short_is_left_out() -> None:
    assert chosen([("a", "x" * 999)], 10_000) == []


def test_a_long_document_ends_with_a_line_or_a_sentence() -> None:
    line = string.ascii_lowercase * 4 + "\n"
    text = shortened(line * 1000)
    assert MAX_DOCUMENT_CHARACTERS - len(line) <= len(text) <= MAX_DOCUMENT_CHARACTERS
    assert text.endswith("z")
    assert shortened("One sentence. " * 5000).endswith("sentence.")
    assert shortened("short") == "short"
