"""The denoiser and its loss: inputs of the UNet, value of the loss, and the weights that train."""

import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn

from pipeline_dreampose import DreamPosePipeline, encode_reference
from tests.tiny_components import HEIGHT, LATENT_CHANNELS, WIDTH, get_dummy_components, get_dummy_pipeline
from training.data.frame_pairs import LatentShape
from training.models.denoiser import Denoiser, StageOneLoss


@pytest.fixture
def pipeline():
    return DreamPosePipeline(**get_dummy_components())


@pytest.fixture
def shape(pipeline):
    return LatentShape.of(pipeline.vae, HEIGHT, WIDTH)


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


@pytest.mark.parametrize("train_image_encoder", [False, True])
def test_training_uses_the_states_of_sampling(pipeline, shape, train_image_encoder):
    """For a photo and for the null image, the UNet sees the states that the pipeline computes."""
    module = Denoiser(pipeline.unet, pipeline.adapter, pipeline.image_encoder, train_image_encoder)
    batch, seen = make_batch(shape), []
    pipeline.unet.register_forward_pre_hook(lambda unet, args: seen.append(args))
    for draw, pixel_values in (
        (0.99, batch["reference_image"] / 127.5 - 1),
        (0.0, torch.full((4, 3, HEIGHT, WIDTH), -1.0)),
    ):
        batch["dropout_draw"] = torch.full((4,), draw)
        StageOneLoss(pipeline, DDPMScheduler(), shape, 0.0, 0.0, 0.5)(module, batch)
        parts = (pipeline.vae, pipeline.image_encoder, pipeline.feature_extractor)
        with torch.no_grad():
            expected = pipeline.adapter(*encode_reference(pixel_values, *parts))
        torch.testing.assert_close(seen[-1][2], expected)
        window = seen[-1][0][:, LATENT_CHANNELS:]
        assert torch.equal(window, batch["pose_window"] if draw else torch.zeros_like(window))


def test_the_loss_is_the_weighted_error_of_the_velocity(pipeline, shape):
    """v = sqrt(a) noise - sqrt(1 - a) x; a sample's weight is min(SNR, 5) / (SNR + 1) (arXiv:2303.09556)."""
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


def parameters(pipeline):
    models = {name: getattr(pipeline, name) for name in ("unet", "adapter", "image_encoder", "vae")}
    return {f"{name}.{key}": value for name, model in models.items() for key, value in model.named_parameters()}


@pytest.mark.parametrize("train_image_encoder, train_adapter", [(False, True), (True, True), (False, False)])
def test_a_step_changes_exactly_what_trains(pipeline, shape, train_image_encoder, train_adapter):
    pipeline.vae.requires_grad_(False)
    trained = {"train_image_encoder": train_image_encoder, "train_adapter": train_adapter}
    module = Denoiser(pipeline.unet, pipeline.adapter, pipeline.image_encoder, **trained)
    before = {name: value.clone() for name, value in parameters(pipeline).items()}
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-2)
    loss, _ = StageOneLoss(pipeline, DDPMScheduler(), shape)(module, make_batch(shape))
    loss.backward()
    optimizer.step()
    changed = {name for name, value in parameters(pipeline).items() if not torch.equal(before[name], value)}
    trains = {k for k in before if k.startswith(("unet.", "adapter.") if train_adapter else "unet.")}
    if train_image_encoder:
        trains |= {k for k in before if k.startswith("image_encoder.") and "post_layernorm" not in k}
    assert loss.isfinite() and changed == trains


def test_gradients_reach_the_adapter_through_the_null_image(pipeline, shape):
    module = Denoiser(pipeline.unet, pipeline.adapter, pipeline.image_encoder)
    batch = make_batch(shape) | {"dropout_draw": torch.zeros(4)}
    StageOneLoss(pipeline, DDPMScheduler(), shape, 1.0, 0.0, 0.0)(module, batch)[0].backward()
    assert pipeline.adapter.vae_projection.weight.grad.abs().sum() > 0


def test_integer_weights_stay_frozen():
    """bitsandbytes stores 4-bit weights as integers, which cannot have gradients in torch."""
    unet, adapter = nn.Linear(2, 2), nn.Linear(2, 2)
    unet.weight = nn.Parameter(torch.zeros(2, 1, dtype=torch.uint8), requires_grad=False)
    module = Denoiser(unet, adapter)
    trained = {name for name, value in module.named_parameters() if value.requires_grad}
    assert trained == {"unet.bias", "adapter.weight", "adapter.bias"}


def test_snr_gamma_with_zero_terminal_snr_is_refused_before_a_model_runs(monkeypatch):
    pipeline = get_dummy_pipeline()
    monkeypatch.setattr(type(pipeline.vae), "encode", lambda *args: pytest.fail("the VAE ran"))
    with pytest.raises(ValueError, match="`snr_gamma` must be none for a model with zero terminal SNR"):
        StageOneLoss(pipeline, DDPMScheduler(rescale_betas_zero_snr=True), None, snr_gamma=5.0)
