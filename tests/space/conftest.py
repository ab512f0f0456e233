"""The page as a process of its own, for the tests that visit it."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.densepose_exports import TupleExport
from tests.hub_server import Hub
from tests.launch import ROOT, free_port


LORA = "pytorch_lora_weights.safetensors"
FAST = ROOT / "model_card" / "tiny" / "fast" / LORA
KEY = "lora_adapter_metadata"


@dataclass(frozen=True)
class Server:
    """Address of a running page, the folder of all its temporary files, and the Hub that it sees."""

    address: str
    folder: Path
    hub: Hub

    def results(self):
        """Return the folders of videos that are being made, or were left behind."""
        return list(self.folder.glob("dreampose-*"))


def subject_of_the_small_model(path):
    """Write a subject's LoRA that changes the small model's frames: its few-step LoRA without the settings for it."""
    with safe_open(FAST, "pt") as file:
        weights = {key: file.get_tensor(key) for key in file.keys()}
        facts = json.loads(file.metadata()[KEY])
    facts = {name: value for name, value in facts.items() if name != "dreampose.few_steps"}
    save_file(weights, path, {"format": "pt", KEY: json.dumps(facts)})
    return path


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The page with the small model, a fake DensePose and a Hub on loopback, started by its command."""
    pytest.importorskip("gradio", reason="gradio is not installed; run `make page-test`")
    folder, files = tmp_path_factory.mktemp("page"), tmp_path_factory.mktemp("files")
    torch.jit.script(TupleExport()).save(files / "densepose.pt")
    with Hub() as hub:
        hub.commit("models/someone/anna", {LORA: subject_of_the_small_model(files / LORA).read_bytes()})
        hub.commit("models/someone/fast", {LORA: FAST.read_bytes()})
        hub.commit("models/someone/pickled", {"pytorch_lora_weights.bin": b"never read"})
        environment = os.environ | {"TMPDIR": str(folder), "GRADIO_TEMP_DIR": str(folder / "gradio")}
        environment |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HOME": str(files / "home"), **hub.environment}
        port = free_port()
        command = [sys.executable, "model_card/space/app.py", "--device", "cpu", "--port", str(port), "--mcp"]
        command += ["--densepose", str(files / "densepose.pt")]
        with open(folder / "page.log", "w") as log:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        address = f"http://127.0.0.1:{port}"
        try:
            wait_for_page(process, address, folder / "page.log")
            yield Server(address, folder, hub)
        finally:
            process.terminate()
            process.wait(20)


def wait_for_page(process, address, log):
    end = time.monotonic() + 90
    while True:
        try:
            return urllib.request.urlopen(address, timeout=5).close()
        except OSError:
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.2)
