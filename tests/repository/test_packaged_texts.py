"""The tool that builds the packaged texts: what it keeps of a page, and how it splits documents."""

import json
import string
from collections import Counter
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pruning.data.corpora import Split
from tools.texts.markup import text_of_html, text_of_wiki
from tools.texts.packaged import (
    MAX_DOCUMENT_CHARACTERS,
    SHARES,
    PackagedDocument,
    chosen,
    shortened,
    without_repeats,
)
from tools.texts.readers import campaigns, chats, factbook, files, parts, tables

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


ARTICLE = """{{Infobox|a={{b}}}}'''Albedo''' is a
[[ratio|share]].<ref name="x">{{cite}}</ref> See [http://a.b c].
{| class="wikitable"
! head
|}
== Terrestrial ==
[[File:a.png|thumb|A [[map]]]]It is [[high]].
* a list
== References ==
{{reflist}}"""


def test_an_article_keeps_its_paragraphs_and_loses_tables_notes_and_lists() -> None:
    assert text_of_wiki(ARTICLE) == "Albedo is a\nshare. See c.\n\nTerrestrial\n\nIt is high."


def test_a_campaign_is_what_is_told_and_said(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "Quest" / "scenarios"
    folder.mkdir(parents=True)
    (folder / "one.cfg").write_text(
        """[story]
        story= _ "Long
        ago."
        [/story]
        [event]
            [message]
                speaker=narrator
                message= _ "Night fell."
            [/message]
            [message]
                speaker=Konrad
                message= _ "Who goes there?"
            [/message]
        [/event]
        {GOLD 1 2 3}"""
    )
    told = "Long ago.\n\nNight fell.\nKonrad: Who goes there?"
    assert list(campaigns(tmp_path)) == [("Battle for Wesnoth, Quest/one", told)]


def test_a_conversation_has_turns(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "english"
    folder.mkdir(parents=True)
    (folder / "food.yml").write_text("categories:\n- food\nconversations:\n- - Tea?\n  - Yes.\n")
    assert list(chats(tmp_path)) == [("ChatterBot corpus, food", "User: Tea?\nAssistant: Yes.")]


def test_rows_are_written_in_several_ways(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n" + "1,2\n" * 300)
    (tmp_path / "b.json").write_text(json.dumps({"meta": 1, "rows": [{"x": 1}] * 300}))
    found = [text for _, text in tables(tmp_path, "Sets", "a.csv", "b.json")]
    assert found[0].startswith("x,y\n1,2\n")
    assert '{"x": "1", "y": "2"}\n' in found[1]
    assert any(text.startswith('[\n  {\n    "x": 1') for text in found[3:])


def test_a_long_text_is_parted_between_paragraphs() -> None:
    paragraph = "word " * 200 + "\n\n"
    found = list(parts("work, a", paragraph * 60))
    assert [source for source, _ in found] == [f"work, a ({at})" for at in range(1, len(found) + 1)]
    assert "\n\n".join(text for _, text in found).split() == (paragraph * 60).split()
    assert all(text.endswith("word ") for _, text in found[:-1])


def test_files_are_taken_by_pattern(tmp_path: Path) -> None:
    for name in ("src/a.rs", "src/tests/b.rs", "src/c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("fn main() {}\n")
    found = list(files(tmp_path, "*.rs", "tokio", "tests"))
    assert found == [("tokio, src/a.rs", "fn main() {}")]


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


def test_a_long_line_is_in_one_document_only() -> None:
    licence, short = "x" * 200, "the same"
    texts = [f"{licence}\n{short}\none", f"{short}\n{licence}\ntwo"]
    documents = [PackagedDocument(text, "work", Split.SELECTION, "kind") for text in texts]
    found = [document.text for document in without_repeats(documents)]
    assert found == [texts[0], f"{short}\ntwo"]


def test_what_is_too_short_is_left_out() -> None:
    assert chosen([("a", "x" * 999)], 10_000) == []


def test_a_long_document_ends_with_a_line_or_a_sentence() -> None:
    line = string.ascii_lowercase * 4 + "\n"
    text = shortened(line * 1000)
    assert MAX_DOCUMENT_CHARACTERS - len(line) <= len(text) <= MAX_DOCUMENT_CHARACTERS
    assert text.endswith("z")
    assert shortened("One sentence. " * 5000).endswith("sentence.")
    assert shortened("short") == "short"
