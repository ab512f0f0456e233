"""`animate.py` with few-step LoRAs: the model's own, one of somebody else, and together with a subject."""

import shutil

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import animate
from pipeline_dreampose import DreamPosePipeline
from tests.animating import Killed, animate_frames
from tests.test_few_steps import LCM, write_fast
from tests.tiny_components import NUM_FRAMES, get_dummy_image, get_dummy_iuv, get_dummy_pipeline, save_subject
from training.hub.loras import OWN_FAST


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model without and one with a few-step LoRA, a subject, another few-step LoRA, a photo and poses."""
    folder = tmp_path_factory.mktemp("inputs")
    get_dummy_pipeline().save_pretrained(folder / "plain")
    shutil.copytree(folder / "plain", folder / "model")
    write_fast(folder / "model" / "fast")
    write_fast(folder / "other", 9, num_inference_steps=2)
    save_subject(folder / "anna", 1)
    get_dummy_image().save(folder / "photo.png")
    (folder / "poses").mkdir()
    for index in range(NUM_FRAMES):
        get_dummy_iuv(index).save(folder / "poses" / f"{index}.png")
    return folder


def words_of(folder, *more, model="model", output="video.mp4"):
    words = ["--model", folder / model, "--image", folder / "photo.png", "--poses", folder / "poses"]
    return [*words, "--scale", 1, "--device", "cpu", "--output", output, *more]


@pytest.fixture
def run(folder, tmp_path):
    def run(*more, **changes):
        frames = animate_frames(words_of(folder, *more, **{"output": tmp_path / "video.mp4"} | changes))
        return np.stack(frames).astype(int)

    return run


def expected(folder, *loras, few_steps=None, **options):
    """The frames of the pipeline with these LoRAs attached, one of them with its few steps."""
    pipe = DreamPosePipeline.from_pretrained(folder / "plain")
    for index, lora in enumerate(loras):
        pipe.load_lora_weights(folder / lora, adapter_name=f"number_{index}")
    if few_steps is not None:
        pipe.use_few_steps(f"number_{few_steps}")
    if loras:
        pipe.set_adapters([f"number_{index}" for index in range(len(loras))])
    poses = [get_dummy_iuv(index) for index in range(NUM_FRAMES)]
    frames = pipe(get_dummy_image(), poses, generator=torch.Generator().manual_seed(0), **options).frames[0]
    return np.stack(frames).astype(int)


def are_same(first, second):
    return np.abs(first - second).max() <= 1  # fused weights round differently


def test_the_model_s_own_few_step_lora_is_used_and_announced(folder, run, capsys):
    frames, fast = run(), expected(folder, "model/fast", few_steps=0)
    assert are_same(frames, fast)
    own = folder / "model" / OWN_FAST
    assert f"--fast: 1 step per frame, by the few-step LoRA {own}\n" in capsys.readouterr().out
    assert are_same(run("--fast"), frames)
    full, plain = run("--no_fast"), expected(folder)
    assert are_same(full, plain) and not are_same(fast, plain)
    capsys.readouterr()
    assert are_same(run(model="plain"), plain)
    assert "--fast" not in capsys.readouterr().out


def test_a_frame_costs_as_many_forward_passes_as_the_lora_says(folder, run, monkeypatch):
    sizes, forward = [], UNet2DConditionModel.forward

    def count(self, sample, *arguments, **options):
        sizes.append(len(sample))
        return forward(self, sample, *arguments, **options)

    monkeypatch.setattr(UNet2DConditionModel, "forward", count)
    run()
    assert sizes == [NUM_FRAMES]
    run("--no_fast")
    assert sum(sizes) > 3 * NUM_FRAMES, "two steps of up to three branches"


def test_options_of_the_command_line_come_before_those_of_the_lora(folder, run, capsys):
    options = {"num_inference_steps": 3, "pose_guidance_scale": 2.0}
    frames = run("--num_inference_steps", 3, "--pose_guidance_scale", 2, "--fast")
    assert are_same(frames, expected(folder, "model/fast", few_steps=0, **options))
    assert "--fast: 3 steps per frame" in capsys.readouterr().out
    assert not are_same(frames, expected(folder, "model/fast", few_steps=0))


@pytest.mark.parametrize("name", ["image_guidance_scale", "pose_guidance_scale"])
def test_a_guidance_scale_leaves_the_model_s_own_lora_out_by_default(folder, run, capsys, name):
    assert are_same(run(f"--{name}", 5), expected(folder, **{name: 5.0}))
    assert "--fast" not in capsys.readouterr().out
    given = run(f"--{name}", 5, "--lora", folder / "other")
    assert are_same(given, expected(folder, "other", few_steps=0, **{name: 5.0}))


def test_the_error_about_too_many_steps_names_the_lora(folder, run):
    write_fast(folder / "lcm" / "fast", scheduler=LCM)
    shutil.copytree(folder / "plain", folder / "lcm", dirs_exist_ok=True)
    rule, own = "`num_inference_steps` must be a number that LCMScheduler can do; got 25", folder / "lcm" / OWN_FAST
    with pytest.raises(ValueError, match=f"{rule}.* of the LoRA {own}; `--no_fast` leaves out a model's own"):
        run("--num_inference_steps", 25, model="lcm")


def test_a_subject_joins_the_few_steps(folder, run):
    both = expected(folder, "anna", "model/fast", few_steps=1)
    assert are_same(run("--lora", folder / "anna"), both)
    assert are_same(run("--no_fast", "--lora", folder / "anna"), expected(folder, "anna"))
    assert not are_same(both, expected(folder, "model/fast", few_steps=0))


def test_a_few_step_lora_from_elsewhere_takes_the_place_of_the_model_s_own(folder, run, capsys):
    other = expected(folder, "other", "anna", few_steps=0)
    loras = ["--lora", folder / "other", "--lora", folder / "anna"]
    for more in ([], ["--fast"]):
        for model in ("model", "plain"):
            assert are_same(run(*loras, *more, model=model), other)
            assert f"--fast: 2 steps per frame, by the few-step LoRA {folder / 'other'}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fast"], "`fast` must be given with a model that has a few-step LoRA .*/plain', which has none"),
        (["--fast", "--lora", "anna"], "`fast` must be given with a model that has a few-step LoRA"),
        (["--lora", "other", "--lora", "model/fast"], "`lora` must name at most one few-step LoRA, got '.*' and '.*'"),
        (["--no_fast", "--lora", "other"], "`no_fast` must be given without a few-step LoRA as `lora`, got '.*other'"),
        (["--lora", "missing"], "`lora` must be the file, folder or Hub id of a LoRA, got '.*missing'"),
        (["--lora", "poses"], "`lora` must be the file, folder or Hub id of a LoRA, got .*poses': Error no file"),
        (["--lora", "photo.png"], "`lora` must be safetensors"),
    ],
)
def test_loras_that_do_not_fit_are_refused_before_a_model_is_loaded(folder, run, monkeypatch, words, message):
    monkeypatch.setattr("training.hub.repositories.load_pipeline", lambda *_, **__: pytest.fail("a model was loaded"))
    words = [word if word.startswith("--") else folder / word for word in words]
    with pytest.raises(ValueError, match=message):
        run(*words, model="plain")


def test_the_model_s_own_lora_of_other_layers_is_named(folder, run, tmp_path):
    """Its header is that of a few-step LoRA, so only loading it shows."""
    shutil.copytree(folder / "model", tmp_path / "model")
    own = tmp_path / "model" / OWN_FAST
    with safe_open(own, "pt") as file:
        weights, metadata = {f"{name}.x": file.get_tensor(name) for name in file.keys()}, file.metadata()
    save_file(weights, own, metadata)
    rule = f"`model` must have a few-step LoRA as {OWN_FAST}, unless `--no_fast` is given, got '{own}': `{OWN_FAST}`"
    with pytest.raises(ValueError, match=f"{rule} must hold a LoRA of this model"):
        run(model=tmp_path / "model")
    assert are_same(run("--no_fast", model=tmp_path / "model"), expected(folder))


def test_a_stopped_run_resumes_only_with_the_same_loras(folder, run, kill_after, tmp_path):
    kill_after(2)
    with pytest.raises(Killed):
        run("--lora", folder / "anna", "--chunk_size", 2)
    kept = sorted((tmp_path / ".video.mp4.frames").iterdir())
    for words, message in (
        (["--no_fast", "--lora", folder / "anna"], "got few_steps True, now False; .*model '"),
        ([], "got model '"),
        (["--lora", folder / "anna", "--lora", folder / "other"], "got .*model '"),
        (["--lora", folder / "anna", "--num_inference_steps", 2], "got num_inference_steps 1, now 2"),
    ):
        with pytest.raises(ValueError, match=f"`resume` must keep the settings of .* {message}"):
            run("--resume", "--chunk_size", 2, *words)
    assert sorted((tmp_path / ".video.mp4.frames").iterdir()) == kept
    shutil.copytree(folder / "anna", tmp_path / "moved")  # the same LoRA of another name
    rendered = kill_after(NUM_FRAMES)
    run("--lora", tmp_path / "moved", "--resume", "--num_inference_steps", 1)
    assert rendered == [2, 3, 4]


def test_a_grid_of_scales_is_of_the_full_steps_unless_asked(folder, tmp_path, capsys, monkeypatch):
    asked, call = [], DreamPosePipeline.__call__

    def record(self, *arguments, **options):
        asked.append((options["num_inference_steps"], options["image_guidance_scale"]))
        return call(self, *arguments, **options)

    monkeypatch.setattr(DreamPosePipeline, "__call__", record)
    for more in ([], ["--fast"], ["--lora", folder / "other"]):
        words = words_of(folder, "--grid", "1,2", "1", *more, output=tmp_path / "grid.png")
        animate.main(animate.parse_args([str(word) for word in words]))
    assert asked == [(2, 1), (2, 2), (1, 1), (1, 2), (2, 1), (2, 2)]
    assert capsys.readouterr().out.count("--fast:") == 2
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.mode == "RGB"


def test_fast_and_no_fast_are_refused_together(folder, capsys):
    with pytest.raises(SystemExit):
        animate.parse_args([str(word) for word in words_of(folder, "--fast", "--no_fast")])
    assert "argument --no_fast: not allowed with argument --fast" in capsys.readouterr().err
