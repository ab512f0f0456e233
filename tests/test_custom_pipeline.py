"""Saving and loading: the folder that `save_pretrained` writes carries its own code and gives the same pixels."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig
from PIL import Image

import pipeline_dreampose
from pipeline_dreampose import DreamPoseAdapter, DreamPosePipeline
from tests.tiny_components import get_dummy_inputs, get_dummy_pipeline


SOURCE = Path(pipeline_dreampose.__file__)

# Runs where nothing of the project can be imported and no module is cached: only the folder's own code is there.
FRESH_PROCESS = """
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

torch.set_num_threads({num_threads})
work = Path({work!r})
inputs = {{
    "image": Image.open(work / "photo.png"),
    "pose_maps": [Image.open(path) for path in sorted(work.glob("iuv_*.png"))],
    "output_type": "np",
}}


def run(name, pipe):
    pipe.set_progress_bar_config(disable=True)
    np.save(work / f"{{name}}.npy", pipe(**inputs, generator=torch.Generator().manual_seed(0)).frames)


pipe = DiffusionPipeline.from_pretrained(work / "saved", trust_remote_code=True)
run("folder", pipe)
pipe.save_pretrained(work / "saved_again")
run("folder_again", DiffusionPipeline.from_pretrained(work / "saved_again", trust_remote_code=True))
run("own_class", type(pipe).from_pretrained(work / "saved", trust_remote_code=True))
route = {{"custom_pipeline": str(work / "pipeline_dreampose.py"), "trust_remote_code": True}}
pipe = DiffusionPipeline.from_pretrained(work / "plain", **route, adapter=pipe.adapter)
run("custom_pipeline", pipe)
pipe.save_pretrained(work / "saved_from_plain")
run("saved_from_plain", DiffusionPipeline.from_pretrained(work / "saved_from_plain", trust_remote_code=True))
assert not any(name.split(".")[0] in ("pipeline_dreampose", "tests", "training") for name in sys.modules)
"""
ROUTES = ("folder", "folder_again", "own_class", "custom_pipeline", "saved_from_plain")
FOLDERS = ("saved", "saved_again", "saved_from_plain")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder of saved pipelines and of what a fresh process made of them."""
    work = tmp_path_factory.mktemp("work")
    pipe, inputs = get_dummy_pipeline(), get_dummy_inputs()
    pipe.save_pretrained(work / "saved")
    np.save(work / "here.npy", pipe(**{**inputs, "output_type": "np"}).frames)
    inputs["image"].save(work / "photo.png")
    for i, iuv in enumerate(inputs["pose_maps"]):
        iuv.save(work / f"iuv_{i}.png")
    shutil.copy(SOURCE, work)

    # A folder of somebody else: no code, no adapter, a class that diffusers has
    shutil.copytree(work / "saved", work / "plain", ignore=shutil.ignore_patterns("*.py", "adapter"))
    index = json.loads((work / "plain" / "model_index.json").read_text())
    index["_class_name"] = "StableDiffusionPipeline"
    del index["adapter"]
    (work / "plain" / "model_index.json").write_text(json.dumps(index))

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment.update(HF_HOME=str(work / "empty_cache"), HF_HUB_OFFLINE="1")
    code = FRESH_PROCESS.format(work=str(work), num_threads=torch.get_num_threads())
    process = subprocess.run([sys.executable, "-c", code], cwd=work, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-4000:]
    assert list((work / "empty_cache" / "modules").rglob("dreampose_adapter.py")), "the folder's own code ran"
    return work


@pytest.mark.parametrize("route", ROUTES)
def test_a_fresh_process_gives_the_same_pixels(work, route):
    assert np.array_equal(np.load(work / f"{route}.npy"), np.load(work / "here.npy"))


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_folder_carries_its_code_and_names_nothing_else(work, folder):
    index = json.loads((work / folder / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline_dreampose", "DreamPosePipeline"]
    assert index["adapter"] == ["dreampose_adapter", "DreamPoseAdapter"]
    assert index["feature_extractor"] == ["transformers", "CLIPImageProcessor"]
    assert "diffusers_modules" not in json.dumps(index) and str(work) not in json.dumps(index)
    for copy in ("pipeline_dreampose.py", "adapter/dreampose_adapter.py"):
        assert (work / folder / copy).read_bytes() == SOURCE.read_bytes()
    assert not list((work / folder).rglob("*.bin"))


def test_own_class_asks_no_trust_and_runs_no_second_copy(work):
    pipe = DreamPosePipeline.from_pretrained(work / "saved")
    assert type(pipe) is DreamPosePipeline and type(pipe.adapter) is DreamPoseAdapter
    pipe.set_progress_bar_config(disable=True)
    inputs = {**get_dummy_inputs(), "image": Image.open(work / "photo.png"), "output_type": "np"}
    assert np.array_equal(pipe(**inputs).frames, np.load(work / "here.npy"))
    assert pipe.config.image_range == (-1.0, 1.0) and pipe.config.default_num_inference_steps == 2


def test_settings_are_saved(tmp_path):
    pipe = get_dummy_pipeline(image_range=(0.0, 1.0), pose_range=(-1.0, 1.0), default_pose_guidance_scale=4.5)
    pipe.save_pretrained(tmp_path)
    config = DreamPosePipeline.from_pretrained(tmp_path).config
    assert config.image_range == (0.0, 1.0) and config.pose_range == (-1.0, 1.0)
    assert config.default_pose_guidance_scale == 4.5
    changed = DreamPosePipeline.from_pretrained(tmp_path, default_pose_guidance_scale=2.0).config
    assert changed.default_pose_guidance_scale == 2.0


def test_saving_over_a_loaded_folder(tmp_path):
    get_dummy_pipeline().save_pretrained(tmp_path)
    before = (tmp_path / "model_index.json").read_text()
    DreamPosePipeline.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert (tmp_path / "model_index.json").read_text() == before
    assert (tmp_path / "pipeline_dreampose.py").read_bytes() == SOURCE.read_bytes()


def test_variants_and_half_precision(tmp_path):
    pipe = get_dummy_pipeline().to(torch.float16)
    pipe.save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    loaded = DreamPosePipeline.from_pretrained(tmp_path, variant="fp16", dtype=torch.float16)
    assert {c.dtype for c in loaded.components.values() if isinstance(c, torch.nn.Module)} == {torch.float16}


def test_from_pipe_shares_the_components():
    pipe = get_dummy_pipeline()
    other = DreamPosePipeline.from_pipe(pipe)
    assert other.unet is pipe.unet and other.adapter is pipe.adapter and other.config.default_height == 32


def test_a_foreign_folder_needs_trust(work):
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained(work / "saved")


def test_layers_of_peft_are_not_saved(tmp_path):
    pipe = get_dummy_pipeline()
    pipe.adapter.add_adapter(LoraConfig(r=2, target_modules=["vae_projection"]))
    with pytest.raises(ValueError, match="`save_pretrained` .* PEFT .* `adapter`"):
        pipe.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="`save_directory` must be a folder"):
        get_dummy_pipeline().save_config(tmp_path / "file")
