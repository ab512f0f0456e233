"""A wheel works without the checkout, and a broken torchvision hurts nothing but what needs it."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv

import pytest

from tests.launch import ROOT


pytestmark = pytest.mark.slow

TINY, SAMPLE = ROOT / "model_card" / "tiny", ROOT / "model_card" / "sample"


def run(*words, **more):
    process = subprocess.run([*map(str, words)], capture_output=True, text=True, **more)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """An environment with the project's wheel; its dependencies come from the environment of the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    source, site = folder / "source", folder / "site"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "pipeline_dreampose.py", "animate.py"):
        shutil.copy(ROOT / name, source)
    for name in ("training", "model_card"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "tiny", "sample"))
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    (wheel,) = folder.glob("*.whl")
    run(*pip, "install", "--no-deps", "--target", site, wheel)
    venv.create(folder / "venv", with_pip=False)
    # A folder on this path is searched, but its `.pth` files are not read: the checkout stays unknown.
    path = os.pathsep.join([str(site), sysconfig.get_path("purelib")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return folder / "venv" / "bin" / "python", environment, site


def test_a_wheel_animates_the_sample_from_another_folder(installed, tmp_path):
    python, environment, site = installed
    here = {"cwd": tmp_path, "env": environment}
    assert run(python, "-c", "import training; print(training.__file__)", **here).startswith(str(site))
    words = ["--model", TINY, "--image", SAMPLE / "photo.png", "--poses", SAMPLE / "poses", "--output", "video.gif"]
    said = run(python, "-m", "animate", *words, "--num_inference_steps", "1", "--device", "cpu", **here)
    assert "32 frames" in said and (tmp_path / "video.gif").is_file()


def test_a_wheel_has_the_presets_and_the_card_templates(installed, tmp_path):
    python, environment, _ = installed
    words = ["--preset", "tiny", "--pretrained_model_name_or_path", TINY, "--max_train_steps", "0"]
    words += ["--output_dir", tmp_path / "model", "--latent_cache_dir", "none"]
    command = (python, "-m", "training.train", *words)
    run(*command, cwd=tmp_path, env=environment | {"ACCELERATE_USE_CPU": "true"})
    assert "DreamPose" in (tmp_path / "model" / "README.md").read_text()


def test_a_broken_torchvision_is_ignored(tmp_path):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    words = ["--model", TINY, "--image", SAMPLE / "photo.png", "--poses", SAMPLE / "poses", "--device", "cpu"]
    words += ["--num_inference_steps", "1", "--output", tmp_path / "video.gif"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, ROOT / "animate.py", *map(str, words)], capture_output=True, text=True, env=environment
    )
    assert process.returncode == 0 and "Traceback" not in process.stderr
    assert "torchvision is ignored because it does not fit torch" in process.stderr
