"""Normalization of a VAE's latents."""

import torch

from training.models.autoencoder import measure_latents, normalize_latents
from training.models.small_model import build_vae


def test_normalised_latents_decode_to_the_same_pictures():
    torch.manual_seed(0)
    vae, pictures = build_vae(latent_channels=3), torch.rand(4, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        posterior = vae.encode(pictures).latent_dist
        before = vae.decode(posterior.mean).sample
        mean, std = measure_latents(vae, pictures)
        normalize_latents(vae, mean, std)
        new_posterior = vae.encode(pictures).latent_dist
        after = vae.decode(new_posterior.mean).sample
    torch.testing.assert_close(before, after, rtol=0, atol=1e-5)
    torch.testing.assert_close(new_posterior.std, posterior.std / std.view(1, 3, 1, 1), rtol=1e-4, atol=1e-6)
    mean, std = measure_latents(vae, pictures)
    torch.testing.assert_close(mean, torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(std, torch.ones(3), rtol=1e-4, atol=0)
