"""The simulated device does what a GPU does, where tests of the product depend on it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tests.support.simcuda import build
from tests.support.simcuda.device import SimulatedCuda


def test_tensors_say_their_device_and_give_what_the_cpu_gives(cuda: SimulatedCuda) -> None:
    on_host = torch.arange(12.0).view(3, 4)
    x = on_host.to("cuda:0")
    assert x.is_cuda
    assert str((x @ x.T).device) == "cuda:0"
    for compute in (torch.softmax, torch.cumsum, torch.argsort):
        assert torch.equal(compute(x, -1).cpu(), compute(on_host, -1))
    assert cuda.num_kernels > 0


def test_a_view_shares_memory_and_a_write_to_it_is_seen(cuda: SimulatedCuda) -> None:
    x = torch.zeros(3, 4, device="cuda")
    before = cuda.allocated_bytes()
    x[1:].view(-1)[:2] = 5
    assert x.sum().item() == 10
    assert cuda.allocated_bytes() == before


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x + torch.ones(4, 4),
        lambda x: x @ torch.ones(4, 4),
        lambda x: x + torch.ones(4, 4, device="cuda:1"),
        lambda x: x @ torch.ones(4, 4, device="cuda:1"),
        lambda x: F.embedding(torch.tensor([1]), x),
        lambda x: F.linear(x, torch.ones(2, 4)),
        lambda x: torch.where(x > 0, x, torch.ones(4, 4)),
        lambda x: x.scatter_(0, torch.zeros(1, 4, dtype=torch.long), 1.0),
    ],
)
def test_tensors_of_two_devices_do_not_mix(
    cuda: SimulatedCuda, mix: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    assert cuda.current == 0
    x = torch.ones(4, 4, device="cuda:0")
    with pytest.raises(RuntimeError, match="same device"):
        mix(x)
    assert (x + torch.tensor(2.0)).sum().item() == 48  # a number of the host may


@pytest.mark.parametrize(
    ("wait", "num_uploads", "num_downloads"),
    [
        (lambda x: x.sum().item(), 0, 0),
        (lambda x: x.tolist(), 0, 1),
        (lambda x: x.cpu(), 0, 1),
        (lambda x: x[[0, 1]], 1, 0),
        (lambda x: x.nonzero(), 0, 0),
        (lambda x: x[x[:, 0] > 0], 0, 0),
        (lambda x: torch.equal(x, x), 0, 0),
        (lambda x: bool((x > 0).any()), 0, 0),
        (lambda x: x.new_tensor([1.0]), 1, 0),
        (lambda _: torch.tensor([1, 2], device="cuda"), 1, 0),
        (lambda _: torch.cuda.synchronize(), 0, 0),
        (lambda _: torch.cuda.current_stream().synchronize(), 0, 0),
        (lambda x: x.repeat_interleave(torch.ones(4, dtype=torch.long, device="cuda"), 0), 0, 0),
    ],
)
def test_each_wait_of_the_host_is_logged_where_it_happens(
    cuda: SimulatedCuda,
    wait: Callable[[torch.Tensor], object],
    num_uploads: int,
    num_downloads: int,
) -> None:
    x = torch.ones(4, 4, device="cuda")
    cuda.log.clear()
    wait(x)
    assert cuda.log.count("wait") >= 1
    assert cuda.log.count("upload") == num_uploads
    assert cuda.log.count("download") == num_downloads
    assert all(
        place.startswith("tests/simcuda/test_device.py:") for place in cuda.log.by_place("wait")
    )


@pytest.mark.parametrize(
    "run",
    [
        lambda x: (x * 2 + x.T).softmax(-1).topk(2),
        lambda x: x.masked_fill(x > 0, 0.0).index_select(0, x[0].long()),
        lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None], is_causal=True),
        lambda x: torch.where(x > 0, x, 0.0).sort(-1),
        lambda x: torch.repeat_interleave((x[0] * 2).long(), output_size=8),
    ],
)
def test_kernels_do_not_wait(cuda: SimulatedCuda, run: Callable[[torch.Tensor], object]) -> None:
    run(torch.ones(4, 4, device="cuda"))
    assert not cuda.log.events


def test_pinned_memory_is_copied_without_a_wait(cuda: SimulatedCuda) -> None:
    pinned = torch.tensor([1.0, 2.0]).pin_memory()
    assert pinned.is_pinned()
    x = pinned.to("cuda", non_blocking=True)
    back = torch.empty(2, pin_memory=True).copy_(x, non_blocking=True)
    assert back.tolist() == [1, 2]
    assert cuda.log.count("wait") == 0
    assert [event.kind for event in cuda.log.events] == ["upload", "download"]
    torch.tensor([1.0]).to("cuda", non_blocking=True)  # from memory that is not pinned
    assert cuda.log.count("wait") == 1


def captured(step: Callable[[], torch.Tensor]) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    return graph, out


def test_a_graph_repeats_its_kernels_on_the_same_memory(cuda: SimulatedCuda) -> None:
    x, calls = torch.zeros(3, device="cuda"), []

    def step() -> torch.Tensor:
        calls.append(1)
        y = x.clone()
        y[1:] += 1
        return torch.stack((y * 2, torch.sort(y).values))

    graph, out = captured(step)
    x.copy_(torch.tensor([3.0, 2.0, 1.0]))
    graph.replay()
    assert out.tolist() == [[6, 6, 4], [2, 3, 3]]
    assert len(calls) == cuda.num_captures == cuda.num_replays == 1


def test_a_graph_does_not_repeat_what_python_decided(cuda: SimulatedCuda) -> None:
    assert cuda.num_captures == 0
    factors = [2.0, 3.0]
    x = torch.ones(1, device="cuda")
    graph, out = captured(lambda: x * factors.pop(0))
    graph.replay()
    assert out.item() == 2


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x.cpu(),
        lambda x: x[[0]],
        lambda _: torch.tensor([1], device="cuda"),
        lambda _: torch.cuda.synchronize(),
        lambda x: x.nonzero(),
    ],
)
def test_a_wait_in_a_capture_is_refused(
    cuda: SimulatedCuda, wait: Callable[[torch.Tensor], object]
) -> None:
    x = torch.ones(3, device="cuda")
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        captured(lambda: (wait(x), x)[1])
    assert not cuda.is_capturing
    assert wait(x) is not x


def test_a_card_has_as_much_memory_as_it_is_given(cuda: SimulatedCuda) -> None:
    start = cuda.allocated_bytes()
    cuda.set_memory(start + 4000)
    x = torch.empty(500, device="cuda")
    assert torch.cuda.memory_allocated() == start + 2000
    assert torch.cuda.mem_get_info() == (2000, start + 4000)
    with pytest.raises(torch.OutOfMemoryError, match="of which"):
        torch.empty(501, device="cuda")
    torch.empty(501, device="cuda:1")
    del x
    assert cuda.allocated_bytes() == start
    assert cuda.peak_bytes() == start + 2000


def test_a_dry_run_has_shapes_but_no_memory(cuda: SimulatedCuda) -> None:
    with cuda.dry():
        weight = torch.empty(2**18, 2**15, device="cuda", dtype=torch.bfloat16)  # 16 GiB
        x = torch.nn.Parameter(weight)[: 2**10].T
        rows = torch.ones(7, 2**15, device="cuda", dtype=torch.bfloat16) @ x
        assert rows.shape == (7, 2**10)
        assert cuda.allocated_bytes() > 16 * 2**30
        assert rows.float().sum().item() == 1
        assert (rows.cpu() == 1).all()
        del weight, rows, x
    assert cuda.allocated_bytes() == 0


@pytest.mark.parametrize("rows", [1, 16])
def test_integer_products_want_more_rows_than_a_decode_has(cuda: SimulatedCuda, rows: int) -> None:
    assert cuda.current == 0
    weight = torch.ones(8, 8, dtype=torch.int8, device="cuda")
    torch._int_mm(torch.ones(17, 8, dtype=torch.int8, device="cuda"), weight)
    with pytest.raises(RuntimeError, match="greater than 16"):
        torch._int_mm(torch.ones(rows, 8, dtype=torch.int8, device="cuda"), weight)


@pytest.mark.slow
def test_gradients_are_those_of_the_cpu() -> None:
    """In a process of its own, as torch makes its threads for devices once."""
    code = """
import torch
from tests.support.simcuda.device import simulated_cuda
torch.set_default_dtype(torch.float64)  # rows that are nearly constant make a norm amplify rounding
grads = []
x = torch.randn(5, 4)
layer = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3), torch.nn.SiLU())
with simulated_cuda():
    for device in ("cpu", "cuda:1"):
        layer.to(device).zero_grad()
        layer(x.to(device)).square().sum().backward()
        grads.append([each.grad.cpu().clone() for each in layer.parameters()])
for ours, theirs in zip(*grads):
    assert ours.abs().sum() > 0
    torch.testing.assert_close(ours, theirs)
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=100
    )
    assert run.returncode == 0, run.stderr


def test_it_is_compiled_once_for_all_processes() -> None:
    made = build.library()
    at_ns = made.stat().st_mtime_ns
    build.library.cache_clear()
    assert build.library() == made
    assert made.stat().st_mtime_ns == at_ns


def test_an_error_of_the_compiler_is_told(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="cannot be compiled"):
        build.compile_device("false", tmp_path / "made.so")


def test_without_it_there_is_no_gpu(cuda: SimulatedCuda) -> None:
    assert torch.cuda.is_available()
    assert torch.cuda.device_count() == 2
    assert cuda.total_bytes() == 80 * 2**30


def test_after_it_there_is_none() -> None:
    assert not torch.cuda.is_available()
    with pytest.raises((RuntimeError, AssertionError)):
        torch.ones(1).pin_memory()
