"""What the arguments for vLLM say."""

from pathlib import Path

import pytest

from app.config import ServeSettings
from app.vllm.options import VllmOptions
from tests.support.vllm_program import write_program


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
    program = write_program(tmp_path / "vllm")
    settings = ServeSettings(data_dir=tmp_path, vllm=program, vllm_args=arguments)
    options = VllmOptions.of(settings)
    assert options is not None
    assert options.dtype == dtype
