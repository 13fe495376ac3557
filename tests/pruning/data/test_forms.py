"""Text cut into words and quoted text: packaged prose in other forms, for fits and trainings."""

from pruning.data.calibration import calibrate, evaluation_windows, healing_windows, repair_windows
from pruning.data.corpora import Split
from pruning.data.documents import packaged_documents
from pruning.data.forms import prose_forms, quoted, words_apart
from pruning.models.store import LoadedModel
from pruning.spec.calibration import Dataset, default_calibration

FORMS = {"quotes", "words apart"}
TEXT = """A heading

It's a well-known rule (e.g. of the U.S.): pay 1,000.5 dollars!

They said, "We've paid the rest, and we need no receipt."
"""


def test_words_and_punctuation_stand_apart() -> None:
    [text] = words_apart([TEXT])
    assert text.startswith("<unk> 's <unk> <unk> @-@ <unk> <unk> ( e.g. <unk> <unk> U.S. ) : ")
    [text, *_] = words_apart([TEXT] * 3)
    assert text == (
        "It 's a well @-@ known rule ( e.g. of the U.S. ) : pay 1 @,@ 000 @.@ 5 dollars ! \n "
        'They said , " We \'ve paid the rest , and we need no receipt . "'
    )


def test_paragraphs_are_quoted_in_turn() -> None:
    paragraph = "word " * 20
    plain, once, again, twice, close = quoted("\n\n".join([paragraph] * 5)).split("\n\n")
    assert "".join(plain.split()) == "word" * 20
    for text, mark in ((once, "> "), (twice, "> > "), (close, ">")):
        assert [line[: len(mark)] for line in text.splitlines()] == [mark, mark]
        assert text.replace(mark, "").split() == plain.split()
    assert again.split() == plain.split()
    assert max(map(len, twice.splitlines())) <= 76


def test_forms_are_of_calibration_documents() -> None:
    prose = packaged_documents(Dataset.PROSE)[Split.CALIBRATION]
    letters = _letters("".join(prose["questions"]))
    paragraphs = [part for text in prose_forms()["quotes"] for part in text.split("\n\n")]
    assert len(paragraphs) > 1000
    assert all(_letters(part) in letters for part in paragraphs)
    assert len(prose_forms()["words apart"]) == len(prose["encyclopaedia"])


def test_only_fits_and_trainings_have_forms(tiny_loaded: LoadedModel) -> None:
    spec = default_calibration(num_samples=64, seqlen=16)
    source = (spec, tiny_loaded.model, tiny_loaded.tokenizer)
    repair = repair_windows(*source)
    for windows in (repair.train["prose"], healing_windows(*source).train["prose"]):
        assert set(windows.kinds) >= FORMS
    others = [calibrate(*source), repair.selection["prose"], evaluation_windows(*source)["prose"]]
    for windows in (*others, repair.train["code"]):
        assert windows.kinds
        assert not FORMS & set(windows.kinds)


def _letters(text: str) -> str:
    return "".join(letter for letter in text if letter.isalpha())
