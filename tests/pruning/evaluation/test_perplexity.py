"""Perplexity against a loop of a few lines, wherever the weights are, and the texts behind it."""

import json
from math import exp
from pathlib import Path

import datasets
import pytest
import torch

from pruning.data.texts import TextUnusable, text_windows
from pruning.data.windows import Windows
from pruning.evaluation.perplexity import measure_perplexity
from pruning.models.architectures import ARCHITECTURES
from pruning.models.blocks import view
from pruning.models.forward import Forward, InMemoryForward, StreamedForward
from pruning.models.memory import StateBudgetTooSmall
from pruning.models.store import LoadedModel, load
from pruning.models.streaming import StreamedModel
from pruning.removal import NonFiniteLoss
from tests.support.perplexity import TEXT, perplexity_by_hand
from tests.support.tiny_checkpoints import write_checkpoint

KEEP = (0, 2, 3, 5)


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "some.txt"
    path.write_text(TEXT + "\n", encoding="utf-8")
    return path


def windows_of(loaded: LoadedModel, name: str, folder: Path, **settings: int) -> Windows:
    settings = {"seqlen": 16, **settings}
    return text_windows(name, folder, loaded.model, loaded.tokenizer, **settings)


@pytest.mark.parametrize("batch_tokens", [1, 50, 10_000])
def test_it_is_what_a_loop_over_windows_gives(
    tiny_loaded: LoadedModel, text_file: Path, batch_tokens: int
) -> None:
    windows = windows_of(tiny_loaded, "some.txt", text_file.parent)
    pruned = view(tiny_loaded.model, KEEP)
    for model in (tiny_loaded.model, pruned):
        forward = InMemoryForward(model, batch_tokens)
        found = measure_perplexity(forward, windows)
        expected = perplexity_by_hand(
            model, tiny_loaded.tokenizer, text_file.read_text("utf-8"), 16
        )
        assert found.perplexity == pytest.approx(expected, rel=1e-5)
        assert found.perplexity == exp(found.loss)
        assert (found.num_windows, found.seqlen) == (len(windows.token_ids), 16)
        assert found.num_windows > 40


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_streamed_it_is_the_same_in_every_family(family: str, tmp_path: Path) -> None:
    """With a budget for three of five batches, so that blocks visit twice."""
    write_checkpoint(tmp_path, family)
    token_ids = torch.randint(96, (10, 12), generator=torch.Generator().manual_seed(0))
    windows = Windows(token_ids, "random")
    whole, streamed = load(tmp_path).model, StreamedModel(tmp_path)
    budget = 3 * 2 * 12 * 32 * 4

    def loss(forward: Forward) -> float:
        return measure_perplexity(forward, windows).loss

    found = loss(StreamedForward(streamed, KEEP, budget, 24))
    assert found == pytest.approx(loss(InMemoryForward(view(whole, KEEP))), rel=1e-6)
    assert found != pytest.approx(loss(InMemoryForward(whole)), rel=1e-6)
    assert streamed.peak_bytes < sum(each.nbytes for each in streamed.model.parameters())


def test_a_budget_for_less_than_a_batch_is_refused(tiny_model_dir: Path) -> None:
    forward = StreamedForward(StreamedModel(tiny_model_dir), KEEP, 1000)
    with pytest.raises(StateBudgetTooSmall, match="24 tokens need 3072"):
        list(forward.hidden([torch.zeros((2, 12), dtype=torch.long)]))


def test_progress_is_told_in_windows(tiny_loaded: LoadedModel) -> None:
    told: list[tuple[int, int]] = []
    windows = Windows(torch.zeros((5, 8), dtype=torch.long), "zeros")
    measure_perplexity(
        InMemoryForward(tiny_loaded.model, batch_tokens=16),
        windows,
        observe=lambda done, total: told.append((done, total)),
    )
    assert told == [(2, 5), (4, 5), (5, 5)]


def test_a_loss_that_is_no_number_raises(tiny_model_dir: Path) -> None:
    broken = load(tiny_model_dir).model
    with torch.no_grad():
        broken.get_output_embeddings().weight.fill_(float("nan"))
    windows = Windows(torch.zeros((1, 8), dtype=torch.long), "zeros")
    with pytest.raises(NonFiniteLoss, match="on zeros is not finite"):
        measure_perplexity(InMemoryForward(broken), windows)


def test_wikitext_is_its_lines_joined_by_blank_ones(
    tiny_loaded: LoadedModel, tmp_path: Path
) -> None:
    (tmp_path / "wikitext2-test.txt").write_text(" = A title = \n \n the fox \n the dog \n")
    windows = windows_of(tiny_loaded, "wikitext2", tmp_path, seqlen=2)
    joined = " = A title = \n\n\n\n\n the fox \n\n\n the dog \n"
    ids = tiny_loaded.tokenizer(joined).input_ids
    assert windows.token_ids.flatten().tolist() == ids[: len(ids) // 2 * 2]
    assert windows.source == f"wikitext2 test ({tmp_path / 'wikitext2-test.txt'})"


def test_c4_is_1100_documents_joined_by_spaces_and_256_windows(
    tiny_loaded: LoadedModel, tmp_path: Path
) -> None:
    records = [json.dumps({"text": f"the fox no. {number}"}) for number in range(1101)]
    (tmp_path / "c4-validation.jsonl").write_text("\n".join(records) + "\n")
    joined = " ".join(f"the fox no. {number}" for number in range(1100))
    ids = tiny_loaded.tokenizer(joined, verbose=False).input_ids
    few = windows_of(tiny_loaded, "c4", tmp_path, seqlen=4).token_ids
    assert few.flatten().tolist() == ids[: 256 * 4]
    all_ = windows_of(tiny_loaded, "c4", tmp_path, seqlen=200).token_ids
    assert all_.shape == (len(ids) // 200, 200)
    assert len(windows_of(tiny_loaded, "c4", tmp_path, seqlen=4, num_windows=7).token_ids) == 7


def test_records_of_a_file_are_joined_by_blank_lines(
    tiny_loaded: LoadedModel, tmp_path: Path
) -> None:
    (tmp_path / "own.jsonl").write_text('{"text": "the fox"}\n{"text": "the dog"}\n')
    windows = windows_of(tiny_loaded, str(tmp_path / "own.jsonl"), Path("elsewhere"), seqlen=2)
    ids = tiny_loaded.tokenizer("the fox\n\nthe dog").input_ids
    assert windows.token_ids.flatten().tolist() == ids[: len(ids) // 2 * 2]


def test_what_is_not_to_be_had_says_where_to_put_it(
    tiny_loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    for name, file in (("wikitext2", "wikitext2-test.txt"), ("c4", "c4-validation.jsonl")):
        with pytest.raises(TextUnusable, match="no route to host") as caught:
            windows_of(tiny_loaded, name, tmp_path)
        assert f"is not at {tmp_path / file}" in str(caught.value)
    with pytest.raises(TextUnusable, match=r"none\.txt: No such file"):
        windows_of(tiny_loaded, "none.txt", tmp_path)


@pytest.mark.parametrize(
    ("seqlen", "words"),
    [
        (257, "2 to 256 tokens"),
        (1, "2 to 256 tokens"),
        (200, "shorter than one window of 200 tokens"),
    ],
)
def test_lengths_that_give_nothing_are_refused(
    tiny_loaded: LoadedModel, tmp_path: Path, seqlen: int, words: str
) -> None:
    (tmp_path / "short.txt").write_text("the fox")
    with pytest.raises(TextUnusable, match=words):
        windows_of(tiny_loaded, "short.txt", tmp_path, seqlen=seqlen)
