"""`train_encoders.py`: training the small model's encoders and assembling its pipeline."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from safetensors.torch import load_file

from pipeline_dreampose import DreamPosePipeline
from tests.launch import launch_two_processes
from training.models.autoencoder import named_loss
from training.train_encoders import main, parse_args


def arguments(output_dir, *more):
    """Return a command line without the options that have no effect on the component."""
    training = ["--train_data", "procedural/smoke", "--train_batch_size", "2", "--max_train_steps", "3"]
    size = [] if "image_encoder" in more else ["--height", "80", "--width", "64"]
    flags = size + ([] if "pipeline" in more else [*training, "--logging_steps", "1"])
    return ["--output_dir", str(output_dir), *flags, *more]


def run(output_dir, *more):
    main(parse_args(arguments(output_dir, *more)))


@pytest.mark.slow
def test_encoders_train_and_become_a_pipeline(tmp_path):
    run(tmp_path / "vae", "--num_crop_steps", "2", "--vae_channels", "8", "16", "--validation_steps", "3")
    run(tmp_path / "encoder", "--component", "image_encoder", "--hidden_size", "32", "--num_hidden_layers", "1")
    assert AutoencoderKL.from_pretrained(tmp_path / "vae").config.scaling_factor == 1
    around = ["--component", "doubled_vae", "--vae_dir", str(tmp_path / "vae"), "--max_latent_noise", "0.1"]
    run(tmp_path / "doubled", *around, "--num_crop_steps", "2", "--validation_steps", "3")
    doubled = AutoencoderKL.from_pretrained(tmp_path / "doubled")
    assert doubled.config.block_out_channels == [8, 8, 16] and doubled.config.latent_channels == 4
    folders = ["--vae_dir", str(tmp_path / "vae"), "--image_encoder_dir", str(tmp_path / "encoder")]
    run(tmp_path / "base", "--component", "pipeline", *folders, "--unet_channels", "8", "16")
    pipeline = DreamPosePipeline.from_pretrained(tmp_path / "base")
    assert (pipeline.pose_radius, pipeline.vae_scale_factor) == (2, 2)
    assert pipeline.adapter.config.num_image_tokens == 65
    assert not DDIMScheduler.from_config(pipeline.scheduler.config).config.clip_sample
    for name, folder in (("vae", "vae"), ("image_encoder", "encoder")):
        (file,) = (tmp_path / folder).glob("*.safetensors")
        saved, held = load_file(file), getattr(pipeline, name).state_dict()
        assert all(torch.equal(held[key], value) for key, value in saved.items()), name


def test_batches_hold_only_crops_or_only_whole_frames_when_their_size_changes(tmp_path, monkeypatch):
    """One step of two crops, two steps of four crops, then whole frames."""
    sizes = []

    def loss(module, batch):
        sizes.append(tuple(batch["pixel_values"].shape))
        return named_loss(module, batch)

    monkeypatch.setattr("training.models.autoencoder.named_loss", loss)
    small = ["--vae_channels", "8", "16", "--num_crop_steps", "3", "--resume_from_checkpoint", "latest"]
    run(tmp_path, *small, "--max_train_steps", "1")
    run(tmp_path, *small, "--max_train_steps", "4", "--train_batch_size", "4")
    crops, whole = (2, 3, 40, 32), (4, 3, 80, 64)
    assert sizes == [crops, (4, *crops[1:]), (4, *crops[1:]), whole]


def test_bad_options(tmp_path):
    for component in ("pipeline", "doubled_vae"):
        with pytest.raises(ValueError, match=f"`vae_dir` is missing: `component` {component} needs the folder"):
            run(tmp_path, "--component", component)
    with pytest.raises(ValueError, match="`vae_dir` must be the folder of a trained model, got '.*nowhere'"):
        run(tmp_path, "--component", "doubled_vae", "--vae_dir", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="`image_size` must be a multiple of `patch_size`, got 60, 8"):
        run(tmp_path, "--image_size", "60")


@pytest.mark.slow
def test_two_processes_train_the_image_encoder(tmp_path):
    """Each trained weight has a gradient; otherwise DDP would wait for it."""
    small = ["--component", "image_encoder", "--hidden_size", "32", "--num_hidden_layers", "1"]
    launch_two_processes("training/train_encoders.py", arguments(tmp_path, *small))
    state = json.loads((tmp_path / "checkpoint-000003" / "state.json").read_text())
    assert state["world"]["num_processes"] == 2 and state["num_samples"] == 3 * 2 * 2
    assert (tmp_path / "config.json").is_file()
