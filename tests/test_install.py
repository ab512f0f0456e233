"""A wheel works without the checkout, and a broken torchvision affects only the features that need it."""

import os
import shlex
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
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", *(path.name for path in ROOT.glob("*.py"))):
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
    words += ["--output_dir", tmp_path / "model", "--latent_cache_dir", "none", "--height", 160, "--width", 128]
    command = (python, "-m", "training.train", *words)
    run(*command, cwd=tmp_path, env=environment | {"ACCELERATE_USE_CPU": "true"})
    assert "DreamPose" in (tmp_path / "model" / "README.md").read_text()


BROKEN = {
    # A command -> the last line that it prints if torchvision does not disturb it.
    f"animate.py --model {TINY} --image {SAMPLE}/photo.png --poses {SAMPLE}/poses --num_inference_steps 1"
    " --device cpu --output video.gif": "video.png",
    "training/train.py --train_data /none": "a pipeline's folder or Hub id",
    "training/finetune.py --max_train_steps 1": "`pretrained_model_name_or_path` is missing",
    f"training/evaluation.py --model {TINY} --dataset none": "`dataset` must be",
    "training/convert_original_checkpoint.py --unet none.pth --adapter none.pth --output_dir out": "an existing file",
    "-m benchmarks.claims.guidance --num_clips 0": "`num_clips` must be at least 1",
    "-c 'from diffusers.utils import load_image; from pipeline_dreampose import DreamPosePipeline as P;"
    f' print(P.from_pretrained("{TINY}").name_or_path)\'': str(TINY),
}


@pytest.mark.parametrize(
    "command", BROKEN, ids=lambda command: command.split()[0].strip("-") + command.split()[1][:12]
)
def test_a_broken_torchvision_is_ignored(command, tmp_path):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    metadata = tmp_path / "torchvision-0.27.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.27.0\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "HF_HUB_OFFLINE": "1"}
    script, *words = shlex.split(command)
    script = script if script.startswith("-") else str(ROOT / script)
    process = subprocess.run(
        [sys.executable, script, *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert "Traceback" not in process.stderr
    assert "torchvision is ignored because it does not fit torch" in process.stderr
    assert BROKEN[command] in process.stdout + process.stderr
