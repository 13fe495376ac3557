"""What is published loads in plain transformers as the view that it was written of, or is not
published: every family once, and everything that may be wrong with a directory.
"""

import json
import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from pruning.checkpoints import verify
from pruning.checkpoints.publish import publish
from pruning.checkpoints.staging import STAGING, sweep
from pruning.checkpoints.store import CheckpointStore, Manifest
from pruning.checkpoints.verify import CheckpointNotPortable, compare, verify_portable
from pruning.checkpoints.verify_expected import Expectation, expectation
from pruning.config import Verify
from pruning.models.architectures import architecture
from pruning.models.blocks import view
from pruning.models.store import COMPANION_FILES, ModelStore, load
from pruning.models.streaming import StreamedModel
from pruning.pipeline import prune
from pruning.search.dense_model import DenseModel, Resources, load_dense_model
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.prune import PruneSpec, Repair, Resident
from tests.support.checkpoints import manifest_of
from tests.support.logits import logits_of, token_ids
from tests.support.recorder import Recorder
from tests.support.tiny import NUM_BLOCKS, every_family, generated
from tests.support.tiny_checkpoints import write_checkpoint

KEEP = (0, 2, 4, 5)  # of manifest_of


@every_family
def test_a_pruned_model_of_every_family_is_its_view_to_plain_transformers(
    family: str, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path / "models" / family, family)
    store = CheckpointStore(tmp_path / "checkpoints")
    manifest = prune(
        PruneSpec(
            family,
            2,
            calibration=CalibrationSpec(Dataset.SELF, num_samples=1, seqlen=8),
            evaluate=False,
            repair=Repair.NONE,
        ),
        name="pruned",
        target=store.path("pruned"),
        models=ModelStore(tmp_path / "models"),
        observer=Recorder(),
    )
    path = store.path("pruned")
    loaded: Any = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    reloaded, report = loaded
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    dense = load(tmp_path / "models" / family).model
    pruned, ids = view(dense, manifest.keep), token_ids()
    assert reloaded.config.num_hidden_layers == len(manifest.keep) == NUM_BLOCKS - 2
    for key in architecture(dense.config).per_block:
        if (entries := getattr(dense.config, key, None)) is not None:
            found = getattr(AutoConfig.from_pretrained(path), key)
            assert found == [entries[block] for block in manifest.keep]
    torch.testing.assert_close(logits_of(reloaded, ids), logits_of(pruned, ids))
    prompt = ids[0].tolist()
    assert generated(reloaded, prompt, 16) == generated(pruned, prompt, 16)
    text = "the lazy dog"
    parents = AutoTokenizer.from_pretrained(tmp_path / "models" / family)
    assert AutoTokenizer.from_pretrained(path)(text).input_ids == parents(text).input_ids


@pytest.fixture(scope="session")
def dense_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a family whose blocks are of two kinds, so that their order can be told."""
    path = tmp_path_factory.mktemp("dense") / "gemma3"
    write_checkpoint(path, "gemma3_text")
    return path


@pytest.fixture(params=list(Resident))
def dense(dense_dir: Path, request: pytest.FixtureRequest) -> DenseModel:
    return load_dense_model(dense_dir, request.param, Resources("cpu"))


@pytest.fixture
def in_memory(dense_dir: Path) -> DenseModel:
    return load_dense_model(dense_dir, Resident.MODEL, Resources("cpu"))


def write(dense: DenseModel, directory: Path) -> None:
    dense.save(KEEP, directory)
    for name in COMPANION_FILES:
        if (dense.path / name).is_file():
            (directory / name).write_bytes((dense.path / name).read_bytes())


def publish_at(
    target: Path,
    dense: DenseModel,
    damage: Callable[[Path], object] = lambda _directory: None,
    how: Verify = Verify.INLINE,
    ask: Callable[[], object] = lambda: None,
) -> Manifest:
    def write_it(directory: Path) -> None:
        write(dense, directory)
        damage(directory)

    def verify(directory: Path) -> None:
        verify_portable(directory, dense, KEEP, how=how, ask=ask)

    return publish(target, manifest_of(), write_it, verify=verify)


def edit_config(directory: Path, **changes: object) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_weights(directory: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = directory / "model.safetensors"
    weights = load_file(file)
    edit(weights)
    save_file(weights, file, metadata={"format": "pt"})


def name_of(block: int) -> str:
    return f"model.layers.{block}.mlp.up_proj.weight"


def drop_a_tensor(directory: Path) -> None:
    edit_weights(directory, lambda weights: weights.pop(name_of(2)))


def add_a_tensor(directory: Path) -> None:
    edit_weights(
        directory, lambda weights: weights.update({"model.layers.4.extra": torch.zeros(2)})
    )


def shrink_a_tensor(directory: Path) -> None:
    edit_weights(directory, lambda weights: weights.update({name_of(1): torch.ones(3, 3)}))


def swap_two_blocks(directory: Path) -> None:
    def swap(weights: dict[str, torch.Tensor]) -> None:
        one, other = name_of(1), name_of(2)
        weights[one], weights[other] = weights[other], weights[one]

    edit_weights(directory, swap)


def truncate(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def too_deep(directory: Path) -> None:
    edit_config(directory, num_hidden_layers=6, layer_types=["full_attention"] * 6)


def stale_kinds(directory: Path) -> None:
    """Those of the first blocks, and not of the kept ones."""
    mixed = ["sliding_attention", "full_attention"] * 2
    edit_config(directory, layer_types=mixed)


def all_kinds(directory: Path) -> None:
    edit_config(directory, layer_types=["sliding_attention", "full_attention"] * 3)


def foreign_tokenizer(directory: Path) -> None:
    file = directory / "tokenizer.json"
    file.write_text(file.read_text().replace('"A"', '"Ä"'))


def no_template(directory: Path) -> None:
    (directory / "chat_template.jinja").unlink()


def more_vocabulary(directory: Path) -> None:
    (directory / "vocab.json").write_text("{}")


def another_rotation(directory: Path) -> None:
    """Nothing but a number of the config, which no key and no weight tells."""
    theta = {"rope_type": "default", "rope_theta": 77.0}
    edit_config(directory, rope_parameters={"sliding_attention": theta, "full_attention": theta})


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a dropped tensor": (drop_a_tensor, r"1 missing keys \(model\.layers\.2\.mlp\.up_proj\.weight"),
    "a surplus tensor": (add_a_tensor, r"1 unexpected keys \(model\.layers\.4\.extra"),
    "a tensor of another shape": (shrink_a_tensor, r"model\.layers\.1\.mlp\.up_proj\.weight"),
    "two blocks' weights swapped": (swap_two_blocks, "2 weights not as expected: model.layers.1"),
    "a truncated file": (truncate, "transformers cannot load it: .*safetensors|Safetensor|header"),
    "a wrong depth": (too_deep, "num_hidden_layers of config.json: got 6, expected 4"),
    "stale kinds of blocks": (stale_kinds, "layer_types of config.json: got .* expected"),
    "kinds of too many blocks": (all_kinds, "(?s)cannot read .*number of `layer_types`"),
    "another dtype": (lambda path: edit_config(path, dtype="float16"), "dtype of config.json"),
    "a foreign tokenizer": (foreign_tokenizer, "tokenizer.json differs from the parent's"),
    "a missing template": (no_template, "chat_template.jinja is missing"),
    "a file too many": (more_vocabulary, "vocab.json does not exist in the parent"),
    "another rotation": (another_rotation, "logits for fixed token ids differ by up to"),
}


@pytest.mark.slow
def test_what_a_killed_process_leaves_of_verifying_is_swept(
    tmp_path: Path, dense: DenseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing lies in the temporary folder, and a copy of what lay in staging goes with a sweep."""
    (temporary := tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(verify, "POLL_S", 0.05)
    root, found = tmp_path / "checkpoints", set[str]()

    def look() -> None:
        found.update(path.name for path in (root / STAGING).glob("scratch-*/*"))
        found.update(path.name for path in temporary.iterdir())
        if found and not (tmp_path / "left").exists():
            sweep(root)  # nothing of a process that lives
            shutil.copytree(root / STAGING, tmp_path / "left" / STAGING)

    publish_at(root / "tiny@prn-1", dense, how=Verify.PROCESS, ask=look)
    assert {"expected", "log"} <= found <= {"expected", "log", "verdict"}
    assert len([*(tmp_path / "left" / STAGING).iterdir()]) == 4  # two folders and their locks
    sweep(tmp_path / "left")
    assert not any((tmp_path / "left" / STAGING).iterdir())
    assert not any((root / STAGING).iterdir())


@pytest.mark.parametrize(
    "dense", [Resident.MODEL, pytest.param(Resident.STREAM, marks=pytest.mark.slow)], indirect=True
)
@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_what_differs_is_named_and_not_published(
    tmp_path: Path, dense: DenseModel, damage: Callable[[Path], object], message: str
) -> None:
    target = tmp_path / "checkpoints" / "tiny@prn-1"
    with pytest.raises(CheckpointNotPortable, match=message) as refused:
        publish_at(target, dense, damage)
    assert str(refused.value).startswith("not published, because ")
    assert [path.name for path in target.parent.iterdir()] == [".staging"]
    assert not any((target.parent / ".staging").iterdir())


def test_what_was_refused_is_published_once_nothing_differs(
    tmp_path: Path, dense: DenseModel
) -> None:
    target = tmp_path / "checkpoints" / "tiny@prn-1"
    with pytest.raises(CheckpointNotPortable):
        publish_at(target, dense, drop_a_tensor)
    publish_at(target, dense)
    assert CheckpointStore(target.parent).names() == ["tiny@prn-1"]


@pytest.mark.slow
def test_a_fresh_process_finds_and_says_the_same(tmp_path: Path, in_memory: DenseModel) -> None:
    with pytest.raises(CheckpointNotPortable, match=r"num_hidden_layers of config.json: got 6"):
        publish_at(tmp_path / "tiny@prn-1", in_memory, too_deep, Verify.PROCESS)
    assert CheckpointStore(tmp_path).names() == []


@pytest.mark.slow
def test_what_a_fresh_process_finds_good_is_published(
    tmp_path: Path, in_memory: DenseModel
) -> None:
    publish_at(tmp_path / "tiny@prn-1", in_memory, how=Verify.PROCESS)
    assert CheckpointStore(tmp_path).names() == ["tiny@prn-1"]


def test_a_process_that_breaks_off_is_no_proof(
    tmp_path: Path, in_memory: DenseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nowhere")  # no interpreter starts with that
    with pytest.raises(CheckpointNotPortable, match=r"the verification process failed: .+"):
        publish_at(tmp_path / "tiny@prn-1", in_memory, how=Verify.PROCESS)


class Asked(Exception):
    pass


def children() -> list[psutil.Process]:
    found: list[psutil.Process] = psutil.Process().children(recursive=True)
    return found


def test_a_stop_ends_the_process_at_once(
    tmp_path: Path, in_memory: DenseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The question comes while the process works, and its answer ends the process."""
    monkeypatch.setattr(verify, "POLL_S", 0.01)
    before = len(children())
    alive: list[int] = []

    def stop() -> None:
        alive.append(len(children()) - before)
        raise Asked

    with pytest.raises(Asked):
        publish_at(tmp_path / "tiny@prn-1", in_memory, how=Verify.PROCESS, ask=stop)
    assert alive == [1]
    assert len(children()) == before
    assert CheckpointStore(tmp_path).names() == []


def test_a_process_that_does_not_end_is_no_proof(
    tmp_path: Path, in_memory: DenseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "POLL_S", 0.01)
    monkeypatch.setattr(verify, "_LIMIT_S", -1e9)
    with pytest.raises(CheckpointNotPortable, match="loading took longer than"):
        publish_at(tmp_path / "tiny@prn-1", in_memory, how=Verify.PROCESS)
    assert CheckpointStore(tmp_path).names() == []


def test_a_process_that_is_killed_is_no_proof(
    tmp_path: Path, in_memory: DenseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "POLL_S", 0.01)

    def kill() -> None:
        for child in children():
            if "pruning.checkpoints.verify" in child.cmdline():
                child.kill()

    with pytest.raises(CheckpointNotPortable, match=r"killed by signal 9.*SLEB_VERIFY"):
        publish_at(tmp_path / "tiny@prn-1", in_memory, how=Verify.PROCESS, ask=kill)


def test_it_can_be_left_out(tmp_path: Path, dense: DenseModel) -> None:
    publish_at(tmp_path / "tiny@prn-1", dense, foreign_tokenizer, Verify.OFF)
    assert CheckpointStore(tmp_path).names() == ["tiny@prn-1"]


def test_what_has_no_room_is_loaded_block_by_block(
    tmp_path: Path, dense: DenseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pruning.checkpoints.verify_expected.free_bytes", lambda _device: 0)
    loaded: list[Path] = []

    def noted(path: Path, *, device: str) -> StreamedModel:
        loaded.append(path)
        return StreamedModel(path, device=device)

    monkeypatch.setattr("pruning.checkpoints.verify.StreamedModel", noted)
    publish_at(tmp_path / "tiny@prn-1", dense)
    assert len(loaded) == 1
    with pytest.raises(CheckpointNotPortable, match="2 weights not as expected"):
        publish_at(tmp_path / "tiny@prn-2", dense, swap_two_blocks)
    with pytest.raises(CheckpointNotPortable, match="logits for fixed token ids"):
        publish_at(tmp_path / "tiny@prn-2", dense, another_rotation)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_on_one_machine_logits_are_equal_bit_for_bit(
    tmp_path: Path, dense_dir: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tolerance is for a checkpoint that is loaded on another device."""
    monkeypatch.setattr("pruning.checkpoints.verify.TOLERANCES", {dtype: 0.0})
    dense = load_dense_model(dense_dir, Resident.MODEL, Resources("cpu"), dtype=dtype)
    publish_at(tmp_path / "tiny@prn-1", dense)
    assert CheckpointStore(tmp_path).names() == ["tiny@prn-1"]


def with_scores(expected: Expectation, gap: float) -> Expectation:
    """As if the model had preferred another first token, by that share of its largest logit."""
    chosen, other = expected.continuation[0], (expected.continuation[0] + 1) % 96
    scores = expected.scores.clone()
    scores[0, other] = scores[0, chosen] + gap * scores[0].abs().max()
    return replace(expected, scores=scores, continuation=[other, *expected.continuation[1:]])


def test_a_tie_that_rounding_turns_is_no_difference(tmp_path: Path, in_memory: DenseModel) -> None:
    write(in_memory, tmp_path)
    expected = expectation(in_memory, KEEP)
    compare(tmp_path, with_scores(expected, 1e-5))
    with pytest.raises(CheckpointNotPortable, match="greedy generation differs at token 1"):
        compare(tmp_path, with_scores(expected, 1e-2))


def test_what_is_no_number_is_refused(tmp_path: Path, dense: DenseModel) -> None:
    write(dense, tmp_path)
    expected = expectation(dense, KEEP)
    spoilt = replace(expected, logits=expected.logits * math.nan)
    with pytest.raises(CheckpointNotPortable, match="not finite in float32"):
        compare(tmp_path, spoilt)


def test_an_expectation_survives_its_file(tmp_path: Path, dense: DenseModel) -> None:
    expected = expectation(dense, KEEP)
    expected.save(tmp_path / "file")
    found = Expectation.read(tmp_path / "file")
    for name, value in vars(expected).items():
        other = getattr(found, name)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
