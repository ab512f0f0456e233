"""Few-step LoRAs: their scheduler, steps and scales are kept, used, put back, and saved with fused weights."""

import json
import logging
from unittest import mock

import diffusers
import pytest
import torch

from pipeline_dreampose import DreamPosePipeline, teacher_digest
from tests.tiny_components import get_dummy_inputs, get_dummy_pipeline, get_unet, save_subject


LCM = {"_class_name": "LCMScheduler", "original_inference_steps": 20, "beta_schedule": "scaled_linear"}
DDIM = {"_class_name": "DDIMScheduler", "timestep_spacing": "trailing", "clip_sample": False}
DEFAULTS = [f"default_{name}" for name in ("num_inference_steps", "image_guidance_scale", "pose_guidance_scale")]


def settings_of(pipe, **changes):
    settings = {"scheduler": DDIM, "num_inference_steps": 1, "image_guidance_scale": 1.0, "pose_guidance_scale": 1.0}
    return {**settings, "teacher": teacher_digest(pipe.unet), **changes}


def write_fast(folder, seed=4, **changes):
    settings = settings_of(get_dummy_pipeline(), **changes)
    return save_subject(folder, seed, parts=("unet", "adapter"), few_steps=json.dumps(settings))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loras")
    write_fast(folder / "fast")
    write_fast(folder / "fast_lcm", 5, scheduler=LCM, num_inference_steps=2, pose_guidance_scale=1.5)
    save_subject(folder / "alice", 1)
    return folder


@pytest.fixture
def warnings_of_pipeline(caplog):
    logger = diffusers.utils.logging.get_logger("pipeline_dreampose")
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.WARNING, logger.name):
        yield caplog
    logger.removeHandler(caplog.handler)


def render(pipe, **arguments):
    return pipe(**get_dummy_inputs(), **arguments).frames


def defaults_of(pipe):
    return [pipe.config[name] for name in DEFAULTS]


def load(folders, *names):
    pipe = get_dummy_pipeline()
    for name in names:
        pipe.load_lora_weights(folders / name, adapter_name=name)
    return pipe


def test_few_steps_are_those_of_the_file_and_are_put_back_exactly(folders):
    pipe = load(folders, "fast")
    scheduler, before = pipe.scheduler, defaults_of(pipe)
    many = render(pipe)
    pipe.use_few_steps()  # "fast" is the usual name
    assert type(pipe.scheduler) is diffusers.DDIMScheduler and pipe.scheduler is not scheduler
    assert pipe.scheduler.config.timestep_spacing == "trailing" and defaults_of(pipe) == [1, 1.0, 1.0]
    few, chosen = render(pipe), render(pipe, num_inference_steps=2, image_guidance_scale=2.0)
    by_hand = load(folders, "fast")
    by_hand.scheduler = diffusers.DDIMScheduler.from_config(DDIM)
    scales = {"image_guidance_scale": 1.0, "pose_guidance_scale": 1.0}
    assert torch.equal(few, render(by_hand, num_inference_steps=1, **scales))
    assert not torch.equal(chosen, few), "arguments of a call still count"
    pipe.use_full_steps()
    assert pipe.scheduler is scheduler and defaults_of(pipe) == before and torch.equal(render(pipe), many)
    pipe.use_full_steps()  # again: nothing to undo
    assert pipe.scheduler is scheduler and defaults_of(pipe) == before


def test_one_forward_pass_makes_a_frame(folders):
    pipe = load(folders, "fast")
    pipe.use_few_steps("fast")
    rows = []
    hook = pipe.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    frames = render(pipe)
    hook.remove()
    assert sum(rows) == frames.shape[1]


def test_few_steps_activate_their_lora_next_to_those_that_are_active(folders, warnings_of_pipeline):
    both = load(folders, "fast", "alice")
    both.set_adapters(["fast", "alice"], [1.0, 0.5])
    both.use_few_steps("fast")
    expected = render(both)
    pipe = load(folders, "fast", "alice")  # which is active alone, as the last one loaded
    pipe.set_adapters("alice", 0.5)
    many = render(pipe)
    pipe.use_few_steps("fast")
    few = render(pipe)
    by_hand = load(folders, "alice")
    by_hand.set_adapters("alice", 0.5)
    by_hand.scheduler = diffusers.DDIMScheduler.from_config(DDIM)
    scales = {"image_guidance_scale": 1.0, "pose_guidance_scale": 1.0}
    alone = render(by_hand, num_inference_steps=1, **scales)
    assert set(pipe.get_active_adapters()) == {"fast", "alice"}
    assert not torch.allclose(few, alone, atol=1e-3)
    torch.testing.assert_close(few, expected, atol=1e-6, rtol=0)
    pipe.set_adapters("alice", 0.5)
    pipe.use_full_steps()
    assert torch.equal(render(pipe), many)
    assert not warnings_of_pipeline.records


def test_few_steps_enable_their_lora_alone_if_all_were_disabled(folders):
    pipe = load(folders, "alice", "fast")
    pipe.use_few_steps("fast")
    expected = load(folders, "fast")
    expected.use_few_steps("fast")
    pipe.disable_lora()
    pipe.use_few_steps("fast")
    assert torch.equal(render(pipe), render(expected))


@pytest.mark.parametrize("detach", ["set_adapters", "disable_lora", "load_lora_weights"])
def test_few_steps_without_their_lora_are_one_warning_for_each_call(folders, warnings_of_pipeline, detach):
    pipe = load(folders, "fast")
    pipe.use_few_steps("fast")
    few = render(pipe)
    assert not warnings_of_pipeline.records
    if detach != "disable_lora":
        pipe.load_lora_weights(folders / "alice", adapter_name="alice")
    if detach == "set_adapters":
        pipe.set_adapters("alice")
    if detach == "disable_lora":
        pipe.disable_lora()
    assert not torch.equal(render(pipe), few)
    assert len(list(pipe.stream(**get_dummy_inputs()))) == few.shape[1]
    assert set(warnings_of_pipeline.messages) == {"The few steps need their LoRA 'fast', which is not active."}
    assert len(set(map(id, warnings_of_pipeline.records))) == 2


def test_few_steps_of_a_fused_lora_are_no_warning(folders, warnings_of_pipeline):
    pipe = load(folders, "fast")
    pipe.use_few_steps("fast")
    few = render(pipe)
    pipe.fuse_lora()
    pipe.use_few_steps("fast")
    assert all(layer.merged for layer in pipe._lora_layers())
    torch.testing.assert_close(render(pipe), few, atol=1e-4, rtol=0)
    assert not warnings_of_pipeline.records


def test_a_scheduler_set_during_few_steps_stays(folders):
    pipe = load(folders, "fast", "fast_lcm")
    before = defaults_of(pipe)
    pipe.use_few_steps("fast")
    pipe.scheduler = mine = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.use_few_steps("fast_lcm")
    assert type(pipe.scheduler) is diffusers.LCMScheduler
    pipe.unload_lora_weights()
    assert pipe.scheduler is mine and defaults_of(pipe) == before


def test_the_scheduler_of_a_stream_must_stay(folders):
    pipe = load(folders, "fast")
    pipe.use_few_steps("fast")
    frames = pipe.stream(**get_dummy_inputs(), chunk_size=2)
    next(frames), next(frames)
    pipe.use_full_steps()
    with pytest.raises(ValueError, match="`scheduler` must stay the same until the last frame; got another"):
        next(frames)
    render(pipe)  # it is free again


def test_two_few_step_loras_put_the_first_state_back(folders):
    pipe = load(folders, "fast", "fast_lcm")
    scheduler, before = pipe.scheduler, defaults_of(pipe)
    pipe.use_few_steps("fast")
    pipe.use_few_steps("fast_lcm")
    assert type(pipe.scheduler) is diffusers.LCMScheduler and defaults_of(pipe) == [2, 1.0, 1.5]
    pipe.delete_adapters("fast")  # not in use
    assert type(pipe.scheduler) is diffusers.LCMScheduler and defaults_of(pipe) == [2, 1.0, 1.5]
    pipe.delete_adapters(["fast_lcm"])
    assert pipe.scheduler is scheduler and defaults_of(pipe) == before


def test_unloading_puts_the_full_steps_back(folders):
    plain = render(get_dummy_pipeline())
    pipe = load(folders, "fast")
    pipe.use_few_steps("fast")
    pipe.unload_lora_weights()
    assert torch.equal(render(pipe), plain)
    with pytest.raises(ValueError, match=r"`adapter_name` must name an attached LoRA .* among \[\]; got 'fast'"):
        pipe.use_few_steps("fast")


def test_a_subject_and_few_steps_together(folders):
    pipe = load(folders, "fast", "alice")
    pipe.use_few_steps("fast")
    pipe.set_adapters(["fast", "alice"])
    both = render(pipe)
    pipe.set_adapters("fast")
    assert not torch.allclose(render(pipe), both, atol=1e-3)
    pipe.set_adapters(["fast", "alice"])
    pipe.fuse_lora()
    torch.testing.assert_close(render(pipe), both, atol=1e-4, rtol=0)


def test_a_fused_pipeline_is_saved_with_its_few_steps(folders, tmp_path):
    pipe = load(folders, "fast")
    pipe.use_few_steps("fast")
    attached = render(pipe)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    fused = render(pipe)
    torch.testing.assert_close(fused, attached, atol=1e-4, rtol=0)
    pipe.use_full_steps()  # nothing to go back to: the few steps are the pipeline's own
    assert defaults_of(pipe) == [1, 1.0, 1.0]
    pipe.save_pretrained(tmp_path)
    loaded = DreamPosePipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.scheduler) is diffusers.DDIMScheduler and defaults_of(loaded) == [1, 1.0, 1.0]
    assert torch.equal(render(loaded), fused)


def test_unfusing_before_unloading_puts_the_full_steps_back(folders):
    pipe = load(folders, "fast")
    before = defaults_of(pipe)
    pipe.use_few_steps("fast")
    pipe.fuse_lora()
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert defaults_of(pipe) == before


def test_a_hotswap_ends_the_few_steps_of_the_lora_that_it_replaces(folders, tmp_path):
    pipe = load(folders, "fast")
    before = defaults_of(pipe)
    pipe.use_few_steps("fast")
    pipe.load_lora_weights(folders / "fast_lcm", adapter_name="fast", hotswap=True)
    assert defaults_of(pipe) == before
    pipe.use_few_steps("fast")
    assert defaults_of(pipe) == [2, 1.0, 1.5]
    plain = save_subject(tmp_path, 7, parts=("unet", "adapter"))
    pipe.load_lora_weights(plain, adapter_name="fast", hotswap=True)
    with pytest.raises(ValueError, match="`adapter_name` must name an attached LoRA"):
        pipe.use_few_steps("fast")
    assert defaults_of(pipe) == before


@pytest.mark.parametrize("name", ["alice", "nobody", None, 5, ["fast"], b"fast"])
def test_a_lora_without_few_steps_is_refused(folders, name):
    pipe = load(folders, "fast", "alice")
    scheduler, before = pipe.scheduler, defaults_of(pipe)
    message = r"`adapter_name` must name an attached LoRA with `dreampose.few_steps` .* among \['fast'\]; got"
    with pytest.raises(ValueError, match=message):
        pipe.use_few_steps(name)
    assert pipe.scheduler is scheduler and defaults_of(pipe) == before


def test_pipelines_that_share_the_models_know_the_few_steps(folders):
    pipe = load(folders, "fast")
    other = DreamPosePipeline.from_pipe(pipe)
    other.use_few_steps("fast")
    assert defaults_of(other) == [1, 1.0, 1.0] and defaults_of(pipe) != [1, 1.0, 1.0]
    pipe.use_few_steps("fast")
    assert pipe.scheduler is not other.scheduler, "a scheduler serves one call at a time"
    own = DreamPosePipeline.from_pipe(pipe)  # for which the few steps are its own
    own.use_full_steps()
    assert defaults_of(own) == [1, 1.0, 1.0] and own.scheduler is pipe.scheduler


def test_compiled_models(folders):
    expected = load(folders, "fast")
    expected.use_few_steps("fast")
    pipe = get_dummy_pipeline()
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    with torch.compiler.set_stance("force_eager"):
        pipe.load_lora_weights(folders / "fast", adapter_name="fast")
        pipe.use_few_steps("fast")
        assert torch.equal(render(pipe), render(expected))
        pipe.unload_lora_weights()
    assert defaults_of(pipe) == defaults_of(get_dummy_pipeline())


# The teacher


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_digest_of_a_teacher_is_the_same_in_every_precision(dtype):
    unet = get_unet()
    digest = teacher_digest(unet)
    assert len(digest) == 16 and int(digest, 16) >= 0
    assert teacher_digest(unet.to(dtype)) == digest
    assert teacher_digest(unet.to(memory_format=torch.channels_last)) == digest
    assert teacher_digest(get_dummy_pipeline(seed=1).unet) != teacher_digest(get_dummy_pipeline().unet)


def test_a_lora_of_another_teacher_is_one_warning(folders, warnings_of_pipeline):
    pipe = load(folders, "alice", "fast")  # alice wraps the layer whose weights are compared
    assert hasattr(pipe.unet.conv_in, "base_layer") and not warnings_of_pipeline.records
    other = get_dummy_pipeline(seed=1)
    other.load_lora_weights(folders / "fast", adapter_name="fast")
    (message,) = set(warnings_of_pipeline.messages)
    assert "distilled from another teacher" in message
    other.use_few_steps("fast")  # still possible


# Damaged and hostile metadata


def hostile_settings():
    good = settings_of(get_dummy_pipeline())
    yield from (5, None, [], {}, "", "{", "[1]", "null", '"text"', "[" * 100_000, "1" * 20_000, "9" * 5000)
    for name in good:
        yield json.dumps({key: value for key, value in good.items() if key != name})
    for changes in (
        {"num_inference_steps": 0},
        {"num_inference_steps": 2.5},
        {"num_inference_steps": "1"},
        {"num_inference_steps": 10**9},
        {"image_guidance_scale": -1},
        {"image_guidance_scale": float("nan")},
        {"pose_guidance_scale": 10**400},
        {"pose_guidance_scale": None},
        {"teacher": "0"},
        {"teacher": "g" * 16},
        {"teacher": 5},
    ):
        yield json.dumps({**good, **changes})
    for scheduler in (
        None,
        [],
        "DDIMScheduler",
        {},
        {"_class_name": None},
        {"_class_name": "os.system"},
        {"_class_name": "StableDiffusionPipeline"},
        {"_class_name": "UNet2DConditionModel"},
        {"_class_name": "SchedulerMixin"},
        {"_class_name": "utils"},
        {"_class_name": ["pipeline_dreampose", "DreamPosePipeline"]},
        {"_class_name": "EDMEulerScheduler"},
        {"_class_name": "EDMEulerScheduler", "num_train_timesteps": 1e8},
        {"_class_name": "FlowMatchEulerDiscreteScheduler"},
        {**DDIM, "num_train_timesteps": 10**12},
        {**DDIM, "num_train_timesteps": 1e8, "trained_betas": [0.1, 0.2]},
        {**DDIM, "num_train_timesteps": 1000.0},
        {**DDIM, "num_train_timesteps": True},
        {**DDIM, "num_train_timesteps": 0},
        {**DDIM, "num_train_timesteps": -5},
        {**DDIM, "num_train_timesteps": "1000"},
        {**DDIM, "beta_schedule": "none"},
        {**DDIM, "beta_start": float("nan")},
        {**DDIM, "beta_start": 1e5},
        {**DDIM, "beta_start": float("-inf")},
        {**DDIM, "trained_betas": [0.1, [1e9]]},
        {**DDIM, "trained_betas": {"0": -1e9}},
        {**DDIM, "prediction_type": 3},
        {**DDIM, "trained_betas": [[1]]},
        {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 10**9},
        {"_class_name": "LCMScheduler", "original_inference_steps": 10**9},
    ):
        yield json.dumps({**good, "scheduler": scheduler})


@pytest.mark.parametrize(
    "scheduler",
    [
        {"_class_name": "EDMEulerScheduler", "num_train_timesteps": 100},
        {"_class_name": "EDMEulerScheduler", "num_train_timesteps": 1e8},
        {**DDIM, "num_train_timesteps": 1e8, "trained_betas": [0.1, 0.2]},
        {**DDIM, "beta_start": -1e5},
    ],
)
def test_no_scheduler_is_made_that_would_be_refused_or_big(scheduler):
    pipe = get_dummy_pipeline()
    scheduler_class = getattr(diffusers, scheduler["_class_name"])
    text = json.dumps(settings_of(pipe, scheduler=scheduler))
    with mock.patch.object(scheduler_class, "from_config") as made, pytest.raises(ValueError, match="`metadata`"):
        pipe._read_few_steps({"dreampose.few_steps": text})
    assert not made.called


@pytest.fixture(scope="module")
def used(folders):
    pipe = load(folders, "fast")
    pipe.use_few_steps("fast")
    return pipe, render(pipe)


@pytest.mark.parametrize("text", list(hostile_settings()), ids=lambda text: str(text)[:40])
def test_hostile_settings_are_one_error_and_change_nothing(folders, used, text):
    if text is None:
        text = [None]
    pipe, before = used
    scheduler = pipe.scheduler
    weights, metadata = DreamPosePipeline.lora_state_dict(folders / "fast", return_lora_metadata=True)
    metadata["dreampose.few_steps"] = text
    for name, hotswap in (("other", False), ("fast", True)):
        with pytest.raises(ValueError, match="`metadata` of a LoRA must have .* `dreampose.few_steps`; got") as error:
            pipe.load_lora_weights(weights, adapter_name=name, hotswap=hotswap, metadata=metadata)
        assert len(str(error.value)) < 500
    assert pipe.get_list_adapters() == {"unet": ["fast"], "adapter": ["fast"]} and pipe.scheduler is scheduler
    assert torch.equal(render(pipe), before)
