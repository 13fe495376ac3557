"""Published clients call tools: in an environment of their own, against a service process."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.debian import tool
from tests.support.pages import ROOT
from tests.support.processes import environment, serve_process
from tests.support.scripted_model import write_scripted_model

FOLDER = ROOT / "tests" / "support"
PACKAGES = ("openai", "langchain", "langchain-openai")
NODE_PACKAGES = ("ai", "@ai-sdk/openai-compatible", "zod")
TEMPLATE = (
    "{% if tools %}<tool_call>{% endif %}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    "{% if messages[-1]['role'] == 'user' %}?{% endif %}"
)
ANSWER = "It is noon and sunny."
SAYS = {
    "?": (
        '<tool_call>\n{"name": "weather",',
        ' "arguments": {"city": "Os',
        'lo"}',
        "}\n</tool_call>",
    ),
    "=": ('<tool_call>{"name": "clock",', ' "arguments": {"zo', 'ne": 3', "}}</tool_call>"),
    "+": ("It is noon", " and sunny."),
}


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """The API of a service with the scripted model."""
    write_scripted_model(tmp_path / "models" / "scripted", SAYS, TEMPLATE)
    with serve_process(tmp_path) as (process, client):
        yield f"{client.base_url}/v1"
        process.terminate()  # so that its Valkey ends too
        process.wait(100)


def check(command: list[str], folder: Path) -> None:
    """Every client of the script calls both tools, and then has the answer of the model."""
    ran = subprocess.run(
        command,
        check=False,
        cwd=folder,
        env={**environment(folder), "LANGSMITH_TRACING": "false"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    answer = json.loads(ran.stdout.splitlines()[-1])
    sys.stdout.write(f"ran with {answer['versions']}\n")
    assert len(answer["said"]) > 1
    assert all(said == ["weather", "clock", ANSWER] for said in answer["said"].values())


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_openai_and_langchain_call_two_tools(url: str, tmp_path: Path) -> None:
    """``openai`` with and without streams, and an agent of ``langchain``."""
    python = str(tmp_path / "venv" / "bin" / "python")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    check([python, "-I", str(FOLDER / "tool_clients.py"), url], tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_vercels_ai_sdk_calls_two_tools(url: str, tmp_path: Path) -> None:
    """``generateText`` and ``streamText``."""
    node, npm = tool("node", "nodejs"), tool("npm", "npm")
    subprocess.run([npm, "install", "--silent", *NODE_PACKAGES], cwd=tmp_path, check=True)
    shutil.copy(FOLDER / "tool_clients.mjs", tmp_path)  # beside the packages
    check([node, "tool_clients.mjs", url], tmp_path)
