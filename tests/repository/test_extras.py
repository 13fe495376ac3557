"""What works with the base alone and with each extra, and how the rest is refused.

Each test runs in a process that can import no other packages.
"""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

from pruning.extras import EXTRAS, install_command
from tests.support.extras import hidden_with, run_with
from tests.support.pages import ROOT
from tests.support.tiny_directory import write_tiny_model

pytestmark = pytest.mark.timeout(400)  # for a busy machine

OPTIONAL_MODULES = (
    "app.cluster.application",
    "app.cluster.ingress",
    "app.metrics.tracing",
    "pruning.checkpoints.gguf",
)
IMPORT_ALL = f"""
import importlib, pkgutil
import app, pruning

for package in (app, pruning):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if module.name not in {OPTIONAL_MODULES} and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
"""
PRUNE = """
import sys
from pathlib import Path
from app.cli.main import main

sys.argv[1:] = ["prune", "tiny", "--num-remove", "1", "--num-samples", "2", "--seqlen", "32"]
sys.argv += ["--out", "data/pruned", "--evaluation-num-samples", "8"]
try:
    main()
except SystemExit as end:
    assert not end.code, end
print("plots:", len(list(Path("data").rglob("trajectory.png"))))
"""
REFUSED = """
from pathlib import Path
from app.commands.models import plot_models
from app.config import ServeSettings
from app.main import _tracing
from pruning.checkpoints.quantized import require_compressed_tensors
from pruning.data.corpora import HUB_CORPORA, Split
from pruning.evaluation.task_errors import require_lm_eval
from pruning.heal_checkpoint import heal_checkpoint
from pruning.models.demo_model import ensure_demo_model
from pruning.search.ray_scoring import import_ray
from pruning.spec.calibration import Dataset
from pruning.storage.location import file_system
from pruning.store_url import StoreUrl
from pruning.worker.tracking import MlflowRuns

settings = ServeSettings(otlp_endpoint="http://127.0.0.1:1")
asked = {
    "cluster": import_ray,
    "datasets": lambda: HUB_CORPORA[Dataset.WIKITEXT2].load(Split.EVALUATION),
    "eval": require_lm_eval,
    "gcs": lambda: file_system(StoreUrl.parse("gs://bucket/folder")),
    "gguf": lambda: ensure_demo_model(Path("models")),
    "heal": lambda: heal_checkpoint(None, None, models=None, observer=None),
    "mlflow": lambda: MlflowRuns("http://127.0.0.1:1", "", None, str, None),
    "otel": lambda: _tracing(settings),
    "plots": lambda: plot_models(settings, [], Path("plot.png")),
    "quantize": require_compressed_tensors,
    "s3": lambda: file_system(StoreUrl.parse("s3://bucket/folder")),
}
for name, ask in asked.items():
    try:
        ask()
    except Exception as error:
        assert type(error).__module__.startswith("pruning."), error
        print(f"{name}: {error}")
"""
# what each extra is for, as far as it needs no server and no network
USES: Mapping[str, str] = {
    "cluster": "from pruning.search.ray_scoring import import_ray; import_ray('serve')",
    "datasets": """
import os
os.environ["HF_HUB_OFFLINE"] = "1"
from pruning.data.corpora import HUB_CORPORA, CalibrationError, Split
from pruning.spec.calibration import Dataset
try:
    HUB_CORPORA[Dataset.WIKITEXT2].load(Split.EVALUATION)
except CalibrationError as error:
    assert error.code == "dataset_unreachable", error
""",
    "eval": """
from pruning.evaluation.task_errors import require_lm_eval
require_lm_eval()
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
""",
    "gcs": "import aiohttp, fsspec; fsspec.get_filesystem_class('gs')",
    "gguf": "import pruning.checkpoints.gguf",
    "heal": """
from transformers import LlamaConfig, LlamaForCausalLM
from pruning.healing.adapter import adapted
from pruning.spec.heal import Heal
shape = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
model = LlamaForCausalLM(LlamaConfig(vocab_size=16, **shape))
assert adapted(model, Heal()).num_bytes
""",
    "mlflow": """
from pruning.worker.tracking import MlflowRuns
MlflowRuns("http://127.0.0.1:1", "", None, str, None)
""",
    "otel": "from app.metrics.tracing import tracing_to; tracing_to('http://127.0.0.1:1').shutdown()",
    "plots": PRUNE,
    "quantize": """
from pruning.checkpoints.quantized import require_compressed_tensors
require_compressed_tensors()
from compressed_tensors.compressors import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs
""",
    "s3": """
from pruning.storage.location import file_system
from pruning.store_url import StoreUrl
file_system(StoreUrl.parse("s3://bucket/folder"))
""",
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_tiny_model(tmp_path / "data" / "models" / "tiny")
    return tmp_path


def said(extras: tuple[str, ...], code: str, directory: Path) -> str:
    ran = run_with(extras, code, directory)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_the_extras_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {*project["optional-dependencies"]} - {"all", "demo", "dev", "gpu", "stores"}
    assert named == set(EXTRAS) == set(USES)
    [everything] = project["optional-dependencies"]["all"]
    assert everything == f"sleb-serve[{','.join(EXTRAS)}]"


def test_the_page_lists_them() -> None:
    page = (ROOT / "docs" / "installation.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", page, re.MULTILINE)
    assert rows == [(name, extra.purpose) for name, extra in EXTRAS.items()]


def test_the_base_is_without_the_packages_of_extras() -> None:
    assert {"matplotlib", "peft", "ray"} <= hidden_with(())


@pytest.fixture(scope="module")
def of_base(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What one process says that refuses what it lacks, imports every module, and prunes."""
    write_tiny_model((directory := tmp_path_factory.mktemp("base")) / "data" / "models" / "tiny")
    parts = "print('---')\n".join((REFUSED, IMPORT_ALL, PRUNE))
    return said((), parts, directory).split("---\n")


@pytest.mark.slow
def test_the_base_imports_every_module_and_prunes(of_base: list[str]) -> None:
    _, _, pruned = of_base
    assert "plots: 0\n" in pruned


@pytest.mark.slow
def test_the_base_names_the_extra_of_what_it_lacks(of_base: list[str]) -> None:
    refused, *_ = of_base
    lines = dict(line.split(": ", 1) for line in refused.splitlines())
    assert set(lines) == set(EXTRAS)
    for name, line in lines.items():
        assert re.search(rf"requires the extra `{name}`: {re.escape(install_command(name))}", line)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXTRAS)
def test_an_extra_alone_is_enough_for_its_use(name: str, directory: Path) -> None:
    check = f"from pruning.extras import has_extra; assert has_extra({name!r})\n"
    output = said((name,), check + USES[name], directory)
    assert name != "plots" or "plots: 1\n" in output
