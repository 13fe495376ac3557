"""The source does not unpickle, does not run the code of models, and starts no shell.

Weights are read from safetensors and from GGUF files of this project. Neither can contain code.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PICKLING = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
RQ_CALLS = {
    "Delivery.fetch",
    "Delivery.fetch_many",
    "Delivery.create",
    "worker.job_class.fetch",
    "LeasedQueue",
    "Worker",
}


def offences(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from _of_import(node)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load":
            yield "torch.load"
        elif isinstance(node, ast.Dict):
            yield from _of_items(zip(node.keys, node.values, strict=True))
        elif isinstance(node, ast.Call):
            yield from (*_of_call(node), *_of_deliveries(node))


def _of_import(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    names = {alias.name for alias in node.names}
    modules = names if isinstance(node, ast.Import) else {node.module or ""}
    yield from {module.partition(".")[0] for module in modules} & PICKLING
    if modules == {"torch"} and "load" in names:
        yield "torch.load"


def _of_call(call: ast.Call) -> Iterator[str]:
    called = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
    if isinstance(call.func, ast.Name) and called in ("eval", "exec", "__import__"):
        yield called
    given = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
    for name, value in given.items():
        is_false = isinstance(value, ast.Constant) and value.value is False
        if name in ("trust_remote_code", "allow_pickle", "shell") and not is_false:
            yield name
    if called == "from_pretrained" and "AutoModel" in ast.unparse(call.func):
        safe = given.get("use_safetensors")
        is_safe = isinstance(safe, ast.Constant) and safe.value is True
        if not is_safe and "gguf_file" not in given:
            yield "from_pretrained without use_safetensors"


def _of_deliveries(call: ast.Call) -> Iterator[str]:
    """A call of RQ without JSONSerializer. RQ pickles by default."""
    if ast.unparse(call.func) in RQ_CALLS and "JSONSerializer" not in ast.unparse(call):
        yield "rq without JSONSerializer"


def _of_items(items: Iterator[tuple[ast.expr | None, ast.expr]]) -> Iterator[str]:
    for key, value in items:
        is_named = isinstance(key, ast.Constant) and key.value == "trust_remote_code"
        if is_named and not (isinstance(value, ast.Constant) and value.value is False):
            yield "trust_remote_code"


def test_no_line_unpickles_or_runs_foreign_code() -> None:
    files = [*(ROOT / "app").rglob("*.py"), *(ROOT / "pruning").rglob("*.py")]
    assert len(files) > 100
    found = {
        f"{file.relative_to(ROOT)}: {offence}"
        for file in files
        for offence in offences(file.read_text(encoding="utf-8"))
    }
    assert not found


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "import joblib.numpy_pickle",
        "from dill import loads",
        "torch.load('x')",
        "from torch import load",
        "numpy.load('x', allow_pickle=True)",
        "AutoConfig.from_pretrained('x', trust_remote_code=True)",
        "AutoTokenizer.from_pretrained('x', trust_remote_code=flag)",
        "options = {'trust_remote_code': True}",
        "AutoModelForCausalLM.from_pretrained('x')",
        "AutoModelForCausalLM.from_pretrained('x', use_safetensors=False)",
        "subprocess.run('x', shell=True)",
        "eval(text)",
        "Delivery.fetch(job_id, client)",
        "worker.job_class.fetch(job_id, client)",
        "LeasedQueue('prune', connection=client)",
        "Worker(queues, serializer=None)",
    ],
)
def test_such_a_line_would_be_found(line: str) -> None:
    assert list(offences(line))
