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


@given(some_documents, st.integers(1, 30))
def test_passages_lose_no_letter_and_are_long_enough(
    documents: list[str], min_characters: int
) -> None:
    found = passages(documents, min_characters)
    letters = "".join("".join(found).split())
    assert letters == "".join("".join(documents).split())
    assert all(len(text) >= min_characters for text in found) or len(found) == 1
    assert all(len(text) < 3 * min_characters + 2 for text in found)


def test_long_documents_are_cut_between_lines_or_else_between_words() -> None:
    assert passages(["one two\n  three four five"], 6) == ["one two", "  three", " four five"]
    assert passages(["onetwothreefour"], 4) == ["onet", "woth", "reefour"]
