"""The page as a process of its own, for the tests that visit it."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.launch import ROOT


@dataclass(frozen=True)
class Server:
    """Address of a running page, and the folder of all its temporary files."""

    address: str
    folder: Path

    def results(self):
        """Return the folders of videos that are being made, or were left behind."""
        return list(self.folder.glob("dreampose-*"))


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The page with the small model, started by its command."""
    pytest.importorskip("gradio", reason="gradio is not installed; run `make page-test`")
    folder = tmp_path_factory.mktemp("page")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"TMPDIR": str(folder), "GRADIO_TEMP_DIR": str(folder / "gradio"), "NO_PROXY": "*"}
    environment |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    with open(folder / "page.log", "w") as log:
        command = [sys.executable, "model_card/space/app.py", "--device", "cpu", "--port", str(port), "--mcp"]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + 90
    try:
        while True:
            try:
                urllib.request.urlopen(address, timeout=5).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < end, (folder / "page.log").read_text()
                time.sleep(0.2)
        yield Server(address, folder)
    finally:
        process.terminate()
        process.wait(20)
