"""The base pipeline: pose channels, adapter, sampler, checks of a base model, loading in 4 bit."""

import importlib.metadata

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, PNDMScheduler, StableDiffusionPipeline
from torch import nn

from pipeline_dreampose import DreamPosePipeline
from tests.tiny_components import HEIGHT, LATENT_CHANNELS, WIDTH, get_dummy_components, get_unet
from training.data.frame_pairs import LatentShape
from training.models.base_pipeline import (
    build_adapter,
    four_bit_arguments,
    is_quantized,
    load_base_pipeline,
    sampling_scheduler,
    widen_conv_in,
)
from training.models.small_model import build_image_encoder


def test_widened_unet_computes_what_the_old_one_did():
    torch.manual_seed(0)
    unet = get_unet(LATENT_CHANNELS)
    latents, states = torch.randn(2, LATENT_CHANNELS, 16, 12), torch.randn(2, 5, 16)
    weight, bias = unet.conv_in.weight.clone(), unet.conv_in.bias.clone()
    with torch.no_grad():
        before = unet(latents, 500, states).sample
        widen_conv_in(unet)
        after = unet(torch.cat([latents, torch.rand(2, 10, 16, 12)], 1), 500, states).sample
    assert unet.config.in_channels == unet.conv_in.in_channels == LATENT_CHANNELS + 10
    assert torch.equal(unet.conv_in.weight[:, :LATENT_CHANNELS], weight) and torch.equal(unet.conv_in.bias, bias)
    assert not unet.conv_in.weight[:, LATENT_CHANNELS:].any()
    torch.testing.assert_close(before, after, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="`unet` must have as many input channels as output channels, 4, got 14"):
        widen_conv_in(unet)


def test_a_new_adapter_returns_the_image_tokens_exactly(pipeline):
    adapter = build_adapter(pipeline.vae, pipeline.image_encoder, HEIGHT, WIDTH)
    assert dict(adapter.config) | {"pooled_height": HEIGHT // 4, "pooled_width": WIDTH // 4} == dict(adapter.config)
    tokens = torch.randn(2, 5, 16)
    assert torch.equal(adapter(tokens, torch.randn(2, LATENT_CHANNELS, 16, 12)), tokens)


@pytest.mark.parametrize(
    "change, message",
    [
        ({}, None),
        ({"height": 34}, "`height` must be a positive multiple of 4, at most 16384; got 34"),
        ({"pose_radius": 1}, "`pose_radius` must be the model's own, 2, got 1"),
        ({"image_range": (0.0, 1.0)}, r"`image_range` of a pipeline to be trained must be \(-1, 1\), got"),
        ({"pose_range": (-1.0, 1.0)}, r"`pose_range` of a pipeline to be trained must be \(0, 1\), got"),
    ],
)
def test_the_base_model_is_checked(tmp_path, change, message):
    options = {"height": HEIGHT, "width": WIDTH, "pose_radius": 2}
    config = {name: value for name, value in change.items() if name not in options}
    DreamPosePipeline(**get_dummy_components(), **config).to(torch.float16).save_pretrained(tmp_path)
    options |= {name: value for name, value in change.items() if name in options}
    if message is not None:
        with pytest.raises(ValueError, match=message):
            load_base_pipeline(str(tmp_path), **options)
        return
    loaded = load_base_pipeline(str(tmp_path), **options)
    parts = (loaded.unet, loaded.adapter, loaded.image_encoder, loaded.vae)
    assert {part.dtype for part in parts} == {torch.float32}, "saved in float16, trained in float32"


def test_components_must_fit_before_anything_is_trained(tmp_path):
    parts = get_dummy_components()
    StableDiffusionPipeline(
        vae=parts["vae"], text_encoder=None, tokenizer=None, unet=get_unet(LATENT_CHANNELS), safety_checker=None,
        scheduler=parts["scheduler"], feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(tmp_path / "sd")  # fmt: skip
    build_image_encoder(16, 8, 32, 1).save_pretrained(tmp_path / "clip")
    arguments = {"name": str(tmp_path / "sd"), "height": HEIGHT, "width": WIDTH}
    with pytest.raises(ValueError, match="`adapter` must fit `unet`: image_embed_dim must be 16; got 32"):
        load_base_pipeline(**arguments, image_encoder_name_or_path=str(tmp_path / "clip"))
    with pytest.raises(ValueError, match="`image_encoder_name_or_path` must lead to a model .*, got '.*/clap'"):
        load_base_pipeline(**arguments, image_encoder_name_or_path=str(tmp_path / "clap"))
    (tmp_path / "sd" / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match="`pretrained_model_name_or_path` must lead to a model that can be loaded"):
        load_base_pipeline(**arguments, image_encoder_name_or_path=str(tmp_path / "clip"))


def test_sizes_must_divide(pipeline):
    with pytest.raises(ValueError, match="`height` and `width` must be multiples of 2, got 33 x 24"):
        LatentShape.of(pipeline.vae, 33, 24)


def test_a_saved_pipeline_samples_with_dpm_solver_and_the_noise_of_its_training():
    scheduler = sampling_scheduler(PNDMScheduler(beta_start=0.002, steps_offset=1, prediction_type="v_prediction"))
    assert isinstance(scheduler, DPMSolverMultistepScheduler) and scheduler.config.algorithm_type == "dpmsolver++"
    assert scheduler.config.timestep_spacing == "trailing"
    kept = {name: scheduler.config[name] for name in ("beta_start", "steps_offset", "prediction_type")}
    assert kept == {"beta_start": 0.002, "steps_offset": 1, "prediction_type": "v_prediction"}


def test_only_the_unet_is_loaded_as_nf4(monkeypatch):
    """Check only the arguments for diffusers, since bitsandbytes does not run on a CPU."""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.48.0")  # the configuration checks it
    arguments = four_bit_arguments(torch.bfloat16)
    assert arguments["dtype"] == {"unet": torch.bfloat16, "default": torch.float32}
    ((part, config),) = arguments["quantization_config"].quant_mapping.items()
    assert part == "unet" and config.load_in_4bit
    assert (config.bnb_4bit_quant_type, config.bnb_4bit_compute_dtype) == ("nf4", torch.bfloat16)


def test_a_quantized_model_is_recognised():
    unet = nn.Linear(2, 2)
    assert not is_quantized(unet)
    unet.is_quantized = True  # as diffusers marks a quantized model
    assert is_quantized(unet)
