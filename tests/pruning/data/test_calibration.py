"""Windows from files and from the model itself, and the errors of unusable text."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from pruning.data.calibration import calibrate, evaluation_windows, held_out, repair_windows
from pruning.data.corpora import CalibrationError
from pruning.data.enough import check_text
from pruning.data.windows import Windows, all_windows, beginning, with_repeats
from pruning.models.store import LoadedModel
from pruning.spec import InvalidSpec
from pruning.spec.calibration import CalibrationSpec, Dataset, Sampling


def spec_of(path: Path, **settings: object) -> CalibrationSpec:
    defaults = {"num_samples": 3, "seqlen": 8, "path": str(path), "dataset": Dataset.FILE}
    return CalibrationSpec(**{**defaults, **settings})  # type: ignore[arg-type]  # a test's kwargs


def run(loaded: LoadedModel, spec: CalibrationSpec) -> Windows:
    return calibrate(spec, loaded.model, loaded.tokenizer)


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(f"line {number} of the lazy dog" for number in range(50)))
    return path


def test_windows_are_pieces_of_the_text_and_as_many_as_asked(
    tiny_loaded: LoadedModel, text_file: Path
) -> None:
    windows = run(tiny_loaded, spec_of(text_file))
    assert windows.token_ids.shape == (3, 8)
    text = text_file.read_text()
    assert all(piece in text for piece in tiny_loaded.tokenizer.batch_decode(windows.token_ids))


def test_rows_join_as_many_lines_as_asked_and_take_the_windows_that_fit(
    tiny_loaded: LoadedModel, text_file: Path
) -> None:
    windows = run(tiny_loaded, spec_of(text_file, sampling=Sampling.ROWS))
    joined = "".join(tiny_loaded.tokenizer.batch_decode(windows.token_ids))
    rows = joined.split("\n")
    assert len(rows) == 3
    assert set(rows[:-1]) <= set(text_file.read_text().splitlines())


def test_the_seed_decides_the_sample_and_the_digest_tells(
    tiny_loaded: LoadedModel, text_file: Path
) -> None:
    digests = {run(tiny_loaded, spec_of(text_file, seed=seed)).digest for seed in (0, 0, 1)}
    assert len(digests) == 2


@pytest.mark.parametrize("sampling", Sampling)
def test_a_file_is_evaluated_on_windows_that_did_not_choose(
    tiny_loaded: LoadedModel, text_file: Path, sampling: Sampling
) -> None:
    spec = spec_of(text_file, sampling=sampling)
    used = run(tiny_loaded, spec)
    rest = held_out(spec, tiny_loaded.model, tiny_loaded.tokenizer)
    assert len(rest.token_ids) > 0
    assert not {tuple(w) for w in used.token_ids.tolist()} & {
        tuple(w) for w in rest.token_ids.tolist()
    }
    assert "other windows" in rest.source


def test_a_file_without_a_rest_is_evaluated_on_itself_and_says_so(
    tiny_loaded: LoadedModel, tmp_path: Path
) -> None:
    (tmp_path / "short.txt").write_text("the quick brown fox " * 8)
    all_windows = spec_of(tmp_path / "short.txt", num_samples=1, seqlen=20)
    used = run(tiny_loaded, all_windows)
    again = held_out(all_windows, tiny_loaded.model, tiny_loaded.tokenizer)
    assert again.digest == used.digest
    assert "the calibration's own windows" in again.source


def test_the_digest_knows_the_shape() -> None:
    ids = torch.arange(12)
    assert Windows(ids.view(3, 4), "a").digest != Windows(ids.view(4, 3), "a").digest
    assert Windows(ids.view(3, 4), "a").digest == Windows(ids.view(3, 4), "b").digest


def test_jsonl_takes_the_text_of_every_record(tiny_loaded: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"the fox {n}", "id": n}) for n in range(30)))
    windows = run(tiny_loaded, spec_of(path))
    assert "the fox" in tiny_loaded.tokenizer.decode(windows.token_ids.flatten())
    assert '"id"' not in tiny_loaded.tokenizer.decode(windows.token_ids.flatten())


def test_self_writes_its_own_text_the_same_for_the_same_seed(tiny_loaded: LoadedModel) -> None:
    spec = CalibrationSpec(Dataset.SELF, num_samples=4, seqlen=16)
    before = torch.random.get_rng_state()
    windows = run(tiny_loaded, spec)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert windows.token_ids.shape == (4, 16)
    assert windows.digest == run(tiny_loaded, spec).digest
    assert windows.digest != held_out(spec, tiny_loaded.model, tiny_loaded.tokenizer).digest
    assert len({tuple(row.tolist()) for row in windows.token_ids}) == 4


@pytest.mark.parametrize(
    ("content", "name", "code"),
    [
        (b"", "empty.txt", "empty_text"),
        (b"\n \n", "blank.txt", "empty_text"),
        (b"too short", "short.txt", "not_enough_text"),
        ("na\u00efve ".encode("latin-1") * 100, "latin.txt", "wrong_encoding"),
        (b"no json", "bad.jsonl", "bad_record"),
        (b'{"words": 1}', "other.jsonl", "bad_record"),
        (b'["text"]', "list.jsonl", "bad_record"),
        (None, "missing.txt", "file_unreadable"),
        (None, ".", "file_unreadable"),
    ],
)
def test_a_file_that_will_not_do_is_refused_with_its_reason(
    tiny_loaded: LoadedModel, tmp_path: Path, content: bytes | None, name: str, code: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CalibrationError) as caught:
        run(tiny_loaded, spec_of(path))
    assert caught.value.code == code


def test_windows_longer_than_the_models_positions_are_refused(
    tiny_loaded: LoadedModel, text_file: Path
) -> None:
    with pytest.raises(CalibrationError, match="256 tokens"):
        run(tiny_loaded, spec_of(text_file, seqlen=257))


def test_a_data_set_that_cannot_be_reached_says_what_to_use_instead(
    tiny_loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    spec = CalibrationSpec(dataset=Dataset.WIKITEXT2)
    with pytest.raises(CalibrationError, match="packaged text such as dataset 'prose'") as caught:
        run(tiny_loaded, spec)
    assert caught.value.code == "dataset_unreachable"


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"num_samples": 0}, "calibration.num_samples"),
        ({"num_samples": 10**9}, "calibration.num_samples"),
        ({"num_samples": 10**5, "seqlen": 10**6}, "calibration.num_samples"),
        ({"seqlen": 1}, "calibration.seqlen"),
        ({"seed": -1}, "calibration.seed"),
        ({"dataset": Dataset.FILE}, "calibration.path"),
        ({"path": "x.txt"}, "calibration.path"),
    ],
)
def test_absurd_settings_are_refused_by_name(settings: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        CalibrationSpec(**{"dataset": Dataset.SELF, **settings})  # type: ignore[arg-type]  # kwargs
    assert caught.value.param == param


def test_the_sampling_of_text_can_be_followed_and_stopped(tiny_loaded: LoadedModel) -> None:
    spec = CalibrationSpec(Dataset.SELF, num_samples=2, seqlen=6)
    seen: list[tuple[int, int]] = []
    followed = calibrate(
        spec, tiny_loaded.model, tiny_loaded.tokenizer, lambda *counts: seen.append(counts)
    )
    assert seen == [(done, 6) for done in range(2, 7)]
    assert followed.digest == run(tiny_loaded, spec).digest

    def stop(_done: int, _total: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        calibrate(spec, tiny_loaded.model, tiny_loaded.tokenizer, stop)


def with_bos(loaded: LoadedModel) -> LoadedModel:
    """The same with a tokenizer that begins texts with a BOS, as that of Llama does."""
    tokenizer = deepcopy(loaded.tokenizer)
    bos = (str(tokenizer.bos_token), tokenizer.bos_token_id)
    framing = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    tokenizer.backend_tokenizer.post_processor = framing
    return replace(loaded, tokenizer=tokenizer)


@pytest.mark.parametrize("sampling", Sampling)
def test_each_window_begins_with_a_bos_where_the_tokenizer_adds_one(
    tiny_loaded: LoadedModel, text_file: Path, sampling: Sampling
) -> None:
    spec, loaded = spec_of(text_file, sampling=sampling), with_bos(tiny_loaded)
    windows = run(loaded, spec)
    assert windows.token_ids.shape[1] == 8
    bos = loaded.tokenizer.bos_token_id
    assert (windows.token_ids[:, 0] == bos).all()
    assert not (windows.token_ids[:, 1:] == bos).any()
    assert windows.source == f"file {text_file} behind <s>"
    plain = run(tiny_loaded, replace(spec, seqlen=7))
    assert torch.equal(plain.token_ids[:, :7], windows.token_ids[:, 1:])
    assert plain.source == f"file {text_file}"


def test_packaged_and_held_out_windows_begin_with_it_too(tiny_loaded: LoadedModel) -> None:
    loaded = with_bos(tiny_loaded)
    spec = CalibrationSpec(Dataset.CODE, num_samples=2, seqlen=8)
    found = [calibrate(spec, loaded.model, loaded.tokenizer)]
    found += evaluation_windows(spec, loaded.model, loaded.tokenizer).values()
    repair = repair_windows(spec, loaded.model, loaded.tokenizer)
    found += [*repair.train.values(), *repair.selection.values()]
    for windows in found:
        assert (windows.token_ids[:, 0] == loaded.tokenizer.bos_token_id).all()
        assert " behind <s>" in windows.source


@pytest.mark.parametrize("seqlen", [1, 2, 7, 8])
def test_every_fourth_window_repeats_its_first_half(tiny_loaded: LoadedModel, seqlen: int) -> None:
    for loaded in (tiny_loaded, with_bos(tiny_loaded)):
        token_ids = torch.randint(3, 60, (6, seqlen))
        begin = len(beginning(loaded.tokenizer))
        found = with_repeats(Windows(token_ids, "some"), loaded.tokenizer).token_ids
        half = (seqlen - begin) // 2
        for at, (window, before) in enumerate(zip(found, token_ids, strict=True)):
            assert torch.equal(window[: seqlen - half], before[: seqlen - half])
            begun = before[begin : begin + half] if at % 4 == 0 else before[seqlen - half :]
            assert torch.equal(window[seqlen - half :], begun)


def test_a_window_has_a_token_of_the_text_however_short_it_is(
    tiny_loaded: LoadedModel, text_file: Path
) -> None:
    loaded = with_bos(tiny_loaded)
    token_ids = all_windows(text_file.read_text(), 1, loaded.tokenizer)
    assert (token_ids != loaded.tokenizer.bos_token_id).all()
    assert token_ids.shape[1] == 1


def test_the_text_needs_no_tokens_for_the_bos(tiny_loaded: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("lazy dog " * 8)
    num_tokens = len(tiny_loaded.tokenizer(path.read_text()).input_ids)
    spec, loaded = spec_of(path, num_samples=num_tokens // 3, seqlen=4), with_bos(tiny_loaded)
    check_text(spec, loaded.tokenizer)
    assert len(run(loaded, spec).token_ids) == num_tokens // 3
    with pytest.raises(CalibrationError, match="the text is too short"):
        check_text(spec, tiny_loaded.tokenizer)
