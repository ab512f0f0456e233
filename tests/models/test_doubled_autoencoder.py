"""A VAE for twice the height and width around the latents of another one."""

import pytest
import torch
import torch.nn.functional as F

from training.data.encoder_frames import VAEFrames
from training.data.frame_pairs import LatentShape
from training.data.procedural_fashion import load_procedural_fashion
from training.models.autoencoder import VAETrainer
from training.models.doubled_autoencoder import DoubledVAETrainer, double_vae, shrink
from training.models.small_model import build_vae


@pytest.fixture
def base():
    torch.manual_seed(0)
    return build_vae(4, (8, 16), sample_size=16).requires_grad_(True)


@pytest.fixture
def pointwise(base):
    """A VAE whose outermost convolutions see one pixel, so that averages and repeated pixels pass through exactly."""
    with torch.no_grad():
        for conv in (base.encoder.conv_in, base.decoder.conv_out):
            centre = conv.weight[:, :, 1, 1].clone()
            conv.weight.zero_()
            conv.weight[:, :, 1, 1] = centre
    return base


def pictures(height=32, width=24):
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
def test_it_begins_as_the_vae_that_it_comes_from_between_averages_and_repeated_pixels(pointwise):
    doubled, x = double_vae(pointwise), pictures()
    assert doubled.config.block_out_channels == (8, 8, 16) and doubled.config.sample_size == 32
    latents = pointwise.encode(F.avg_pool2d(x, 2)).latent_dist.mean
    assert torch.allclose(doubled.encode(x).latent_dist.mean, latents, atol=1e-5)
    repeated = pointwise.decode(latents).sample.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.allclose(doubled.decode(latents).sample, repeated, atol=1e-5)


def test_shrunk_pictures_are_centred_on_the_pixel_whose_pose_a_cell_has():
    ramp = torch.arange(8.0).expand(1, 3, 6, 8)
    assert shrink(ramp)[0, 0, 1].tolist() == [0.25, 2.0, 4.0, 6.0], "the border is repeated"
    assert torch.equal(shrink(ramp.mT)[0, 2, :, 1], shrink(ramp)[0, 0, 1])
    assert torch.equal(shrink(torch.ones(1, 3, 6, 8)), torch.ones(1, 3, 3, 4))


def test_the_loss_is_the_error_of_the_pictures_and_of_the_latents(pointwise):
    x = pictures()
    trainer = DoubledVAETrainer(double_vae(pointwise), pointwise, mse_weight=3.0, l1_weight=2.0, latent_weight=5.0)
    values = trainer(x, torch.zeros(2, 4, 8, 6))
    with torch.no_grad():
        latents = pointwise.encode(shrink(x)).latent_dist.mean
        error = trainer.vae.decode(latents).sample - x
        latent_error = (trainer.vae.encode(x).latent_dist.mean - latents).square().mean()
    expected = 3 * error.square().mean() + 2 * error.abs().mean() + 5 * latent_error
    assert latent_error > 1e-3 and values["latent_error"].item() == pytest.approx(latent_error.item(), rel=1e-4)
    assert values["loss"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert trainer(x, torch.ones(2, 4, 8, 6))["psnr"] != values["psnr"], "the decoder gets the noise"


def test_only_the_larger_vae_is_trained(base):
    trainer = DoubledVAETrainer(double_vae(base), base)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    optimizer = torch.optim.AdamW(trainer.parameters(), lr=3e-3)
    x = F.interpolate(pictures(8, 6), scale_factor=4, mode="bilinear")
    losses = []
    for _ in range(20):
        values = trainer(x, torch.zeros(2, 4, 8, 6))
        values["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(values["loss"].item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert not any(name.startswith("base") or "_base" in name for name in trainer.state_dict())


def test_restored_pictures_are_measured_at_both_sizes(pointwise):
    x = pictures(16, 12).repeat_interleave(2, 2).repeat_interleave(2, 3)
    values = DoubledVAETrainer(double_vae(pointwise), pointwise).measure_psnr(x)
    expected = VAETrainer(pointwise).measure_psnr(x[:, :, ::2, ::2])["psnr"]
    assert values["psnr"] == pytest.approx(expected, abs=1e-3)
    assert values["shrunk_psnr"] == pytest.approx(expected, abs=1e-3)


def test_each_picture_has_its_own_level_of_noise():
    rows, shape = load_procedural_fashion("smoke"), LatentShape(6, 20, 16, 80, 64)
    stds = [VAEFrames(rows, shape, 0, max_noise=0.2)[i]["noise"].std().item() for i in range(20)]
    assert max(stds) < 0.22 and min(stds) < 0.05 and max(stds) > 0.15
    assert VAEFrames(rows, shape, 0)[0]["noise"].std().item() == pytest.approx(1, abs=0.05)
