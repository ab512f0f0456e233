"""The formulas of the loss, against values computed by hand."""

import math

import pytest
import torch
from diffusers import DDPMScheduler

from training.models.objective import (
    build_noise_scheduler,
    denoising_loss,
    diffusion_target,
    draw_timesteps,
    drop_conditions,
    min_snr_weights,
    replace_rows,
)


def test_one_number_per_sample_chooses_what_is_dropped():
    draw = torch.tensor([0.0, 0.04, 0.05, 0.14, 0.15, 0.29, 0.3, 0.99])
    drop_image, drop_pose = drop_conditions(draw, image_prob=0.1, pose_prob=0.15, joint_prob=0.05)
    assert drop_image.tolist() == [True, True, True, True, False, False, False, False]
    assert drop_pose.tolist() == [True, True, False, False, True, True, False, False]


def test_dropped_conditions_have_their_shares():
    drop_image, drop_pose = drop_conditions(torch.arange(1000) / 1000, 0.06, 0.04, 0.03)
    assert (drop_image & ~drop_pose).sum() == 60 and (drop_pose & ~drop_image).sum() == 40
    assert (drop_image & drop_pose).sum() == 30


@pytest.mark.parametrize("probs", [(-0.1, 0.1, 0.1), (0.5, 0.4, 0.2)])
def test_impossible_probabilities_are_refused(probs):
    with pytest.raises(ValueError, match="must be at least 0 and sum to at most 1"):
        drop_conditions(torch.zeros(1), *probs)


def test_replace_rows():
    values = torch.arange(8.0).view(2, 2, 2)
    replaced = replace_rows(values, torch.tensor([False, True]), torch.tensor([[[9.0, 8.0], [7.0, 6.0]]]))
    assert replaced.tolist() == [[[0, 1], [2, 3]], [[9, 8], [7, 6]]]
    assert replace_rows(values, torch.tensor([True, False]), 0.0)[0].abs().sum() == 0


def test_timesteps_are_uniform_or_mostly_noisy():
    draw = (torch.arange(1000) + 0.5) / 1000
    assert draw_timesteps(draw, 1000).tolist() == list(range(1000))
    biased = draw_timesteps(draw, 1000, high_noise_fraction=0.8, high_noise_start=200)
    assert (biased < 200).sum() == 200 and (biased >= 200).sum() == 800 and biased.max() == 999
    biased = draw_timesteps(draw, 1000, high_noise_fraction=0.5, high_noise_start=900)
    assert (biased >= 900).sum() == 500 and biased.min() == 0
    for fraction in (0.0, 1.0):
        edge = draw_timesteps(draw, 1000, fraction, 400)
        assert (edge >= 400).float().mean() == fraction


def test_targets_by_hand():
    latents, noise = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 3.0)
    scheduler = DDPMScheduler(prediction_type="v_prediction")
    t = torch.tensor([400])
    alpha = scheduler.alphas_cumprod[400].item()
    assert diffusion_target(scheduler, latents, noise, t).item() == pytest.approx(
        math.sqrt(alpha) * 3 - math.sqrt(1 - alpha) * 2, rel=1e-5
    )
    assert diffusion_target(DDPMScheduler(), latents, noise, t) is noise
    with pytest.raises(ValueError, match="`prediction_type` must be epsilon or v_prediction, got 'sample'"):
        diffusion_target(DDPMScheduler(prediction_type="sample"), latents, noise, t)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_min_snr_weights_by_hand(prediction_type):
    scheduler, timesteps = DDPMScheduler(prediction_type=prediction_type), torch.tensor([0, 300, 999])
    assert min_snr_weights(scheduler, timesteps, None).tolist() == [1, 1, 1]
    for t, weight in zip(timesteps, min_snr_weights(scheduler, timesteps, 5.0)):
        alpha = scheduler.alphas_cumprod[t].item()
        snr = alpha / (1 - alpha)
        expected = min(snr, 5) / (snr + (prediction_type == "v_prediction"))
        assert weight.item() == pytest.approx(expected, rel=1e-4)


def test_loss_is_the_mean_of_weighted_samples():
    model_pred, target = torch.zeros(2, 1, 2, 2), torch.stack([torch.full((1, 2, 2), v) for v in (1.0, 3.0)])
    assert denoising_loss(model_pred, target, torch.tensor([1.0, 0.5])).item() == pytest.approx((1 + 4.5) / 2)


def test_min_snr_weights_of_pure_noise_are_refused():
    """With epsilon prediction, min(SNR, gamma) / SNR is 0 / 0 at the last of these steps."""
    config = {"rescale_betas_zero_snr": True, "prediction_type": "epsilon"}
    message = "`snr_gamma` must be none for a model with zero terminal SNR and epsilon prediction, .* got 5.0"
    with pytest.raises(ValueError, match=message):
        build_noise_scheduler(config, snr_gamma=5.0)
    assert build_noise_scheduler(config).config.rescale_betas_zero_snr
    for good in (config | {"prediction_type": "v_prediction"}, config | {"rescale_betas_zero_snr": False}):
        scheduler = build_noise_scheduler(good, snr_gamma=5.0)
        assert min_snr_weights(scheduler, torch.tensor([0, 999]), 5.0).isfinite().all()
