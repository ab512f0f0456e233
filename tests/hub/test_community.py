"""The file for diffusers' `examples/community`: the same frames by less code."""

import ast
import importlib.util
import json
import subprocess
import sys

import pytest
import torch
from diffusers import DiffusionPipeline

from tests.launch import ROOT
from tests.tiny_components import NUM_FRAMES, get_dummy_components, get_dummy_image, get_dummy_iuv, get_dummy_pipeline
from training.hub.community import community_file, write_community_file


PLUG_IN = (ROOT / "pipeline_dreampose.py").read_text()
POSES = [get_dummy_iuv(i) for i in range(NUM_FRAMES)]
# Loads a folder with the file as its custom pipeline, and samples.
LOAD = """
import sys
import torch
from diffusers import DiffusionPipeline
from tests.tiny_components import NUM_FRAMES, get_dummy_image, get_dummy_iuv
folder, file, output = sys.argv[1:]
pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=file, trust_remote_code=True)
assert not hasattr(pipe, "load_lora_weights"), "the community file runs"
poses = [get_dummy_iuv(i) for i in range(NUM_FRAMES)]
frames = pipe(get_dummy_image(), poses, generator=torch.Generator().manual_seed(0), output_type="pt").frames
torch.save(frames, output)
"""


@pytest.fixture
def community(tmp_path):
    """The file as a module."""
    write_community_file(ROOT / "pipeline_dreampose.py", tmp_path)
    spec = importlib.util.spec_from_file_location("dreampose_community", tmp_path / "dreampose.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their annotations
    yield spec.loader.exec_module(module) or module
    del sys.modules[spec.name]


def sample(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe(get_dummy_image(), POSES, generator=torch.Generator().manual_seed(0), output_type="pt").frames


def test_it_samples_the_same_frames_and_streams(community):
    pipe = get_dummy_pipeline()
    defaults = {name: value for name, value in pipe.config.items() if name.startswith("default_")}
    other = community.DreamPosePipeline(**pipe.components, **defaults)
    expected = sample(pipe)
    assert torch.equal(sample(other), expected)
    generator = torch.Generator().manual_seed(0)
    streamed = torch.stack(list(other.stream(get_dummy_image(), POSES, generator=generator, output_type="pt")))
    assert torch.equal(streamed, expected[0])


def test_its_adapter_is_the_plug_in_s(community):
    components = get_dummy_components()
    adapter = community.DreamPoseAdapter(**{k: v for k, v in components["adapter"].config.items() if k[0] != "_"})
    adapter.load_state_dict(components["adapter"].state_dict())
    embeds = torch.rand(1, adapter.config.num_image_tokens, adapter.config.image_embed_dim)
    latents = torch.rand(1, 4, 16, 12)
    assert torch.equal(adapter(embeds, latents), components["adapter"](embeds, latents))


def test_saving_and_subjects_are_diffusers_own(community):
    text = community_file(PLUG_IN)
    assert len(text.splitlines()) < 1000 and "lora" not in text.lower() and "examples/community" not in text
    own = {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)}
    assert not own & {"save_config", "save_pretrained", "to_json_file", "_dict_from_json_file", "load_config"}
    assert community.DreamPosePipeline.save_pretrained is DiffusionPipeline.save_pretrained


@pytest.mark.slow
def test_diffusers_loads_a_saved_folder_with_it(tmp_path):
    pipe = get_dummy_pipeline()
    pipe.save_pretrained(tmp_path / "model")
    # diffusers runs the code of a folder that has some, whatever `custom_pipeline` says.
    (tmp_path / "model" / "pipeline_dreampose.py").unlink()
    index = tmp_path / "model" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "DreamPosePipeline"}))
    write_community_file(ROOT / "pipeline_dreampose.py", tmp_path)
    (tmp_path / "load.py").write_text(LOAD)
    words = [tmp_path / "load.py", tmp_path / "model", tmp_path / "dreampose.py", tmp_path / "frames.pt"]
    environment = {"PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PATH": ""}
    result = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    frames = torch.load(tmp_path / "frames.pt", weights_only=True)
    torch.testing.assert_close(frames, sample(pipe), atol=1e-4, rtol=0)  # another process has other threads


def test_a_plug_in_without_the_texts_to_replace_is_refused():
    with pytest.raises(ValueError, match="`plug_in` must contain this text once, got it 0 times: class DreamPoseAdap"):
        community_file(PLUG_IN.replace("PeftAdapterMixin):", "Other):"))
