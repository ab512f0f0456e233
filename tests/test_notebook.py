"""The notebook of docs/: it is small and without outputs, its commands exist, and it shows what its text says."""

import ast
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import animate
from tests.launch import ON_CPU, ROOT
from training import finetune


NOTEBOOK = ROOT / "docs" / "dreampose.ipynb"
PARSERS = {"animate.py": animate.parse_args, "training/finetune.py": finetune.parse_args}
SHOWN = ("sample", "strip", "dance", "compared", "photos", "before_after", "subject")
# Runs the code cells of a notebook as one does: argv[1] is the notebook, argv[2] the folder for what it shows.
RUNNER = """
import json, shutil, sys, types
from pathlib import Path

import numpy as np

notebook, folder = map(Path, sys.argv[1:])
shown = []

def display(picture):
    path = folder / f"{len(shown)}.png"
    shutil.copy(picture, path) if isinstance(picture, str) else picture.save(path)
    shown.append(path)

sys.modules["IPython"] = types.ModuleType("IPython")
sys.modules["IPython.display"] = types.SimpleNamespace(display=display, Image=lambda filename: filename)
names = {"__name__": "__main__"}
for cell in json.loads(notebook.read_text())["cells"]:
    if cell["cell_type"] == "code":
        exec("".join(cell["source"]), names)
videos = {name: names[name] for name in ("frames", "truth", "before", "after", "true_clip")} | names["results"]
arrays = {name: np.stack([np.asarray(frame) for frame in frames]) for name, frames in videos.items()}
np.savez(folder / "videos.npz", chosen=names["chosen"], **arrays)
"""


@pytest.fixture(scope="module")
def cells():
    return json.loads(NOTEBOOK.read_text())["cells"]


@pytest.fixture(scope="module")
def code(cells):
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_the_notebook_is_small_without_outputs_and_without_paths_of_a_machine(cells):
    assert NOTEBOOK.stat().st_size < 60_000
    for cell in cells:
        assert cell["metadata"] == {} and len(cell["source"]) < 40
        assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == ([], None)
    assert not re.search(r"""["'(\s](/|~/|[A-Z]:\\)\w""", "".join("".join(cell["source"]) for cell in cells))


def test_the_links_of_the_notebook_lead_to_documents(cells):
    links = re.findall(r"\]\(([^)#]+)(#[^)]+)?\)", "".join("".join(cell["source"]) for cell in cells))
    assert links
    for name, section in links:
        text = (NOTEBOOK.parent / name).read_text()
        titles = {re.sub(r"[^a-z0-9 ]", "", t.lower()).replace(" ", "-") for t in re.findall(r"^#+ (.+)$", text, re.M)}
        assert not section or section[1:] in titles


def test_each_code_cell_is_python_and_each_command_parses(code):
    calls = [node for cell in code for node in ast.walk(ast.parse(cell)) if isinstance(node, ast.Call)]
    commands = [node.args[0].value for node in calls if isinstance(node.func, ast.Name) and node.func.id == "run"]
    scripts = []
    for script, *words in map(shlex.split, commands):
        PARSERS[script](words)
        scripts.append(script)
    assert scripts == [*PARSERS]


def test_the_first_cell_installs_only_where_the_project_is_missing(code, tmp_path, monkeypatch):
    commands, find_spec = [], importlib.util.find_spec

    def run(command, check):
        commands.append(command)
        if command[0] == "git":
            (tmp_path / command[-1]).mkdir()
            (tmp_path / command[-1] / "pipeline_dreampose.py").touch()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", run)
    exec(code[0], {})
    assert not commands and os.path.samefile(".", ROOT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    clone = tmp_path / "dreampose" / "pipeline_dreampose.py"
    spec = importlib.util.spec_from_file_location("pipeline_dreampose", clone)
    is_found = lambda: str(clone.parent) in sys.path  # noqa: E731
    found = lambda name: (spec if is_found() else None) if name == spec.name else find_spec(name)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", found)
    exec(code[0], {})
    (clone_command, install) = commands
    assert clone_command[:2] == ["git", "clone"] and install[1:4] == ["-m", "pip", "install"]
    assert os.path.samefile(".", clone.parent)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The folder with what the notebook shows, run in a copy of the files that it needs, and its videos."""
    clone, shown = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("shown")
    for name in ("animate.py", "pipeline_dreampose.py"):
        shutil.copy(ROOT / name, clone)
    for name in ("training", "model_card/tiny", "model_card/sample"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    environment = os.environ | ON_CPU | {"PYTHONPATH": str(clone), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUNNER, str(NOTEBOOK), str(shown)]
    done = subprocess.run(command, cwd=shown, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-5000:]
    assert (clone / "demo" / "notebook" / "subject" / "pytorch_lora_weights.safetensors").is_file()
    with np.load(shown / "videos.npz") as videos:
        return shown, {name: values.astype(float) for name, values in videos.items()}


@pytest.mark.slow
def test_the_notebook_shows_videos_of_the_right_length_and_size(executed):
    folder, videos = executed
    pictures = {name: Image.open(folder / f"{number}.png") for number, name in enumerate(SHOWN)}
    assert len([*folder.glob("*.png")]) == len(SHOWN)
    for name, num_frames in (("sample", 16), ("subject", 32)):
        assert (pictures[name].format, pictures[name].size) == ("GIF", (256, 320))
        assert pictures[name].n_frames == num_frames
    for name, num_frames in {"frames": 16, "as filmed": 16, "aligned": 16, "before": 32, "after": 32}.items():
        assert videos[name].shape == (num_frames, 160, 128, 3)


@pytest.mark.slow
def test_aligned_poses_and_the_subjects_training_come_nearer_to_the_right_answer(executed):
    _, videos = executed

    def difference(name, truth, frames=slice(None)):
        return np.abs(videos[name] - videos[truth])[frames].mean()

    assert difference("aligned", "truth") < difference("as filmed", "truth") / 2
    of_photos = videos["chosen"].astype(int)
    others = np.setdiff1d(np.arange(32), of_photos)
    for frames in (of_photos, others):
        assert difference("after", "true_clip", frames) < difference("before", "true_clip", frames)
