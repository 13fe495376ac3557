"""What the arguments for vLLM say."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from app.config import ServeSettings
from app.vllm import servers
from app.vllm.options import VllmOptions
from app.vllm.process import VllmStartFailed
from app.vllm.servers import VllmServers
from tests.support.vllm_program import write_program


def options_of(folder: Path, **settings: Any) -> VllmOptions:
    program = write_program(folder / "vllm")
    found = VllmOptions.of(ServeSettings(data_dir=folder, vllm=program, **settings))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("arguments", "dtype"),
    [
        ("", None),
        ("--tensor-parallel-size 2", None),
        ("--dtype auto", None),
        ("--max-model-len 9 --dtype bfloat16", "bfloat16"),
        ("--dtype=float --enforce-eager", "float32"),
        ("--dtype float32 --dtype half", "float16"),
    ],
)
def test_the_dtype_is_read_from_the_arguments(
    arguments: str, dtype: str | None, tmp_path: Path
) -> None:
    assert options_of(tmp_path, vllm_args=arguments).dtype == dtype


@pytest.mark.parametrize("option", ["--uds", "--served-model-name", "--served_model_name=a"])
def test_what_the_service_sets_itself_is_refused(option: str) -> None:
    with pytest.raises(ValidationError, match=r"--(uds|served-model-name) is set by the service"):
        ServeSettings(vllm_args=f"--enforce-eager {option} b")


CARD_BYTES = 80 * 2**30
SHARES = [
    ("", 2, 0.45, 1),
    ("", 1, 0.9, 1),
    ("--gpu-memory-utilization 0.3", 2, 0.3, 1),
    ("-tp 4 --pipeline-parallel-size=2", 1, 0.9, 8),
    ("--gpu-memory-utilization lots -tp 0", 2, 0.45, 1),  # vLLM refuses them
    ("--gpu-memory-utilization=nan -tp", 1, 0.9, 1),
]


@pytest.mark.parametrize(("arguments", "num_servers", "share", "num_gpus"), SHARES)
def test_a_card_is_divided_before_a_server_starts(
    arguments: str,
    num_servers: int,
    share: float,
    num_gpus: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = options_of(tmp_path, vllm_args=arguments, vllm_servers=num_servers)
    assert (options.gpu_share, options.num_gpus) == (share, num_gpus)
    monkeypatch.setattr(servers, "total_bytes", lambda _device: CARD_BYTES)
    monkeypatch.setattr(servers, "free_bytes", lambda _device: CARD_BYTES // 2)
    made = VllmServers(options, None)  # type: ignore[arg-type]
    room = min(int(share * CARD_BYTES), CARD_BYTES // 2)
    made._check_card("m", torch.device("cuda"), room - 1)
    with pytest.raises(VllmStartFailed, match=f"{room} bytes per GPU .{share:.0%} of the GPU"):
        made._check_card("m", torch.device("cuda"), room)


@pytest.mark.parametrize(
    ("visible", "device", "seen"),
    [
        (None, "cuda:1", "1"),
        ("4,5", "cuda:1", "5"),
        ("4, 5", "cuda:0", "4"),
        ("GPU-8932f937,MIG-c6d4f1ef", "cuda:1", "MIG-c6d4f1ef"),
        ("4,5", "cuda", "4,5"),
        ("4,5", "auto", "4,5"),
        (None, "cuda", None),
    ],
)
def test_vllm_sees_the_card_that_the_service_would_use(
    visible: str | None,
    device: str,
    seen: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    environment = options_of(tmp_path, device=device).environment("key", 0)
    assert environment.get("CUDA_VISIBLE_DEVICES") == seen
