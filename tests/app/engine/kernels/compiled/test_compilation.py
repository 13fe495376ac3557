"""Functions that another process compiles, and what runs meanwhile."""

import copy
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numba
import psutil
import pytest
import torch
from torch import nn

from app.engine.autotuning import OFF, Autotuner
from app.engine.engine import Engine
from app.engine.kernels.compiled.compilation import (
    CompilationState,
    compile_beside,
    kept_state,
    wait_for_compilation,
)
from app.engine.kernels.compiled.integers import INTEGER_PRODUCT
from app.engine.kernels.compiled.model import BLOCKS
from app.engine.kernels.compiled.openmp import ParallelFunction, compile_now
from app.engine.kernels.compiled.product import PRODUCTS_OF_ROWS
from app.engine.running.flat_model import FLAT, functions_of_steps
from tests.support.compilable import broken, count
from tests.support.compiled import counted, load_compiled
from tests.support.engine_requests import prompt, request
from tests.support.tiny import tiny_model
from tests.support.waiting import wait_until

FLOAT = torch.float32
LIMIT_S = 250.0  # the process that compiles gives way to those of other tests

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(autouse=True)
def _no_second_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would begin in the middle of another test."""
    monkeypatch.setattr("app.engine.kernels.compiled.compilation._RETRY_S", ())


def compiling(parent: int | None = None) -> psutil.Process:
    """The process that compiles for this one, or for another."""
    module = "app.engine.kernels.compiled.compilation"

    def found() -> list[psutil.Process]:
        return [each for each in psutil.Process(parent).children() if module in each.cmdline()]

    return wait_until(found, "a process compiles")[0]


def test_another_process_compiles_them_and_keeps_them(
    kept_in: Path, caplog: pytest.LogCaptureFixture
) -> None:
    function, again = ParallelFunction(count), ParallelFunction(count)
    with caplog.at_level(logging.INFO):
        compile_beside([function])
        assert not function.is_ready
        wait_for_compilation([function], LIMIT_S)
    assert counted(function)[0] == 1
    assert function._compiled.cache_hits == 1, "it was compiled here"
    assert "compiled the blocks of models in" in caplog.text
    assert list(kept_in.rglob("*.nbc"))
    caplog.clear()
    compile_beside([function, again])
    wait_for_compilation([again], LIMIT_S)
    assert again.is_ready
    assert not caplog.text, "it is kept already"
    assert kept_state(kept_in) == CompilationState("compiled")


@pytest.mark.slow
def test_an_error_of_the_compiler_leaves_them_unready_and_is_noted(
    kept_in: Path, caplog: pytest.LogCaptureFixture
) -> None:
    functions = [ParallelFunction(count), ParallelFunction(broken)]
    compile_beside(functions)
    wait_for_compilation(functions, LIMIT_S)
    assert [each.is_ready for each in functions] == [True, False]
    assert "compilation failed: " in caplog.text
    assert "Unknown attribute 'missing'" in caplog.text
    state = kept_state(kept_in)
    assert state is not None
    assert (state.state, state.retry_at) == ("failed", None)
    assert "Unknown attribute 'missing'" in state.reason


@pytest.mark.slow
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
    wait_for_compilation([function], LIMIT_S)
    assert not function.is_ready
    assert "compilation failed: exit code -9" in caplog.text


@pytest.mark.usefixtures("kept_in")
def test_a_process_that_cannot_be_started_leaves_them_unready(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", "/none/python")
    function = ParallelFunction(count)
    compile_beside([function])
    wait_for_compilation([function], LIMIT_S)
    assert not function.is_ready
    assert "compilation failed: [Errno 2]" in caplog.text


@pytest.mark.slow
def test_it_ends_with_the_process_it_works_for(kept_in: Path) -> None:
    program = f"""
import sys, numba
from app.engine.kernels.compiled.compilation import compile_beside
from app.engine.kernels.compiled.openmp import ParallelFunction
from tests.support.compilable import count
numba.config.CACHE_DIR = {str(kept_in)!r}
compile_beside([ParallelFunction(count)])
sys.stdin.read()
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as parent:
        child = compiling(parent.pid)
        parent.kill()
    child.wait(LIMIT_S)
    assert not list(kept_in.rglob("*.nbc"))


def test_meanwhile_steps_run_the_operations_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    load_compiled()
    tuner = Autotuner()
    block, product = (ParallelFunction(each[FLOAT].function) for each in (BLOCKS, PRODUCTS_OF_ROWS))
    for each in (block, product):
        each.is_claimed = True  # as while another process compiles it
    monkeypatch.setitem(BLOCKS, FLOAT, block)
    monkeypatch.setitem(PRODUCTS_OF_ROWS, FLOAT, product)
    engine, each_request = Engine(tuner=tuner), request(prompt(5), max_new_tokens=6)
    engine.add(each_request)
    engine.step()
    engine.step()
    assert engine.kernels.warm_up.is_warming_up(each_request.variant)
    assert not engine.kernels.warm_up.advance()
    assert engine.kernels.warm_up.state == "compiling"
    assert (
        engine._sequences[each_request.request_id].kernels["blocks, decode of 1 within 64"] == FLAT
    )

    block.load()
    product.load()
    engine.kernels.finish()
    assert {key.split()[0] for key in tuner.choices} >= {"blocks,", "head"}
    engine.step()
    kernels = engine._sequences[each_request.request_id].kernels
    assert kernels["blocks, decode of 1 within 64"].startswith(FLAT)


def test_a_failure_is_tried_again(
    kept_in: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("app.engine.kernels.compiled.compilation._RETRY_S", (0.01,))
    reasons = iter(["it ran out of memory", ""])

    def compile_here(functions: Sequence[ParallelFunction]) -> str:
        if not (reason := next(reasons)):
            compile_now(functions[0].function, keeps=True)
        return reason

    monkeypatch.setattr("app.engine.kernels.compiled.compilation._compile", compile_here)
    function = ParallelFunction(count)
    compile_beside([function])
    wait_until(lambda: function.is_ready, "it is compiled at the second attempt", LIMIT_S)
    assert "it ran out of memory (next attempt in 0 s)" in caplog.text
    wait_until(lambda: kept_state(kept_in) == CompilationState("compiled"), "it is noted")


@pytest.mark.slow
def test_without_a_directory_it_is_compiled_into_a_temporary_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    compile_beside([function := ParallelFunction(count)])
    wait_for_compilation([function], LIMIT_S)
    assert counted(function)[0] == 1
    assert Path(numba.config.CACHE_DIR).is_dir()


@pytest.mark.parametrize(
    ("dtype", "tuner", "functions"),
    [
        (
            torch.bfloat16,
            Autotuner(),
            [PRODUCTS_OF_ROWS[torch.bfloat16], BLOCKS[torch.bfloat16], INTEGER_PRODUCT],
        ),
        (torch.float32, Autotuner(), [PRODUCTS_OF_ROWS[torch.float32], BLOCKS[torch.float32]]),
        (torch.float16, Autotuner(), None),
        (torch.float32, OFF, None),
    ],
)
def test_what_steps_of_a_model_may_run_is_compiled(
    dtype: torch.dtype,
    tuner: Autotuner,
    functions: list[ParallelFunction] | None,
) -> None:
    model = copy.deepcopy(tiny_model("llama"))
    nn.Module.to(model, dtype)
    assert functions_of_steps(model, tuner) == (functions or [])
