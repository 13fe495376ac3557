"""What the settings say of vLLM: its program, its command line and environment."""

import shutil
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path

from app.config import ServeSettings
from pruning.config import environment_of_gpu, foreign_environment
from pruning.models.store import pick_device

_GPU_SHARE = 0.9  # of the memory of a card, which all servers share
_GIB = 2**30


class VllmMissing(RuntimeError):
    """The settings ask for vLLM, and there is none."""


@dataclass(frozen=True)
class VllmOptions:
    """How servers are started. ``args`` come last on their command line, so they win."""

    program: Path
    settings: ServeSettings

    @classmethod
    def of(cls, settings: ServeSettings) -> "VllmOptions | None":
        """None if vLLM is neither installed nor needed. Raises ``VllmMissing``."""
        program = _program(settings.vllm)
        if program is None:
            if settings.engine == "vllm" or settings.vllm_models or settings.vllm is not None:
                raise VllmMissing(_missing(settings))
            return None
        return cls(program, settings)

    @property
    def args(self) -> tuple[str, ...]:
        return self.settings.vllm_arguments

    @property
    def max_servers(self) -> int:
        return self.settings.vllm_servers

    @property
    def dtype(self) -> str | None:
        """The torch name of the type that ``args`` ask it to compute in; None: that of a model."""
        asked = self._value("--dtype")
        known = {"half": "float16", "float": "float32"}.get(asked or "", asked)
        return None if known == "auto" else known

    @property
    def finds_calls(self) -> bool:
        """Whether ``args`` name a parser of the calls that a model chooses to make."""
        return "--enable-auto-tool-choice" in self.args and bool(self._value("--tool-call-parser"))

    @property
    def gpu_share(self) -> float:
        """Of the memory of each card, for one server. vLLM itself refuses what is no share."""
        try:
            asked = float(self._value("--gpu-memory-utilization") or 0)
        except ValueError:
            asked = 0
        return asked if 0 < asked <= 1 else _GPU_SHARE / self.max_servers

    @property
    def num_gpus(self) -> int:
        """Cards that share the weights of a model. vLLM itself refuses what is no number."""
        tensor = self._value("--tensor-parallel-size", "-tp") or ""
        pipeline = self._value("--pipeline-parallel-size", "-pp") or ""
        numbers = (int(each) if each.isdecimal() else 1 for each in (tensor, pipeline))
        return max(1, prod(numbers))

    def _value(self, *names: str) -> str | None:
        """Of the last option of these names in ``args``: ``--a b`` or ``--a=b``."""
        last = None
        for argument, following in pairwise((*self.args, "")):
            name, is_joined, value = argument.partition("=")
            if name in names:
                last = value if is_joined else following
        return last

    @property
    def is_on_gpu(self) -> bool:
        return pick_device(self.settings.device).startswith("cuda")

    def command(self, model: Path, name: str, socket: Path) -> list[str]:
        """``vllm serve`` of this directory, with the sampling defaults of our API."""
        command = [str(self.program), "serve", str(model), "--served-model-name", name]
        command += ["--uds", str(socket), "--generation-config", "vllm"]
        command += ["--max-num-seqs", str(self.settings.max_num_seqs), "--max-logprobs", "20"]
        command += ["--enable-prompt-tokens-details", "--disable-uvicorn-access-log"]
        if self.settings.max_model_len is not None:
            command += ["--max-model-len", str(self.settings.max_model_len)]
        if self.settings.prefix_cache == "off":
            command.append("--no-enable-prefix-caching")
        if self.is_on_gpu:
            command += ["--gpu-memory-utilization", f"{self.gpu_share:.3f}"]
        return [*command, *self.args]

    def environment(self, key: str, kv_cache_bytes: int) -> dict[str, str]:
        """That of this process without our settings, which hold secrets."""
        ours = {
            "VLLM_API_KEY": key,
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_CPU_KVCACHE_SPACE": str(max(1, kv_cache_bytes // _GIB)),
        }
        device, threads = self.settings.device, self.settings.threads
        if threads is not None:
            ours["OMP_NUM_THREADS"] = str(threads)
        if device.startswith("cuda:"):
            ours |= environment_of_gpu(int(device.removeprefix("cuda:")))
        # all cores: by itself it leaves one out
        return {"VLLM_CPU_OMP_THREADS_BIND": "nobind"} | foreign_environment() | ours


def _program(path: Path | None) -> Path | None:
    program = shutil.which("vllm" if path is None else path)
    return None if program is None else Path(program).absolute()


def _missing(settings: ServeSettings) -> str:
    if settings.vllm is not None:
        state = "cannot be executed" if settings.vllm.exists() else "does not exist"
        return f"SLEB_VLLM={settings.vllm} {state}: expected the program `vllm` of its environment"
    asked = "SLEB_ENGINE is vllm" if settings.engine == "vllm" else "SLEB_VLLM_MODELS is set"
    return (
        f"{asked}, but no program `vllm` is on the PATH: install vLLM in its own "
        "environment, and set SLEB_VLLM to its program"
    )
