"""Pushing the page as a Space, to a Hub on loopback."""

import configparser
import os
import re
import subprocess
from pathlib import Path

import huggingface_hub
import pytest
import yaml

from tests.hub_server import Hub
from tests.launch import ROOT


def card():
    """Return the front matter of the Space's card."""
    return yaml.safe_load((ROOT / "model_card/space/README.md").read_text().split("---\n")[1])


def test_the_space_installs_what_the_page_needs_in_the_tested_version():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    needed = setup["options"]["install_requires"].split() + setup["options.extras_require"]["page"].split()
    requirements = (ROOT / "model_card/space/requirements.txt").read_text().splitlines()[1:]
    assert requirements == sorted(set(needed) - {"gradio[mcp]"})  # the Hub installs the version that the card names
    assert f"gradio=={card()['sdk_version']}\n" in (ROOT / "constraints.txt").read_text()


@pytest.mark.slow
def test_make_push_page_sends_a_space_that_finds_all_its_files(tmp_path):
    with Hub() as hub:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        environment |= hub.environment | {"HF_HOME": str(tmp_path)}
        venv = Path(huggingface_hub.__file__).parents[4]  # also in the page's environment, which builds on it
        command = ["make", f"--old-file={venv}/.installed", "push-page", "HUB_ID=someone/page", f"VENV={venv}"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        files, private = hub.files("spaces/someone/page"), hub.private
    assert "spaces/someone/page" in private
    assert files["README.md"] == (ROOT / "model_card/space/README.md").read_bytes()
    needed = {"requirements.txt", card()["app_file"], "pipeline_dreampose.py", "model_card/tiny/model_index.json"}
    assert needed | {"training/media/pictures.py", "model_card/sample/photo.png"} <= set(files)
    assert not [
        name for name in files if re.search(r"__pycache__|\.pyc|^\.|tests/", name) and name != ".gitattributes"
    ]
    # All that the page imports of the project is there, and so are its modules' own imports.
    for name, content in files.items():
        if name.endswith(".py") and not name.startswith("model_card/tiny/"):
            for module in re.findall(r"^from ((?:training|model_card)[\w.]+) import", content.decode(), re.MULTILINE):
                path = module.replace(".", "/")
                assert f"{path}.py" in files or any(other.startswith(f"{path}/") for other in files), (name, module)
