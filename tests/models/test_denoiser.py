"""The denoiser at the start of training, and what trains."""

import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, PNDMScheduler, StableDiffusionPipeline

from pipeline_dreampose import DreamPosePipeline, encode_reference
from tests.tiny_components import HEIGHT, LATENT_CHANNELS, WIDTH, get_dummy_components, get_unet
from training.data.frame_pairs import LatentShape
from training.models.base_pipeline import build_adapter, load_base_pipeline, sampling_scheduler, widen_conv_in
from training.models.denoiser import Denoiser, StageOneLoss
from training.models.small_model import build_image_encoder


@pytest.fixture
def pipeline():
    return DreamPosePipeline(**get_dummy_components())


def make_batch(shape, size=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    cells = (size, shape.channels, shape.height, shape.width)
    images = torch.randint(256, (2, size, 3, HEIGHT, WIDTH), generator=generator, dtype=torch.uint8)
    return {
        "reference_image": images[0],
        "target_image": images[1],
        "pose_window": torch.rand(size, 10, shape.height, shape.width, generator=generator),
        "posterior_noise": torch.randn(cells, generator=generator),
        "noise": torch.randn(cells, generator=generator),
        "timestep_draw": torch.rand(size, generator=generator),
        "dropout_draw": torch.full((size,), 0.99),
    }


def test_widened_unet_computes_what_the_old_one_did():
    torch.manual_seed(0)
    unet = get_unet(LATENT_CHANNELS)
    latents, states = torch.randn(2, LATENT_CHANNELS, 16, 12), torch.randn(2, 5, 16)
    old_weight, old_bias = unet.conv_in.weight.clone(), unet.conv_in.bias.clone()
    with torch.no_grad():
        before = unet(latents, 500, states).sample
        widen_conv_in(unet)
        after = unet(torch.cat([latents, torch.rand(2, 10, 16, 12)], 1), 500, states).sample
    assert unet.config.in_channels == unet.conv_in.in_channels == LATENT_CHANNELS + 10
    assert torch.equal(unet.conv_in.weight[:, :LATENT_CHANNELS], old_weight) and torch.equal(
        unet.conv_in.bias, old_bias
    )
    assert not unet.conv_in.weight[:, LATENT_CHANNELS:].any()
    torch.testing.assert_close(before, after, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="`unet` must take the 4 channels that it gives, got 14"):
        widen_conv_in(unet)


def test_new_adapter_gives_the_image_tokens_exactly(pipeline):
    adapter = build_adapter(pipeline.vae, pipeline.image_encoder, HEIGHT, WIDTH)
    assert dict(adapter.config) | {"pooled_height": HEIGHT // 4, "pooled_width": WIDTH // 4} == dict(adapter.config)
    tokens = torch.randn(2, 5, 16)
    assert torch.equal(adapter(tokens, torch.randn(2, LATENT_CHANNELS, 16, 12)), tokens)


@pytest.mark.parametrize("train_image_encoder", [False, True])
def test_states_of_training_equal_the_pipelines(pipeline, train_image_encoder):
    """The loss reaches the UNet with the states that sampling uses, for a photo and for the null image."""
    shape = LatentShape.of(pipeline.vae, HEIGHT, WIDTH)
    module = Denoiser(pipeline.unet, pipeline.adapter, pipeline.image_encoder, train_image_encoder)
    batch, seen = make_batch(shape), []
    pipeline.unet.register_forward_pre_hook(lambda unet, args: seen.append(args))
    for draw, pixel_values in (
        (0.99, batch["reference_image"] / 127.5 - 1),
        (0.0, torch.full((4, 3, HEIGHT, WIDTH), -1.0)),
    ):
        batch["dropout_draw"] = torch.full((4,), draw)
        StageOneLoss(pipeline, DDPMScheduler(), shape, 0.0, 0.0, 0.5)(module, batch)
        with torch.no_grad():
            expected = pipeline.adapter(
                *encode_reference(pixel_values, pipeline.vae, pipeline.image_encoder, pipeline.feature_extractor)
            )
        torch.testing.assert_close(seen[-1][2], expected)
        window = seen[-1][0][:, LATENT_CHANNELS:]
        assert torch.equal(window, batch["pose_window"] if draw else torch.zeros_like(window))


def test_the_loss_is_the_weighted_error_of_the_velocity(pipeline):
    """Of v = sqrt(a) noise - sqrt(1 - a) x, each sample weighted by min(SNR, 5) / (SNR + 1) (arXiv:2303.09556)."""
    shape = LatentShape.of(pipeline.vae, HEIGHT, WIDTH)
    module, batch, seen = Denoiser(pipeline.unet, pipeline.adapter, pipeline.image_encoder), make_batch(shape), []
    pipeline.unet.register_forward_hook(lambda unet, inputs, output: seen.append((inputs, output)))
    scheduler = DDPMScheduler(prediction_type="v_prediction")
    settings = {"snr_gamma": 5.0, "high_noise_fraction": 1.0, "high_noise_start": 400}
    loss_fn = StageOneLoss(pipeline, scheduler, shape, 0.0, 0.0, 0.0, **settings)
    loss, _ = loss_fn(module, batch)
    ((unet_input, timesteps, *_), output) = seen[0]
    prediction = output[0] if isinstance(output, tuple) else output.sample
    assert timesteps.min() >= 400
    encoded = loss_fn.encode_batch(batch)
    latents = encoded["target_mean"] + encoded["target_std"] * batch["posterior_noise"]
    latents = latents * pipeline.vae.config.scaling_factor
    alpha = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * batch["noise"]
    torch.testing.assert_close(unet_input[:, :LATENT_CHANNELS], noisy)
    velocity = alpha.sqrt() * batch["noise"] - (1 - alpha).sqrt() * latents
    snr = (alpha / (1 - alpha)).flatten()
    errors = (prediction - velocity).square().mean((1, 2, 3))
    torch.testing.assert_close(loss, (errors * snr.clamp(max=5) / (snr + 1)).mean())


@pytest.mark.parametrize("train_image_encoder, train_adapter", [(False, True), (True, True), (False, False)])
def test_a_step_changes_exactly_what_trains(pipeline, train_image_encoder, train_adapter):
    shape = LatentShape.of(pipeline.vae, HEIGHT, WIDTH)
    pipeline.vae.requires_grad_(False)
    trained = {"train_image_encoder": train_image_encoder, "train_adapter": train_adapter}
    module = Denoiser(pipeline.unet, pipeline.adapter, pipeline.image_encoder, **trained)
    before = {k: v.clone() for name in ("unet", "adapter", "image_encoder", "vae") for k, v in named(pipeline, name)}
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-2)
    loss, _ = StageOneLoss(pipeline, DDPMScheduler(), shape)(module, make_batch(shape))
    loss.backward()
    optimizer.step()
    after = {k: v for name in ("unet", "adapter", "image_encoder", "vae") for k, v in named(pipeline, name)}
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    trains = {k for k in before if k.startswith(("unet.", "adapter.") if train_adapter else "unet.")}
    if train_image_encoder:
        trains |= {k for k in before if k.startswith("image_encoder.") and "post_layernorm" not in k}
    assert loss.isfinite() and changed == trains


def named(pipeline, component):
    return [(f"{component}.{name}", value) for name, value in getattr(pipeline, component).named_parameters()]


def test_gradients_reach_the_adapter_through_the_null_image(pipeline):
    shape = LatentShape.of(pipeline.vae, HEIGHT, WIDTH)
    module = Denoiser(pipeline.unet, pipeline.adapter, pipeline.image_encoder)
    batch = make_batch(shape) | {"dropout_draw": torch.zeros(4)}
    StageOneLoss(pipeline, DDPMScheduler(), shape, 1.0, 0.0, 0.0)(module, batch)[0].backward()
    assert pipeline.adapter.vae_projection.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "change, message",
    [
        ({}, None),
        ({"height": 34}, "`height` must be a positive multiple of 4; got 34"),
        ({"pose_radius": 1}, "`pose_radius` must be the model's own, 2, got 1"),
        ({"image_range": (0.0, 1.0)}, r"`image_range` of a pipeline to be trained must be \(-1, 1\), got"),
        ({"pose_range": (-1.0, 1.0)}, r"`pose_range` of a pipeline to be trained must be \(0, 1\), got"),
    ],
)
def test_what_stage_one_starts_from_is_checked(tmp_path, change, message):
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
    assert {part.dtype for part in parts} == {torch.float32}, "saved in half, trained in float32"


def test_components_must_fit_before_anything_is_trained(tmp_path):
    parts = get_dummy_components()
    StableDiffusionPipeline(
        vae=parts["vae"], text_encoder=None, tokenizer=None, unet=get_unet(LATENT_CHANNELS), safety_checker=None,
        scheduler=parts["scheduler"], feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(tmp_path / "sd")  # fmt: skip
    build_image_encoder(16, 8, 32, 1).save_pretrained(tmp_path / "clip")
    with pytest.raises(ValueError, match="`adapter` must fit `unet`: image_embed_dim must be 16; got 32"):
        load_base_pipeline(str(tmp_path / "sd"), HEIGHT, WIDTH, image_encoder_name_or_path=str(tmp_path / "clip"))
    with pytest.raises(ValueError, match="`image_encoder_name_or_path` must lead to a model .*, got '.*/clap'"):
        load_base_pipeline(str(tmp_path / "sd"), HEIGHT, WIDTH, image_encoder_name_or_path=str(tmp_path / "clap"))
    (tmp_path / "sd" / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match="`pretrained_model_name_or_path` must lead to a model that can be loaded"):
        load_base_pipeline(str(tmp_path / "sd"), HEIGHT, WIDTH, image_encoder_name_or_path=str(tmp_path / "clip"))


def test_sizes_must_divide(pipeline):
    with pytest.raises(ValueError, match="`height` and `width` must be multiples of 2, got 33 x 24"):
        LatentShape.of(pipeline.vae, 33, 24)


def test_a_saved_pipeline_samples_with_dpm_solver_on_the_noise_that_it_was_trained_with():
    scheduler = sampling_scheduler(PNDMScheduler(beta_start=0.002, steps_offset=1, prediction_type="v_prediction"))
    assert isinstance(scheduler, DPMSolverMultistepScheduler) and scheduler.config.algorithm_type == "dpmsolver++"
    kept = {name: scheduler.config[name] for name in ("beta_start", "steps_offset", "prediction_type")}
    assert kept == {"beta_start": 0.002, "steps_offset": 1, "prediction_type": "v_prediction"}
