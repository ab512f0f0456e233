"""`distill.py` on a tiny pipeline and drawn clips."""

import json
import os
import re
import signal

import pytest
import torch
from diffusers import LCMScheduler
from safetensors import safe_open
from safetensors.torch import load_file

from pipeline_dreampose import DreamPosePipeline
from tests.launch import launch_two_processes
from tests.tiny_components import get_dummy_image, get_dummy_iuv, get_dummy_pipeline
from training.distill import main, parse_args
from training.engine.interruption import TrainingInterrupted
from training.metrics.validation import HeldOutPairs
from training.models import distillation


FILE = "pytorch_lora_weights.safetensors"
DEFAULTS = ("num_inference_steps", "image_guidance_scale", "pose_guidance_scale")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    get_dummy_pipeline().save_pretrained(folder)
    return folder


def arguments(base, output_dir, *more):
    rank = () if "full" in more else ("--rank", "2")
    return [
        "--pretrained_model_name_or_path", str(base), "--train_data", "procedural/smoke", "--output_dir",
        str(output_dir), "--max_train_steps", "4", "--train_batch_size", "2", "--learning_rate", "1e-2",
        "--num_ddim_timesteps", "4", "--logging_steps", "1", "--checkpointing_steps", "2", *rank, *more,
    ]  # fmt: skip


def records(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def metadata(folder):
    with safe_open(folder / FILE, "pt") as file:
        return json.loads(file.metadata()["lora_adapter_metadata"])


def render(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    poses = [get_dummy_iuv(index) for index in range(3)]
    generator = torch.Generator().manual_seed(0)
    return pipeline(get_dummy_image(), poses, generator=generator, output_type="latent").frames


def test_a_lora_is_distilled_and_sampled_as_in_training(base, tmp_path, monkeypatch):
    """The figures of the last validation are those of the saved file, with each number of steps."""
    measured, compare = [], HeldOutPairs.__call__

    def keep(self, module, global_step):
        measured.append(self)
        return compare(self, module, global_step)

    monkeypatch.setattr(HeldOutPairs, "__call__", keep)
    main(parse_args(arguments(base, tmp_path, "--validation_steps", "4", "--num_validation_frames", "3")))
    log = records(tmp_path)
    assert all(0 < record["loss"] < 10 for record in log if "loss" in record)
    figures = {name: value for record in log for name, value in record.items() if name.startswith("validation/")}
    names = {
        f"validation/{name}_{steps}" for name in ("l1", "psnr", "ssim") for steps in ("1_step", "2_steps", "4_steps")
    }
    assert figures.keys() == names | {"validation/temporal_error"}

    pipeline = DreamPosePipeline.from_pretrained(base)
    plain = render(pipeline)
    pipeline.load_lora_weights(tmp_path, adapter_name="fast")
    pipeline.use_few_steps("fast")
    assert [pipeline.config[f"default_{name}"] for name in DEFAULTS] == [1, 1.0, 1.0]
    assert type(pipeline.scheduler) is LCMScheduler
    measured[0].pipeline = pipeline
    again = compare(measured[0], None, 4)
    assert again == pytest.approx({name.removeprefix("validation/"): figures[name] for name in names}, rel=1e-4)
    few = render(pipeline)
    pipeline.use_full_steps()
    pipeline.unload_lora_weights()
    assert torch.equal(render(pipeline), plain) and (few - plain).abs().max() > 1e-2

    facts = metadata(tmp_path)
    assert facts["dreampose.rank"] == 2 and facts["dreampose.num_distillation_steps"] == 4
    assert facts["dreampose.image_guidance_scale"] == 2.0 and facts["dreampose.pose_guidance_scale"] == 1.5
    card = (tmp_path / "README.md").read_text()
    assert 'pipe.use_few_steps("fast")' in card and "in 1 step without guidance" in card and "6 forward passes" in card
    assert "lora" in card.split("---")[1] and str(tmp_path) not in card


def test_a_short_grid_is_validated_with_the_steps_that_it_has(base, tmp_path):
    words = ("--num_ddim_timesteps", "2", "--max_train_steps", "1", "--validation_steps", "1")
    main(parse_args(arguments(base, tmp_path, *words, "--num_validation_frames", "3", "--num_validation_pairs", "1")))
    figures = {name for record in records(tmp_path) for name in record if name.startswith("validation/psnr")}
    assert figures == {"validation/psnr_1_step", "validation/psnr_2_steps"}


def test_the_lora_counts_one_forward_pass_a_frame(base, tmp_path):
    main(parse_args(arguments(base, tmp_path, "--max_train_steps", "1")))
    pipeline = DreamPosePipeline.from_pretrained(base)
    pipeline.load_lora_weights(tmp_path, adapter_name="fast")
    pipeline.use_few_steps("fast")
    rows = []
    pipeline.unet.register_forward_pre_hook(lambda unet, args: rows.append(len(args[0])))
    render(pipeline)
    assert sum(rows) == 3


def test_a_stopped_run_resumes_as_if_it_had_not_stopped(base, tmp_path, monkeypatch):
    main(parse_args(arguments(base, tmp_path / "whole")))
    loss, calls = distillation.ConsistencyLoss.__call__, []

    def interrupt(self, module, batch):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(self, module, batch)

    monkeypatch.setattr(distillation.ConsistencyLoss, "__call__", interrupt)
    with pytest.raises(TrainingInterrupted):
        main(parse_args(arguments(base, tmp_path / "stopped")))
    main(parse_args(arguments(base, tmp_path / "stopped", "--resume_from_checkpoint", "latest")))
    assert (tmp_path / "whole" / FILE).read_bytes() == (tmp_path / "stopped" / FILE).read_bytes()
    assert len(calls) == 4


def test_full_distillation_writes_a_pipeline_of_few_steps(base, tmp_path):
    main(parse_args(arguments(base, tmp_path, "--train_mode", "full", "--num_inference_steps", "2")))
    pipeline = DreamPosePipeline.from_pretrained(tmp_path)
    assert [pipeline.config[f"default_{name}"] for name in DEFAULTS] == [2, 1.0, 1.0]
    assert pipeline.scheduler.config.original_inference_steps == 4
    before, after = (load_file(folder / "unet/diffusion_pytorch_model.safetensors") for folder in (base, tmp_path))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    vae = [(folder / "vae/diffusion_pytorch_model.safetensors").read_bytes() for folder in (base, tmp_path)]
    assert vae[0] == vae[1]
    assert "in 2 steps without guidance" in (tmp_path / "README.md").read_text()


@pytest.mark.slow
def test_two_processes_and_one_train_alike(base, tmp_path):
    rate = ("--learning_rate", "1e-3")  # AdamW turns rounding errors of tiny gradients into steps of this size
    launch_two_processes("training/distill.py", arguments(base, tmp_path / "two", "--train_batch_size", "1", *rate))
    main(parse_args(arguments(base, tmp_path / "one", *rate)))
    two, one = (load_file(tmp_path / name / FILE) for name in ("two", "one"))
    assert two.keys() == one.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num_ddim_timesteps", "30"], "`num_ddim_timesteps` must be at least 2 and divide 1000, got 30"),
        (["--last_timestep_prob", "1"], r"`last_timestep_prob` must be within \[0, 1\), got 1.0"),
        (["--huber_scale", "0"], "`huber_scale` must be a finite number above 0, got 0.0"),
        (["--image_guidance_scale", "-1"], r"`image_guidance_scale` must be within \[0, 1000\], got -1.0"),
        (["--num_inference_steps", "5"], "`num_inference_steps` must be at most `num_ddim_timesteps`, 4, got 5"),
        (["--pose_radius", "1"], "`pose_radius` must be the model's own, 2, got 1"),
        (["--rank", "0"], "`rank` must be at least 1, got 0"),
        (["--train_mode", "half"], "train_mode"),
    ],
)
def test_bad_options_are_refused(base, tmp_path, options, message, capsys):
    with pytest.raises((ValueError, SystemExit)) as error:
        main(parse_args(arguments(base, tmp_path, *options)))
    assert re.search(message, f"{error.value} {capsys.readouterr().err}")


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(ValueError, match="`pretrained_model_name_or_path` is missing: give the folder or Hub id"):
        main(parse_args(["--output_dir", str(tmp_path)]))
