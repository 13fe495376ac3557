"""Documents in splits, and passages of a useful length."""

from hypothesis import given
from hypothesis import strategies as st

from pruning.data.corpora import Split
from pruning.data.documents import passages, split_documents

some_documents = st.lists(st.text(alphabet="ab \n", min_size=1, max_size=60), max_size=20)


@given(some_documents)
def test_a_document_is_in_one_split_whatever_the_order(documents: list[str]) -> None:
    split = split_documents(documents)
    assert sorted(text for texts in split.values() for text in texts) == sorted(set(documents))
    assert split_documents(documents[::-1]) == split


def test_most_documents_are_for_calibration() -> None:
    sizes = {split: len(texts) for split, texts in split_documents(list("abcdefghij")).items()}
    assert sizes == {Split.CALIBRATION: 6, Split.SELECTION: 2, Split.EVALUATION: 2}


def texts_of(documents: list[str], min_characters: int) -> list[str]:
    return [each.text for each in passages(documents, min_characters)]


@given(some_documents, st.integers(1, 30))
def test_passages_lose_no_letter_and_are_long_enough(
    documents: list[str], min_characters: int
) -> None:
    found = texts_of(documents, min_characters)
    letters = "".join("".join(found).split())
    assert letters == "".join("".join(documents).split())
    assert all(len(text) >= min_characters for text in found) or len(found) == 1
    assert all(len(text) < 3 * min_characters + 2 for text in found)


def test_long_documents_are_cut_between_lines_or_else_between_words() -> None:
    assert texts_of(["one two\n  three four five"], 6) == ["one two", "  three", " four five"]
    assert texts_of(["onetwothreefour"], 4) == ["onet", "woth", "reefour"]


def test_passages_of_one_document_have_one_place_and_so_have_joined_documents() -> None:
    found = passages(["a" * 25, "bb", "c" * 12, "d" * 10, "e"], 10)
    assert [each.document for each in found] == [0, 0, 1, 3]
    assert found[2].text.startswith("bb")
    assert found[3].text.endswith("e")
