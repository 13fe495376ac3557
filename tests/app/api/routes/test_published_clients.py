"""Published clients just work: in an environment of their own, against a service process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from app.auth.keys import KeyFile, Scope
from tests.support.exposition import Scrape
from tests.support.pages import ROOT
from tests.support.processes import environment, serve_process

# litellm needs an older importlib-metadata than this project has
SCRIPT = ROOT / "tests" / "support" / "published_clients.py"
PACKAGES = ("openai", "langchain-openai", "litellm", "jsonschema")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_published_clients_just_work(data_dir: Path, tmp_path: Path) -> None:
    """``openai``, ``langchain-openai`` and ``litellm`` of today, from the package registry."""
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    key = KeyFile(data_dir / "keys.json").create("clients", [Scope.GENERATE])
    with serve_process(data_dir, max_num_seqs="2", max_waiting="1") as (process, client):
        command = [str(python), "-I", str(SCRIPT), f"{client.base_url}/v1", key]
        offline = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        ran = subprocess.run(
            command,
            check=False,
            env={**environment(data_dir), **offline},
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr[-4000:]
        headers = {"authorization": f"Bearer {key}"}
        scrape = Scrape(client.get("/metrics", headers=headers).text)
        process.terminate()  # so that its Valkey ends too
        process.wait(100)
    texts = json.loads(ran.stdout.splitlines()[-1])
    assert texts.keys() == {"by_openai", "by_langchain", "by_litellm"}
    assert len({text for each in texts.values() for text in each}) == 1
    refusals = scrape.samples("sleb_admission_rejections_total")
    assert sum(each.value for each in refusals if each.labels["reason"] == "queue_full") > 0
