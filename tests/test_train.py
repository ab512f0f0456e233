"""Stage 1 through its entry point, on a tiny pipeline and drawn clips."""

import json

import huggingface_hub
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file

from pipeline_dreampose import DreamPosePipeline
from tests.launch import launch_two_processes
from tests.tiny_components import get_dummy_components, get_unet
from training.data.pair_settings import PairSettings
from training.train import main, parse_args


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    DreamPosePipeline(**get_dummy_components()).save_pretrained(folder)
    return folder


def arguments(base, output_dir, *more):
    return [
        "--pretrained_model_name_or_path", str(base), "--train_data", "procedural/smoke", "--height", "80",
        "--width", "64", "--output_dir", str(output_dir), "--max_train_steps", "4", "--train_batch_size", "2",
        "--learning_rate", "1e-3", "--ema_decay", "0.9", "--logging_steps", "1", "--checkpointing_steps", "2", *more,
    ]  # fmt: skip


def weights(folder):
    return {
        f"{name}.{key}": value
        for name in ("unet", "adapter", "vae", "image_encoder")
        for file in (folder / name).glob("*.safetensors")
        for key, value in load_file(file).items()
    }


@pytest.mark.slow
def test_trains_validates_and_writes_a_pipeline(base, tmp_path):
    main(parse_args(arguments(base, tmp_path, "--validation_steps", "4")))
    before, after = weights(base), weights(tmp_path)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed and {key.split(".")[0] for key in changed} == {"unet", "adapter"}
    pipeline = DreamPosePipeline.from_pretrained(tmp_path)
    assert (pipeline.config.default_height, pipeline.config.default_width) == (80, 64)
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert all(0 < record["loss"] < 10 for record in records if "loss" in record)
    validated = [record for record in records if "ssim" in record]
    assert [record["step"] for record in validated] == [4] and validated[0]["psnr"] > 3
    assert "learning_rate: 0.001" in (tmp_path / "options.yaml").read_text()


@pytest.mark.slow
def test_resumed_run_equals_an_undisturbed_one(base, tmp_path):
    main(parse_args(arguments(base, tmp_path / "whole", "--lr_scheduler", "constant")))
    first = arguments(base, tmp_path / "parts", "--lr_scheduler", "constant")
    main(parse_args([*first, "--max_train_steps", "2"]))
    main(parse_args([*first, "--resume_from_checkpoint", "latest"]))
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


@pytest.mark.slow
def test_the_latent_cache_trains_alike(base, tmp_path):
    main(parse_args(arguments(base, tmp_path / "direct")))
    main(parse_args(arguments(base, tmp_path / "cached", "--latent_cache_dir", str(tmp_path / "cache"))))
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("direct", "cached")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)


@pytest.mark.slow
def test_crops_and_skipped_rows_train(base, tmp_path):
    more = ["--fit", "crop", "--min_crop_scale", "0.6", "--bad_rows", "skip", "--max_reference_distance", "2"]
    main(parse_args(arguments(base, tmp_path, "--width", "80", *more)))
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(records) == 4 and all(0 < record["loss"] < 10 and record["bad_rows"] == 0 for record in records)


@pytest.mark.slow
def test_validation_takes_the_window_and_the_bad_rows_of_training(base, tmp_path, monkeypatch):
    settings = []

    def held_out_pairs(pipeline, samples, seed):
        settings.append(samples.settings)
        return lambda module, global_step: {"ssim": 1.0}

    monkeypatch.setattr("training.train.HeldOutPairs", held_out_pairs)
    more = ["--validation_steps", "4", "--fit", "crop", "--bad_rows", "skip"]
    main(parse_args(arguments(base, tmp_path, *more)))
    assert settings == [PairSettings(pose_radius=2, fit="whole", bad_rows="skip")]


def test_zero_steps_widen_stable_diffusion(tmp_path, monkeypatch):
    """At the start the pipeline gives its UNet the image encoder's tokens and the UNet computes what it did."""
    parts = get_dummy_components()
    unet = get_unet(in_channels=4)
    StableDiffusionPipeline(
        vae=parts["vae"], text_encoder=None, tokenizer=None, unet=unet, scheduler=parts["scheduler"],
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(tmp_path / "sd")  # fmt: skip
    parts["image_encoder"].save_pretrained(tmp_path / "clip")
    out = tmp_path / "out"
    flags = ["--image_encoder_name_or_path", str(tmp_path / "clip"), "--max_train_steps", "0"]
    # Widening needs no data.
    monkeypatch.setattr("training.train.load_prepared", lambda name, split: pytest.fail("the data set is asked for"))
    main(parse_args(arguments(tmp_path / "sd", out, *flags)))
    widened = UNet2DConditionModel.from_pretrained(out, subfolder="unet")
    latents, states, window = torch.randn(1, 4, 16, 12), torch.randn(1, 5, 16), torch.rand(1, 10, 16, 12)
    with torch.no_grad():
        old, new = unet(latents, 10, states).sample, widened(torch.cat([latents, window], 1), 10, states).sample
    torch.testing.assert_close(old, new, rtol=0, atol=1e-6)
    pipeline = DreamPosePipeline.from_pretrained(out)
    assert torch.equal(pipeline.adapter(states, latents), states)


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            ["--pretrained_model_name_or_path", "no/such"],
            "`pretrained_model_name_or_path` must be a pipeline's folder",
        ),
        (["--height", "88", "--width", "60"], "`width` must be a positive multiple of 8"),
        (["--pose_radius", "1"], "`pose_radius` must be the model's own, 2, got 1"),
        (["--train_data", "procedural/huge"], "The data set must be one of"),
        (["--min_crop_scale", "0.5", "--latent_cache_dir", "x"], "`min_crop_scale` must be 1 with `latent_cache_dir`"),
        (["--learning_rate", "0"], "`learning_rate` must be a finite number above 0"),
    ],
)
def test_bad_options_end_in_one_clear_error(base, tmp_path, flags, message, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=message):
        main(parse_args(arguments(base, tmp_path, *flags)))


@pytest.mark.slow
def test_two_processes_train_as_one(base, tmp_path):
    """`accelerate launch` with two real CPU processes: equal to one process with the same global batch."""
    launch_two_processes("training/train.py", arguments(base, tmp_path / "two", "--train_batch_size", "1"))
    main(parse_args(arguments(base, tmp_path / "one")))
    state = json.loads((tmp_path / "two" / "checkpoint-000004" / "state.json").read_text())
    assert state["world"]["num_processes"] == 2
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-3, atol=2e-4, msg=key)
