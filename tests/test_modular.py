"""The Modular Diffusers blocks: the frames of the pipeline, bit for bit, from blocks that also run alone."""

import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import AutoModel, ComponentsManager, ModularPipeline
from diffusers.modular_pipelines import (
    BlockState,
    InputParam,
    ModularPipelineBlocks,
    OutputParam,
    PipelineState,
    components_manager,
)
from diffusers.modular_pipelines.mellon_node_utils import MellonPipelineConfig
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from transformers import CLIPConfig

import modular_dreampose
from modular_dreampose import (
    DreamPoseBlocks,
    DreamPoseGuidance,
    to_modular,
    to_pipeline,
)
from pipeline_dreampose import DreamPosePipeline, align_pose_maps, teacher_digest
from tests.hub_server import Hub
from tests.launch import ROOT
from tests.tiny_components import (
    HEIGHT,
    IMAGE_SIZE,
    LATENT_CHANNELS,
    LATENT_HEIGHT,
    LATENT_WIDTH,
    NUM_FRAMES,
    WIDTH,
    get_dummy_image,
    get_dummy_inputs,
    get_dummy_iuv,
    get_dummy_pipeline,
    save_subject,
)


TINY = ROOT / "model_card" / "tiny"
SCALES = ("image_guidance_scale", "pose_guidance_scale")
ENDS = {"guidance_start": "start", "guidance_stop": "stop"}


def generators(*seeds):
    made = [torch.Generator().manual_seed(seed) for seed in seeds]
    return made[0] if len(made) == 1 else made


def modular_of(pipe, **guidance):
    modular = to_modular(pipe)
    modular.set_progress_bar_config(disable=True)
    modular.update_components(guider=modular.guider.new(**guidance))
    return modular


def both(pipe, seeds=(0,), **arguments):
    """Return the frames of the pipeline, and those of the blocks, of the same call."""
    call = {**get_dummy_inputs(), **arguments}
    frames = pipe(**{**call, "generator": generators(*seeds)}).frames
    guidance = {ENDS.get(name, name): call.pop(name) for name in (*SCALES, *ENDS) if name in call}
    videos = modular_of(pipe, **guidance)(**{**call, "generator": generators(*seeds)}, output="videos")
    return frames, videos


@pytest.fixture(scope="module")
def pipe():
    return get_dummy_pipeline()


def equal(one, other):
    """Return whether two values of a state are the same, tensors to the bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one.cpu(), other.cpu())
    if isinstance(one, torch.Generator):
        return torch.equal(one.get_state(), other.get_state())
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


# Frames


@pytest.mark.parametrize("chunk_size", [2, 8])
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("DDIMScheduler", {}),
        ("DDPMScheduler", {}),
        ("EulerAncestralDiscreteScheduler", {}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        ("PNDMScheduler", {"skip_prk_steps": True}),
        ("HeunDiscreteScheduler", {}),
        ("LCMScheduler", {"original_inference_steps": 20}),
    ],
)
def test_frames_are_those_of_the_pipeline(name, config, chunk_size):
    pipe = get_dummy_pipeline()
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **config)
    frames, videos = both(pipe, chunk_size=chunk_size, num_inference_steps=3)
    assert torch.equal(frames, videos) and frames.shape == (1, NUM_FRAMES, 3, HEIGHT, WIDTH)


@pytest.mark.parametrize("seeds", [(0,), (3, 4)], ids=["one generator", "one per video"])
@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_frames_of_several_subjects(pipe, output_type, seeds):
    photos = [[get_dummy_image(0), get_dummy_image(1), get_dummy_image(5)], get_dummy_image(2)]
    options = {"image": photos, "output_type": output_type, "frame_indices": [4, 0, 2], "chunk_size": 2}
    frames, videos = both(pipe, seeds, **options)
    assert type(frames) is type(videos)
    assert np.array_equal(frames, videos) and np.shape(frames)[:2] == (2, 3)


@pytest.mark.parametrize("shape", [(1,), (NUM_FRAMES,), (2, NUM_FRAMES)])
def test_given_noise_and_a_sequence_per_video(pipe, shape):
    noise = torch.randn(*shape, LATENT_CHANNELS, LATENT_HEIGHT, LATENT_WIDTH, generator=generators(7))
    poses = [[get_dummy_iuv(seed + i) for i in range(NUM_FRAMES)] for seed in (0, 20)]
    arguments = {"image": [get_dummy_image(0), get_dummy_image(1)], "pose_maps": poses, "latents": noise}
    frames, videos = both(pipe, **arguments, chunk_size=3)
    assert torch.equal(frames, videos) and not torch.equal(frames[0], frames[1])


def test_half_precision_also_of_the_unet_alone():
    pipe = get_dummy_pipeline().to(torch.bfloat16)
    frames, videos = both(pipe)
    assert torch.equal(frames, videos)
    encode = pipeline_of(DreamPoseBlocks().sub_blocks["encode"], get_dummy_pipeline())
    encoded = encode(photos=pipe.prepare_image(get_dummy_image(), HEIGHT, WIDTH))
    assert encoded.encoder_hidden_states[0].dtype == torch.float32
    blocks = DreamPoseBlocks()
    blocks.sub_blocks.pop("encode")
    names = ("encoder_hidden_states", "null_hidden_states", "image_latents")
    ready = {name: encoded.get(name) for name in names}
    videos = pipeline_of(blocks, pipe)(**get_dummy_inputs(), **ready, output="videos")
    assert videos.shape == frames.shape and (videos - frames).abs().mean() < 0.02


def test_without_generator_the_global_one_draws(pipe):
    inputs = {name: value for name, value in get_dummy_inputs().items() if name != "generator"}
    torch.manual_seed(5)
    frames = pipe(**inputs).frames
    torch.manual_seed(5)
    assert torch.equal(frames, modular_of(pipe)(**inputs, output="videos"))


def test_frames_of_subjects_and_of_few_steps(tmp_path):
    pipe = get_dummy_pipeline()
    pipe.load_lora_weights(save_subject(tmp_path / "alice", 1), adapter_name="alice")
    frames, videos = both(pipe)
    assert torch.equal(frames, videos)
    settings = {"scheduler": {"_class_name": "DDIMScheduler", "timestep_spacing": "trailing", "clip_sample": False}}
    settings |= {"num_inference_steps": 1, **dict.fromkeys(SCALES, 1.0), "teacher": teacher_digest(pipe.unet)}
    save_subject(tmp_path / "fast", 4, parts=("unet",), few_steps=json.dumps(settings))
    pipe.load_lora_weights(tmp_path / "fast", adapter_name="fast")
    pipe.set_adapters(["alice", "fast"])
    pipe.use_few_steps("fast")
    few, videos = both(pipe)
    assert torch.equal(few, videos) and not torch.equal(few, frames)


def test_the_safety_checker_blackens_frames():
    vision = {"image_size": IMAGE_SIZE, "patch_size": 8, "hidden_size": 16, "intermediate_size": 16}
    vision |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8)).eval()
    checker.concept_embeds_weights.fill_(-2.0)  # flags everything
    pipe = get_dummy_pipeline(safety_checker=checker)
    expected = pipe(**get_dummy_inputs(), chunk_size=2)
    found = modular_of(pipe)(**get_dummy_inputs(), chunk_size=2, output=["videos", "nsfw_content_detected"])
    assert torch.equal(found["videos"], expected.frames) and found["videos"].max() == 0
    assert found["nsfw_content_detected"] == expected.nsfw_content_detected == [[True] * NUM_FRAMES]


def test_poses_are_aligned_to_the_photo_s_body(pipe):
    body = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    body[8:28, 6:18] = [[[10 * y, 12 * x, 1 + (y > 10)] for x in range(12)] for y in range(20)]
    photo_iuv, driver = Image.fromarray(body), Image.fromarray(np.roll(body, (-4, 3), axis=(0, 1)))
    inputs = {**get_dummy_inputs(), "pose_maps": [driver] * 2}
    aligned = modular_of(pipe)(**inputs, photo_iuv=photo_iuv, output="videos")
    inputs["generator"].manual_seed(0)
    frames = pipe(**{**inputs, "pose_maps": align_pose_maps([driver] * 2, photo_iuv)}).frames
    assert torch.equal(aligned, frames)
    inputs["generator"].manual_seed(0)
    assert not torch.equal(aligned, pipe(**inputs).frames)


# Guidance


@pytest.mark.parametrize(
    "guidance",
    [
        {"image_guidance_scale": 1.0, "pose_guidance_scale": 1.0},
        {"image_guidance_scale": 3.0, "pose_guidance_scale": 3.0},
        {"image_guidance_scale": 2.0, "pose_guidance_scale": 0.0},
        {"image_guidance_scale": 0.0, "pose_guidance_scale": 4.0},
        {"guidance_start": 0.3, "guidance_stop": 0.7},
        {"pose_guidance_scale": 5.0, "guidance_stop": 0.5},
    ],
    ids=str,
)
def test_guidance_and_its_cost_are_those_of_the_pipeline(guidance):
    pipe, rows = get_dummy_pipeline(), []
    pipe.unet.register_forward_hook(lambda unet, inputs, output: rows.append(len(inputs[0])))
    frames, videos = both(pipe, **guidance, num_inference_steps=4, chunk_size=2)
    assert torch.equal(frames, videos)
    half = len(rows) // 2
    assert rows[:half] == rows[half:], "a prediction with weight 0 is not computed"


@pytest.mark.parametrize("guidance", [{}, {"guidance_stop": 1.0}, {"guidance_start": 0.3}], ids=str)
def test_the_stored_end_of_guidance_is_that_of_the_pipeline(guidance):
    pipe = get_dummy_pipeline(default_guidance_stop=0.5)
    frames, videos = both(pipe, **guidance, num_inference_steps=4)
    stop = guidance.get("guidance_stop", 0.5)
    expected = get_dummy_pipeline()(**get_dummy_inputs(), **guidance | {"guidance_stop": stop}, num_inference_steps=4)
    assert torch.equal(frames, videos) and torch.equal(frames, expected.frames)


def test_the_guider_combines_predictions_as_the_pipeline_does(pipe):
    guider = DreamPoseGuidance(3.0, 2.0, stop=0.5)
    values = BlockState(null="null states", photo="states", nothing="null pose", pose="windows")
    fields = {"states": ("null", "photo", "photo"), "windows": ("nothing", "nothing", "pose")}
    guider.set_state(step=0, num_inference_steps=2, timestep=None)
    batches = guider.prepare_inputs_from_block_state(values, fields)
    assert [(b.states, b.windows) for b in batches] == [
        ("null states", "null pose"),
        ("states", "null pose"),
        ("states", "windows"),
    ]
    for batch, prediction in zip(batches, (1.0, 10.0, 100.0)):
        batch.noise_pred = torch.tensor(prediction)
    assert guider(batches) == 1 + 3 * (10 - 1) + 2 * (100 - 10)
    guider.set_state(step=1, num_inference_steps=2, timestep=None)  # past the end
    assert guider.num_conditions == 1 and guider.branches() == [(1.0, True, True)]
    assert [b.states for b in guider.prepare_inputs({"states": ("no", "no", "yes")})] == ["yes"]


class HalvedGuidance(DreamPoseGuidance):
    def forward(self, **predictions):
        return super().forward(**predictions) / 2


def test_the_forward_of_a_guider_combines_the_predictions(pipe):
    """A guider of one's own decides the frames: here as if the UNet predicted half of the noise."""
    halved = modular_of(pipe)
    halved.update_components(guider=HalvedGuidance())
    videos = halved(**get_dummy_inputs(), output="videos")
    other = get_dummy_pipeline()
    other.unet.register_forward_hook(lambda unet, inputs, output: (output[0] / 2,))
    frames = other(**get_dummy_inputs()).frames
    assert (videos - frames).abs().max() < 1e-5
    assert (videos - pipe(**get_dummy_inputs()).frames).abs().max() > 1e-3


def test_hooks_that_keep_attention_see_the_same_batch_in_every_step():
    pipe, rows = get_dummy_pipeline(), []
    config = diffusers.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
    )
    diffusers.apply_pyramid_attention_broadcast(pipe.unet, config)
    pipe.unet.register_forward_pre_hook(lambda unet, inputs: rows.append(len(inputs[0])))
    modular_of(pipe)(**get_dummy_inputs(), chunk_size=2)
    assert len(set(rows)) == 1


def test_a_block_looks_for_its_device_once(pipe, monkeypatch):
    looks, find = [], DreamPosePipeline._execution_device.fget
    found = property(lambda self: looks.append(1) or find(self))
    monkeypatch.setattr(DreamPosePipeline, "_execution_device", found)
    modular_of(pipe)(**INPUTS, generator=generators(0))
    assert len(looks) == len(DreamPoseBlocks().sub_blocks)


# Blocks


INPUTS = {"image": [[get_dummy_image(0), get_dummy_image(1)], get_dummy_image(2)], "num_inference_steps": 3}
INPUTS |= {"chunk_size": 2, "output_type": "np", "pose_maps": get_dummy_inputs()["pose_maps"]}


def pipeline_of(block, pipe):
    """Return a modular pipeline of one block, with the components and settings that it asks for."""
    alone = block.init_pipeline()
    components = {name: part for name, part in pipe.components.items() if name in block.component_names}
    components = {name: part for name, part in components.items() if part is not None}
    alone.update_components(**components, **{spec.name: pipe.config[spec.name] for spec in block.expected_configs})
    alone.set_progress_bar_config(disable=True)
    return alone


def test_each_block_runs_alone_with_its_own_components(pipe):
    expected = modular_of(pipe)(**INPUTS, generator=generators(0))
    state, inputs = PipelineState(), {**INPUTS, "generator": generators(0)}
    for name, block in DreamPoseBlocks().sub_blocks.items():
        alone = pipeline_of(block, pipe)
        assert (alone.components.get("unet") is None) == (name != "denoise"), "others must not load the largest model"
        state = alone(state, **{key: value for key, value in inputs.items() if key in block.input_names})
        assert all(state.get(output) is not None for output in block.output_names if "nsfw" not in output), name
    outputs = DreamPoseBlocks().output_names
    assert len(outputs) == 14
    for output in outputs:
        assert equal(state.get(output), expected.get(output)), output


def test_the_encoding_can_be_taken_out_and_replaced(pipe):
    """Photos that were encoded before serve several calls, also through a block that only names them."""
    expected = modular_of(pipe)(**INPUTS, generator=generators(0))
    blocks = DreamPoseBlocks()
    blocks.sub_blocks.pop("photos")
    blocks.sub_blocks.pop("encode")
    modular = pipeline_of(blocks, pipe)
    names = ("encoder_hidden_states", "null_hidden_states", "image_latents")
    assert set(names) <= set(blocks.required_inputs) and "image" not in blocks.input_names
    assert {"image_encoder", "adapter"}.isdisjoint(modular.components)
    ready = {name: expected.get(name) for name in (*names, "batch_size")}
    inputs = {name: value for name, value in INPUTS.items() if name != "image"}
    assert np.array_equal(modular(**inputs, **ready, generator=generators(0), output="videos"), expected.videos)

    class ReadyStep(ModularPipelineBlocks):
        inputs = [InputParam("encoded", required=True)]
        intermediate_outputs = [OutputParam(name) for name in (*names, "batch_size")]

        def __call__(self, components, state):
            for name, value in self.get_block_state(state).encoded.items():
                state.set(name, value)
            return components, state

    blocks.sub_blocks.insert("ready", ReadyStep(), 0)
    modular = pipeline_of(blocks, pipe)
    assert np.array_equal(modular(**inputs, encoded=ready, generator=generators(0), output="videos"), expected.videos)


class Estimator(torch.nn.Module):
    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        """Call the green of a picture's bright half U, its red V, and its part code 1."""
        body = (picture[..., 2:] > 127).to(torch.uint8)
        return torch.cat([picture[..., :2], torch.ones_like(body)], dim=-1) * body


def test_an_estimator_of_poses_can_be_put_in_front(pipe, tmp_path):
    torch.jit.script(Estimator()).save(tmp_path / "densepose.pt")
    pictures = [get_dummy_image(seed) for seed in range(3)]

    class EstimateStep(ModularPipelineBlocks):
        inputs = [InputParam("driving", required=True), InputParam("densepose", required=True)]
        intermediate_outputs = [OutputParam("pose_maps")]

        def __call__(self, components, state):
            values = self.get_block_state(state)
            estimate = torch.jit.load(values.densepose)
            pictures = [torch.from_numpy(np.array(picture)) for picture in values.driving]
            values.pose_maps = [Image.fromarray(estimate(picture).numpy()) for picture in pictures]
            self.set_block_state(state, values)
            return components, state

    blocks = DreamPoseBlocks()
    blocks.sub_blocks.insert("estimate", EstimateStep(), 0)
    assert "pose_maps" not in blocks.input_names
    modular = pipeline_of(blocks, pipe)
    options = {"image": get_dummy_image(), "output_type": "pt"}
    found = modular(driving=pictures, densepose=tmp_path / "densepose.pt", generator=generators(0), **options)
    frames = pipe(pose_maps=found.pose_maps, generator=generators(0), **options).frames
    assert torch.equal(found.videos, frames)
    assert any((np.asarray(iuv)[..., 2] == 1).any() for iuv in found.pose_maps)


def test_a_block_can_be_put_into_the_loop(pipe):
    class RecordStep(ModularPipelineBlocks):
        seen = []

        def __call__(self, components, values, i, t):
            self.seen.append((values.video, i, int(t), len(values.sample)))
            return components, values

    blocks = DreamPoseBlocks()
    blocks.sub_blocks["denoise"].sub_blocks["record"] = RecordStep()
    modular = pipeline_of(blocks, pipe)
    found = modular(**INPUTS, generator=generators(0))
    times = found.timesteps.tolist()
    assert RecordStep.seen == [(b, i, t, 2) for b in range(2) for _ in range(3) for i, t in enumerate(times)]


def test_components_are_shared(pipe):
    modular = modular_of(pipe)
    assert all(getattr(modular, name) is part for name, part in pipe.components.items() if part is not None)
    again = to_pipeline(modular)
    assert all(again.components[name] is part for name, part in pipe.components.items())
    assert {**again.config}.items() <= {**pipe.config}.items()


def test_the_components_manager_offloads(monkeypatch):
    pipe, moved = get_dummy_pipeline(), []
    frames = pipe(**get_dummy_inputs()).frames
    manager = ComponentsManager()
    modular = to_modular(pipe, components_manager=manager, collection="dreampose")
    modular.set_progress_bar_config(disable=True)
    assert len(manager.components) == 6

    def offload_all(hooks, model_id, model, execution_device):
        moved.append(model_id.split("_")[0])
        return list(hooks)

    # A CPU has no such function, and is an accelerator for this test alone.
    monkeypatch.setattr(components_manager.TorchDeviceBackend, "mem_get_info", lambda self: (0, 0))
    manager.enable_auto_cpu_offload(device="cpu", offload_strategy=offload_all)
    assert torch.equal(modular(**get_dummy_inputs(), output="videos"), frames)
    assert set(moved) == {"image", "vae", "adapter", "unet"} and moved[-1] == "vae"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": HEIGHT + 1}, "`height` must be a positive multiple of 4"),
        ({"width": 0}, "`width` must be a positive multiple of 4"),
        ({"image": []}, "`image` must hold at least one photo"),
        ({"pose_maps": torch.zeros(3, 2, 4)}, "`pose_maps` must be floating point with the shape"),
        ({"pose_maps": torch.zeros(3, 2, 2, 4, 4)}, "`pose_maps` must be one sequence, or one per video"),
        ({"pose_maps": None}, "`pose_maps` must be given, under this name, as `control_image` or .*; got None"),
        ({"control_image": [get_dummy_iuv()]}, r"`pose_maps` must be given, .*; got \['pose_maps', 'control_image'\]"),
        ({"frame_indices": [NUM_FRAMES]}, "`frame_indices` must be one or more different integers"),
        ({"photo_iuv": "photo.png"}, "`photo_iuv` must be"),
        ({"num_inference_steps": 0}, "`num_inference_steps` must be a whole number from 1"),
        ({"generator": [None]}, "`generator` must be one, or one per video"),
        ({"latents": torch.zeros(3)}, "`latents` must have one of the shapes"),
        ({"chunk_size": 0}, "`chunk_size` must be a whole number from 1"),
        ({"output_type": "gif"}, "`output_type` must be 'pil', 'np'"),
        ({"image_guidance_scale": -1.0}, "`image_guidance_scale` must be a finite number from 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_inputs_are_refused_before_the_unet_runs(changes, message):
    pipe = get_dummy_pipeline()
    pipe.unet.forward = None
    modular = modular_of(pipe, **{name: changes.pop(name) for name in SCALES if name in changes})
    with pytest.raises(ValueError, match=message):
        modular(**{**INPUTS, **changes})


def test_other_guiders_and_components_that_do_not_fit_are_refused(pipe):
    modular = modular_of(pipe)
    modular.update_components(guider=diffusers.guiders.ClassifierFreeGuidance())
    with pytest.raises(ValueError, match="`guider` must guide by photo and pose"):
        modular(**INPUTS)
    other = modular_of(get_dummy_pipeline())
    other.update_components(adapter=type(pipe.adapter)(image_embed_dim=8))
    with pytest.raises(ValueError, match="`adapter` must fit"):
        other(**INPUTS)


def test_the_documentation_names_every_input_and_output():
    doc = DreamPoseBlocks().doc
    assert "TODO" not in doc and "DreamPose, arXiv:2304.06025" not in doc.split("Components:")[1]
    for param in (*DreamPoseBlocks().inputs, *DreamPoseBlocks().outputs):
        assert f"{param.name} (`" in doc and param.description and param.description.endswith(".")
    assert [param.name for param in DreamPoseBlocks().inputs if param.required] == ["image"]
    for block in DreamPoseBlocks().sub_blocks.values():
        assert block.description == inspect.getdoc(type(block)) and "TODO" not in block.doc


@pytest.mark.parametrize("name", ["control_image", "control_video"])
def test_poses_have_the_names_of_files_too(pipe, name):
    """`diffusers-cli run` loads files under these names."""
    poses = [[get_dummy_iuv(seed + i) for i in range(2)] for seed in (0, 20)]
    inputs = {key: value for key, value in INPUTS.items() if key != "pose_maps"}
    calls = [{**inputs, key: poses, "generator": generators(0)} for key in ("pose_maps", name)]
    videos = [modular_of(pipe)(**call, output="videos") for call in calls]
    assert np.array_equal(*videos) and not np.array_equal(videos[0][0], videos[0][1])


def node_of_the_blocks():
    """Return what the visual editor Mellon draws, and the text of the file that it reads."""
    config = MellonPipelineConfig.from_custom_block(DreamPoseBlocks(), node_label="DreamPose")
    return config.node_params["custom"], config.to_json_string()


def test_the_node_of_the_visual_editor():
    node, text = node_of_the_blocks()
    blocks, params = DreamPoseBlocks(), node["params"]
    assert node["model_input_names"] == [spec.name for spec in blocks.expected_components]
    assert node["input_names"] == blocks.input_names
    outputs = [f"out_{name}" if name in blocks.input_names else name for name in blocks.output_names]
    assert node["output_names"] == [*outputs, "doc"]
    assert params.keys() == {*node["model_input_names"], *node["input_names"], *node["output_names"]}
    kinds = {"image", "control_image", "photo_iuv"}, {"chunk_size"}, {"output_type", "doc"}, {"videos"}
    kinds = {name: kind for kind, names in zip(("image", "int", "string", "video"), kinds) for name in names}
    kinds |= dict.fromkeys(node["model_input_names"], "diffusers_auto_model")
    assert {name: param["type"] for name, param in params.items()} == {**dict.fromkeys(params, "custom"), **kinds}
    for name, param in params.items():
        label = name.removeprefix("out_").replace("_", " ").title()
        assert param["label"] == (f"{label} *" if name == "image" else label)
    assert all(params[name]["display"] == "output" for name in node["output_names"])
    assert text == (TINY / "mellon_pipeline_config.json").read_text(), "run `make tiny-code`"


def test_the_node_runs_with_its_own_defaults(pipe):
    """The editor passes the default of a field that nobody filled in, and `None` of an input without a link."""
    node, _ = node_of_the_blocks()
    fields = {name: node["params"][name].get("default") for name in node["input_names"]}
    outputs = [name.removeprefix("out_") for name in node["output_names"]]
    torch.manual_seed(0)
    given = {"image": get_dummy_image(), "control_image": [get_dummy_iuv()] * 2}
    found = modular_of(pipe)(**fields | given, output=outputs)
    torch.manual_seed(0)
    assert np.array_equal(found["videos"], pipe(get_dummy_image(), [get_dummy_iuv()] * 2).frames)


# Saving and loading

ROUTES = """
import json, shutil, sys
from pathlib import Path
import numpy as np
import torch
from diffusers import DiffusionPipeline, ModularPipeline
from PIL import Image

work, facts, trust = Path({work!r}), {{}}, {{"trust_remote_code": True}}
inputs = {{"image": Image.open(work / "photo.png"), "pose_maps": [Image.open(work / "iuv.png")] * 2}}
inputs["output_type"] = "np"
plain = DiffusionPipeline.from_pretrained
blocks = ModularPipeline.from_pretrained


def run(name, load, *where):
    pipe = load(*where, **trust)
    options = {{"generator": torch.Generator().manual_seed(0)}}
    if load == blocks:
        pipe.load_components()
        np.save(work / f"{{name}}.npy", pipe(**inputs, **options, output="videos"))
    else:
        np.save(work / f"{{name}}.npy", pipe(**inputs, **options).frames)
    return pipe


def refusal(load, where):
    try:
        load(where)
    except ValueError as error:
        return str(error)


facts["untrusted"] = [refusal(load, work / "saved") for load in (plain, blocks)]
modular = run("modular_folder", blocks, work / "saved")
run("plain_folder", plain, work / "saved")
shutil.move(work / "saved", work / "moved")
run("modular_moved", blocks, work / "moved")
modular.save_pretrained(str(work / "again"), overwrite_modular_index=True)
modular.blocks.save_pretrained(work / "again")
run("modular_again", blocks, work / "again")
modular.blocks.save_pretrained(work / "moved", push_to_hub=True, repo_id="someone/dream-1.5")
run("modular_hub", blocks, "someone/dream-1.5")
run("plain_hub", plain, "someone/dream-1.5")
(work / "blocks_only").mkdir()
shutil.copytree(work / "again", work / "blocks_only", dirs_exist_ok=True)
with open(work / "again" / "pipeline_dreampose.py", "a") as file:
    file.write("MARK = 'changed'")
for name in ("moved", "again"):
    blocks(work / name, **trust)
    facts[name] = getattr(sys.modules["dreampose_adapter"], "MARK", None)
assert not any(name.split(".")[0] in ("pipeline_dreampose", "tests") for name in sys.modules)
(work / "facts.json").write_text(json.dumps(facts))
"""
LOADED = ["modular_folder", "plain_folder", "modular_moved", "modular_again", "modular_hub", "plain_hub"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A folder with the frames of every route, and the facts that one fresh process found on them."""
    work, pipe = tmp_path_factory.mktemp("work"), get_dummy_pipeline()
    (work / "empty").mkdir()
    pipe.save_pretrained(work / "saved")
    DreamPoseBlocks().save_pretrained(work / "saved")
    image, iuv = get_dummy_image(), get_dummy_iuv()
    image.save(work / "photo.png")
    iuv.save(work / "iuv.png")
    np.save(work / "here.npy", pipe(image, [iuv] * 2, output_type="np", generator=generators(0)).frames)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with Hub() as hub:
        environment |= hub.environment | {
            "HF_HOME": str(work / "home"),
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
        }
        command = [sys.executable, "-c", ROUTES.format(work=str(work))]
        options = {"cwd": work / "empty", "env": environment, "capture_output": True, "text": True, "timeout": 300}
        process = subprocess.run(command, **options)
        assert process.returncode == 0, process.stderr[-4000:]
        pushed = hub.files("models/someone/dream-1.5")
    return work, json.loads((work / "facts.json").read_text()), pushed, process.stderr


def diffusers_cli(work, *words):
    """Run `diffusers-cli` where the project cannot be imported, and return what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(work / "home_cli"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "diffusers.commands.diffusers_cli", *words, "--trust-remote-code"]
    process = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr[-4000:]
    return process.stdout


@pytest.mark.slow
@pytest.mark.parametrize("route", LOADED)
def test_a_folder_loads_both_ways_with_the_same_frames(loaded, route):
    work = loaded[0]
    assert np.array_equal(np.load(work / f"{route}.npy"), np.load(work / "here.npy"))


@pytest.mark.slow
def test_a_push_names_the_repository_and_trust_is_asked_for(loaded):
    work, facts, pushed, messages = loaded
    assert all("trust_remote_code=True" in message for message in facts["untrusted"])
    index = json.loads(pushed["modular_model_index.json"])
    components = [value[2] for value in index.values() if isinstance(value, list) and len(value) == 3]
    assert {spec["pretrained_model_name_or_path"] for spec in components} == {"someone/dream-1.5", None}
    assert index["adapter"][2]["type_hint"] == ["dreampose_adapter", "DreamPoseAdapter"]
    assert str(work) not in pushed["modular_model_index.json"].decode() + pushed["modular_config.json"].decode()
    assert {"model_index.json", "modular_dreampose.py", "pipeline_dreampose.py"} <= set(pushed)
    assert "pip install pipeline_dreampose" not in messages, "diffusers takes other imports for packages"


@pytest.mark.slow
def test_diffusers_own_command_describes_and_runs_a_folder_of_blocks(loaded):
    work = loaded[0]
    described = diffusers_cli(work, "schema", "-m", "blocks_only")
    assert "DreamPoseBlocks (blocks_only) inputs:" in described
    assert all(f"  {param.name}  (" in described for param in DreamPoseBlocks().inputs)
    inputs = json.dumps({"image": "photo.png", "control_image": ["iuv.png"] * 2})
    options = ("--output-key", "videos", "--output", "out.mp4", "--seed", "0", "--device-map", "cpu")
    diffusers_cli(work, "run", "-m", "blocks_only", "--pipeline-kwargs", inputs, *options)
    pictures = [np.asarray(Image.open(path)) for path in sorted((work / "out-frames").iterdir())]
    assert np.array_equal(pictures, (np.load(work / "here.npy")[0] * 255).round().astype(np.uint8))


@pytest.mark.slow
def test_each_folder_runs_its_own_code(loaded):
    assert loaded[1]["moved"] is None and loaded[1]["again"] == "changed"


def test_the_blocks_add_four_files_to_a_pipeline_s_folder(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    DreamPoseBlocks().save_pretrained(tmp_path)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    new = {str(path.relative_to(tmp_path)) for path in after.keys() - before.keys()}
    assert new == {"modular_config.json", "modular_model_index.json", "modular_dreampose.py"}
    assert before.items() <= after.items()
    assert after[tmp_path / "modular_dreampose.py"] == Path(modular_dreampose.__file__).read_bytes()
    index = json.loads(after[tmp_path / "modular_model_index.json"])
    assert {name: value for name, value in index.items() if name.startswith("default_")} == {
        name: value for name, value in pipe.config.items() if name.startswith("default_")
    }


def test_the_small_model_has_the_blocks_as_they_are_saved(tmp_path):
    shutil.copy(TINY / "model_index.json", tmp_path)
    DreamPoseBlocks().save_pretrained(tmp_path, repo_id="you/dreampose-tiny")
    for name in ("modular_config.json", "modular_model_index.json"):
        assert (TINY / name).read_text() == (tmp_path / name).read_text(), "run `make tiny-code`"


@pytest.mark.slow
def test_the_small_model_loads_both_ways():
    """Each loader takes the weights from the folder, whatever repository its index names."""
    pipe = DreamPosePipeline.from_pretrained(TINY)
    modular = ModularPipeline.from_pretrained(TINY, trust_remote_code=True)
    modular.load_components()
    for loaded in (pipe, modular):
        loaded.set_progress_bar_config(disable=True)
    inputs = {"image": get_dummy_image(), "pose_maps": [get_dummy_iuv()], "output_type": "pt"}
    frames = pipe(**inputs, generator=generators(0)).frames
    assert torch.equal(frames, modular(**inputs, generator=generators(0), output="videos"))


def test_the_class_of_the_feature_extractor_is_saved_without_its_backend(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    DreamPoseBlocks().save_pretrained(tmp_path)
    index = json.loads((tmp_path / "modular_model_index.json").read_text())
    assert index["feature_extractor"][2]["type_hint"] == ["transformers", "CLIPImageProcessor"]


def test_blocks_without_a_pipeline_are_saved_without_an_index(tmp_path):
    DreamPoseBlocks().save_pretrained(tmp_path / "new")
    names = ["modular_config.json", "modular_dreampose.py", "pipeline_dreampose.py"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == names
    config = json.loads((tmp_path / "new" / "modular_config.json").read_text())
    assert config["auto_map"] == {"ModularPipelineBlocks": "modular_dreampose.DreamPoseBlocks"}


def test_changed_blocks_and_pushes_without_a_name_are_refused(tmp_path):
    blocks = DreamPoseBlocks()
    with pytest.raises(ValueError, match="`repo_id` must be given to push"):
        blocks.save_pretrained(tmp_path / "new", push_to_hub=True)
    blocks.sub_blocks.pop("poses")
    with pytest.raises(ValueError, match="other blocks must be saved from the file of their own"):
        blocks.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_diffusers_lacks_is_still_lacking(pipe, tmp_path):
    """If this fails, the name `dreampose_adapter` in `sys.modules`, or the index that we write, can go."""
    pipe.save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="attribute name must be string, not 'list'"):
        ModularPipeline.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter" / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "dreampose_adapter.DreamPoseAdapter"}
    (tmp_path / "adapter" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="does not appear to have any custom code"):
        AutoModel.from_pretrained(tmp_path, subfolder="adapter", trust_remote_code=True)


POSES = [get_dummy_iuv(i) for i in range(NUM_FRAMES)]


def test_other_timesteps_than_the_scheduler_sets_are_refused(pipe):
    blocks = DreamPoseBlocks()
    blocks.sub_blocks.pop("set_timesteps")
    run = pipeline_of(blocks, pipe)
    given = {"image": get_dummy_image(), "pose_maps": POSES, "num_inference_steps": 2}
    own = pipe.set_timesteps(2, torch.device("cpu"))
    frames = run(**given, timesteps=own, generator=generators(0), output="videos")
    assert len(frames[0]) == len(POSES)
    for timesteps in (own[1:], own - 1):
        with pytest.raises(ValueError, match="`timesteps` must be those that the scheduler sets for `num_inf"):
            run(**given, timesteps=timesteps)


def test_blocks_alone_refuse_what_does_not_fit(pipe):
    blocks = DreamPoseBlocks()
    photos = pipe.prepare_image([get_dummy_image()] * 2, 32, 24)
    encoded = pipeline_of(blocks.sub_blocks["encode"], pipe)(photos=photos)
    for name in ("photos", "encode"):
        blocks.sub_blocks.pop(name)
    made = {name: encoded.get(name) for name in ("encoder_hidden_states", "null_hidden_states", "image_latents")}
    with pytest.raises(ValueError, match="`fitted_pose_maps` must have an entry for each of the 2 videos; got 1"):
        pipeline_of(blocks, pipe)(pose_maps=POSES, **made)
    made["image_latents"] = [latents[..., :-4] for latents in made["image_latents"]]
    with pytest.raises(ValueError, match="`fitted_pose_maps` must have the size of `image_latents`"):
        pipeline_of(blocks, pipe)(pose_maps=POSES, batch_size=2, **made)
    with pytest.raises(ValueError, match="`latents` must be tensors of finite numbers with 5 axes"):
        pipeline_of(DreamPoseBlocks().sub_blocks["decode"], pipe)(latents=torch.full((1, 1, 4, 16, 12), torch.nan))


def test_components_that_were_not_loaded_are_named():
    modular = DreamPoseBlocks().init_pipeline()
    with pytest.raises(ValueError, match=r"`\w+` must be loaded: call `load_components\(\)`"):
        modular(image=get_dummy_image(), pose_maps=POSES)


def test_changed_loops_and_orders_are_not_saved_as_the_blocks_of_this_file(tmp_path):
    changed, moved = DreamPoseBlocks(), DreamPoseBlocks()
    changed.sub_blocks["denoise"].sub_blocks.pop("step")
    moved.sub_blocks["check"] = moved.sub_blocks.pop("check")
    for blocks in (changed, moved):
        with pytest.raises(ValueError, match="`save_directory` is for the blocks of this file"):
            blocks.save_pretrained(tmp_path)
