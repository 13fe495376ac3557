"""Functions that another process compiles, and what runs meanwhile."""

import copy
import logging
import subprocess
import sys
from pathlib import Path
from threading import Thread

import numba
import psutil
import pytest
import torch
from torch import nn

from app.engine.compiled.compilation import compile_beside, wait_until_compiled
from app.engine.compiled.integers import INTEGER_PRODUCT
from app.engine.compiled.model import BLOCKS
from app.engine.compiled.openmp import ParallelFunction
from app.engine.compiled.product import PRODUCTS_OF_ROWS
from app.engine.engine import Engine
from app.engine.flat_model import compile_steps
from app.engine.int8 import int8_model
from app.engine.tuning import OFF, Tuner
from tests.support.compiled import always, broken, count, counted
from tests.support.engine_requests import prompt, request
from tests.support.tiny import tiny_model
from tests.support.waiting import wait_until


def compiling(parent: int | None = None) -> psutil.Process:
    """The process that compiles for this one, or for another."""
    module = "app.engine.compiled.compilation"

    def found() -> list[psutil.Process]:
        return [each for each in psutil.Process(parent).children() if module in each.cmdline()]

    return wait_until(found, "a process compiles")[0]


def left_to_another(function: ParallelFunction) -> ParallelFunction:
    """The same function as long as another process compiles it."""
    waits = ParallelFunction(function.function)
    waits.compilation = Thread()
    return waits


def test_another_process_compiles_them_and_keeps_them(
    kept_in: Path, caplog: pytest.LogCaptureFixture
) -> None:
    function, again = ParallelFunction(count), ParallelFunction(count)
    with caplog.at_level(logging.INFO):
        compile_beside([function])
        assert not function.is_ready()
        wait_until_compiled([function])
    assert counted(function)[0] == 1
    assert function._compiled.cache_hits == 1, "it was compiled here"
    assert "were compiled in" in caplog.text
    assert list(kept_in.rglob("*.nbc"))
    compile_beside([function, again])
    assert again.compilation is None, "it is kept already"


@pytest.mark.usefixtures("kept_in")
def test_an_error_of_the_compiler_leaves_them_unready(caplog: pytest.LogCaptureFixture) -> None:
    functions = [ParallelFunction(count), ParallelFunction(broken)]
    compile_beside(functions)
    wait_until_compiled(functions)
    assert [each.is_ready() for each in functions] == [True, False]
    assert "compiling broke off: " in caplog.text
    assert "Unknown attribute 'missing'" in caplog.text


@pytest.mark.usefixtures("kept_in")
def test_a_process_that_is_killed_for_its_memory_leaves_them_unready(
    caplog: pytest.LogCaptureFixture,
) -> None:
    function = ParallelFunction(count)
    compile_beside([function])
    process = compiling()
    score = Path(f"/proc/{process.pid}/oom_score_adj")
    wait_until(
        lambda: score.read_text(encoding="ascii") == "1000\n", "it is the first to be killed"
    )
    process.kill()
    wait_until_compiled([function])
    assert not function.is_ready()
    assert "compiling broke off: exit code -9" in caplog.text


@pytest.mark.usefixtures("kept_in")
def test_a_process_that_cannot_be_started_leaves_them_unready(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", "/none/python")
    function = ParallelFunction(count)
    compile_beside([function])
    wait_until_compiled([function])
    assert not function.is_ready()
    assert "compiling broke off: [Errno 2]" in caplog.text


def test_it_ends_with_the_process_it_works_for(kept_in: Path) -> None:
    program = f"""
import sys, numba
from app.engine.compiled.compilation import compile_beside
from app.engine.compiled.openmp import ParallelFunction
from tests.support.compiled import count
numba.config.CACHE_DIR = {str(kept_in)!r}
compile_beside([ParallelFunction(count)])
sys.stdin.read()
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as parent:
        child = compiling(parent.pid)
        parent.kill()
    child.wait(30)
    assert not list(kept_in.rglob("*.nbc"))


def test_meanwhile_steps_run_the_operations_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    tuner = Tuner()
    block, product = (left_to_another(each[torch.float32]) for each in (BLOCKS, PRODUCTS_OF_ROWS))
    monkeypatch.setitem(BLOCKS, torch.float32, block)
    monkeypatch.setitem(PRODUCTS_OF_ROWS, torch.float32, product)
    kept = numba.config.CACHE_DIR
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")

    engine = Engine(tuner=tuner)
    engine.add(request(prompt(5), max_new_tokens=6))
    engine.step()
    engine.step()
    assert not {name.split()[0] for name in tuner.choices} & {"blocks", "head"}

    numba.config.CACHE_DIR = kept
    block.compilation = product.compilation = None
    engine.step()
    assert {name.split()[0] for name in tuner.choices} >= {"blocks", "head"}


def test_int8_products_are_timed_when_they_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[bool] = []
    thread = Thread(target=lambda: waits.append(True))
    monkeypatch.setattr(thread, "join", thread.run)
    monkeypatch.setattr(INTEGER_PRODUCT, "compilation", thread)
    model = copy.deepcopy(tiny_model("llama"))
    int8_model(model, OFF)
    assert not waits
    int8_model(model, always("packed"))
    assert waits


@pytest.mark.parametrize(
    ("dtype", "tuner", "functions"),
    [
        (
            torch.bfloat16,
            Tuner(),
            [PRODUCTS_OF_ROWS[torch.bfloat16], BLOCKS[torch.bfloat16], INTEGER_PRODUCT],
        ),
        (torch.float32, Tuner(), [PRODUCTS_OF_ROWS[torch.float32], BLOCKS[torch.float32]]),
        (torch.float16, Tuner(), None),
        (torch.float32, OFF, None),
    ],
)
def test_what_steps_of_a_model_may_run_is_compiled(
    dtype: torch.dtype,
    tuner: Tuner,
    functions: list[ParallelFunction] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[list[ParallelFunction]] = []
    monkeypatch.setattr("app.engine.flat_model.compile_beside", asked.append)
    model = copy.deepcopy(tiny_model("llama"))
    nn.Module.to(model, dtype)
    compile_steps(model, tuner)
    assert asked == ([] if functions is None else [functions])
