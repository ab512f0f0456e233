import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from training.metrics import frames as metrics


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(3, 3, 24, 20, generator=generator)
    noise = torch.randn(3, 3, 24, 20, generator=generator) * torch.tensor([0.02, 0.1, 0.3]).reshape(3, 1, 1, 1)
    return (target + noise).clamp(0, 1), target


def as_numpy(images):
    return images.permute(0, 2, 3, 1).numpy().astype(np.float64)


def test_worked_out_by_hand():
    target = torch.zeros(1, 3, 2, 2)
    prediction = target.clone()
    prediction[0, :, 0, 0] = 0.5
    assert metrics.l1(prediction, target).tolist() == [0.125]
    assert metrics.psnr(prediction, target).item() == pytest.approx(-10 * math.log10(0.25 / 4))
    mask = torch.zeros(1, 2, 2, dtype=torch.bool)
    mask[0, 0] = True
    assert metrics.l1(prediction, target, mask).tolist() == [0.25]
    assert metrics.psnr(prediction, target, mask).item() == pytest.approx(-10 * math.log10(0.25 / 2))


def test_equal_pictures(pair):
    _, target = pair
    assert metrics.l1(target, target).eq(0).all()
    assert metrics.psnr(target, target).isinf().all()
    torch.testing.assert_close(metrics.ssim(target, target), torch.ones(3))


def test_psnr_agrees_with_scikit_image_for_each_image(pair):
    prediction, target = pair
    expected = [
        peak_signal_noise_ratio(a, b, data_range=1.0)
        for a, b in zip(as_numpy(target), as_numpy(prediction), strict=True)
    ]
    np.testing.assert_allclose(metrics.psnr(prediction, target).numpy(), expected, rtol=1e-5)


def test_ssim_agrees_with_scikit_image_for_each_image(pair):
    # scikit-image's mean leaves out a border, and its filter reflects differently: pad the borders and use its map
    # inside them.
    prediction, target = (continue_borders(images) for images in pair)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    expected = [
        structural_similarity(a, b, channel_axis=-1, full=True, **options)[1][5:-5, 5:-5].mean()
        for a, b in zip(as_numpy(target), as_numpy(prediction), strict=True)
    ]
    np.testing.assert_allclose(metrics.ssim(*pair).numpy(), expected, atol=1e-5)


def continue_borders(images):
    """Continue the borders like torchmetrics, so that scikit-image's inner pixels are our whole picture."""
    return torch.nn.functional.pad(images, (5, 5, 5, 5), mode="reflect")


def test_a_batch_equals_its_singles(pair):
    prediction, target = pair
    for metric in (metrics.l1, metrics.psnr, metrics.ssim):
        singles = torch.cat([metric(prediction[i : i + 1], target[i : i + 1]) for i in range(3)])
        assert singles.shape == (3,)
        torch.testing.assert_close(metric(prediction, target), singles)


def test_masked_psnr_ignores_what_lies_outside(pair):
    prediction, target = pair
    mask = torch.zeros(3, 24, 20, dtype=torch.bool)
    mask[:, 4:12, 5:15] = True
    cropped = metrics.psnr(prediction[..., 4:12, 5:15], target[..., 4:12, 5:15])
    torch.testing.assert_close(metrics.psnr(prediction, target, mask), cropped)
    torch.testing.assert_close(
        metrics.l1(prediction, target, mask), metrics.l1(prediction[..., 4:12, 5:15], target[..., 4:12, 5:15])
    )
    everywhere = torch.ones_like(mask)
    torch.testing.assert_close(metrics.psnr(prediction, target, everywhere), metrics.psnr(prediction, target))
    assert metrics.psnr(prediction, target, ~everywhere).isnan().all()
    assert metrics.l1(prediction, target, ~everywhere).isnan().all()


def test_silhouette_finds_a_square_and_compares_by_the_largest_channel():
    images = torch.full((1, 3, 8, 8), 0.9)
    images[0, 2, 2:6, 2:6] = 0.6
    found = metrics.silhouette(images, torch.full((3,), 0.9), threshold=0.2)
    assert found.sum() == 16 and found[0, 2:6, 2:6].all()
    assert not metrics.silhouette(images, torch.full((3,), 0.9), threshold=0.4).any()
    two = torch.cat([images, images - 0.3])
    torch.testing.assert_close(metrics.silhouette(two, torch.tensor([[0.9] * 3, [0.6] * 3]), 0.2)[1], found[0])


def test_silhouette_iou_by_hand():
    prediction = torch.zeros(3, 4, 4, dtype=torch.bool)
    target = prediction.clone()
    prediction[0, :2], target[0, 1:3] = True, True  # 4 of 12 pixels shared
    prediction[1, 0] = True  # nothing shared
    torch.testing.assert_close(metrics.silhouette_iou(prediction, target), torch.tensor([1 / 3, 0.0, 1.0]))


def test_temporal_error_sees_flicker_and_no_constant_offset():
    target = torch.linspace(0.2, 0.6, 5).reshape(5, 1, 1, 1).expand(5, 3, 4, 4)
    assert metrics.temporal_error(target + 0.1, target).item() == pytest.approx(0, abs=1e-6)
    flicker = torch.tensor([0.1, 0.0, 0.1, 0.0, 0.1]).reshape(5, 1, 1, 1)
    assert metrics.temporal_error(target + flicker, target).item() == pytest.approx(0.1, abs=1e-6)


def test_mean_and_standard_error_by_hand():
    result = metrics.mean_and_standard_error(torch.tensor([1.0, 3.0, float("nan"), 5.0]))
    assert result == {"mean": 3.0, "standard_error": pytest.approx(2 / 3**0.5), "n": 3}
    single = metrics.mean_and_standard_error(torch.tensor([2.0]))
    assert single == {"mean": 2.0, "standard_error": None, "n": 1}
    nothing = metrics.mean_and_standard_error(torch.tensor([float("nan")]))
    assert nothing == {"mean": None, "standard_error": None, "n": 0}


def test_background_color_is_the_median_of_the_border():
    images = torch.full((2, 3, 10, 8), 0.9)
    images[:, :, 2:, 3:5] = 0.1  # a figure on the lower border
    images[1] *= 0.5
    torch.testing.assert_close(metrics.background_color(images), torch.tensor([[0.9] * 3, [0.45] * 3]))


def test_flicker_is_the_second_difference_of_the_background():
    levels = torch.tensor([0.2, 0.5, 0.2, 0.2]).reshape(4, 1, 1, 1)
    frames = levels.expand(4, 3, 4, 4).clone()
    frames[..., 2:] = torch.linspace(0, 1, 4).reshape(4, 1, 1, 1)  # a person who moves evenly
    background = torch.zeros(4, 4, dtype=torch.bool)
    background[:, :2] = True
    assert metrics.flicker(frames, background).item() == pytest.approx((0.6 + 0.3) / 2, abs=1e-6)
    assert metrics.flicker(frames, ~background).item() == pytest.approx(0, abs=1e-6)
    assert metrics.flicker(frames, background & ~background).isnan()


def test_identity_distance_by_hand():
    features = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0], [-1.0, 0.0]])
    target = torch.tensor([[5.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    expected = torch.tensor([0.0, 2**0.5, (2 - 2**0.5) ** 0.5, 2.0])  # angles of 0, 90, 45 and 180 degrees
    torch.testing.assert_close(metrics.identity_distance(features, target), expected)


def test_frechet_distance_by_hand():
    # Means 1 and 2, variances 2 and 8: (1 - 2)^2 + 2 + 8 - 2 sqrt(2 * 8).
    first, second = torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [4.0]])
    assert metrics.frechet_distance(first, second).item() == pytest.approx(3)
    assert metrics.frechet_distance(first, first + 3).item() == pytest.approx(9)
    assert metrics.frechet_distance(first, first).item() == pytest.approx(0, abs=1e-6)


def test_frechet_distance_agrees_with_numpy():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(40, 5)) @ rng.normal(size=(5, 5)), rng.normal(0.3, 2, (30, 5))
    covariances = [np.cov(features, rowvar=False) for features in (first, second)]
    values, vectors = np.linalg.eigh(covariances[0])
    root = vectors @ np.diag(np.sqrt(values)) @ vectors.T  # tr (S S')^1/2 = tr (S^1/2 S' S^1/2)^1/2, symmetric
    cross = np.sqrt(np.linalg.eigvalsh(root @ covariances[1] @ root)).sum()
    expected = ((first.mean(0) - second.mean(0)) ** 2).sum() + sum(map(np.trace, covariances)) - 2 * cross
    found = metrics.frechet_distance(torch.from_numpy(first), torch.from_numpy(second))
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_refusals(pair):
    prediction, target = pair
    mask = torch.ones(3, 24, 20, dtype=torch.bool)
    with pytest.raises(ValueError, match="`prediction` and `target` must have one shape"):
        metrics.l1(prediction, target[:, :, :4])
    with pytest.raises(ValueError, match=r"`prediction` must be floating point within \[0, 1\]"):
        metrics.psnr(prediction * 2 - 1, target)
    with pytest.raises(ValueError, match="`target` must be floating point"):
        metrics.l1(prediction, target.mul(255).byte())
    with pytest.raises(ValueError, match="sides of at least 11"):
        metrics.ssim(prediction[..., :8, :], target[..., :8, :])
    with pytest.raises(ValueError, match="`mask` must be boolean"):
        metrics.l1(prediction, target, mask[:2])
    with pytest.raises(ValueError, match="`mask` must be boolean"):
        metrics.psnr(prediction, target, mask.float())
    with pytest.raises(ValueError, match="`target` must be boolean"):
        metrics.silhouette_iou(mask, mask[:, :3])
    with pytest.raises(ValueError, match="`background_color` must have shape"):
        metrics.silhouette(target, torch.zeros(4))
    with pytest.raises(ValueError, match="`threshold` must lie within"):
        metrics.silhouette(target, torch.zeros(3), 1.0)
    with pytest.raises(ValueError, match="at least 2 frames"):
        metrics.temporal_error(prediction[:1], target[:1])
    with pytest.raises(ValueError, match="`frames` must hold at least 3 frames, got 2"):
        metrics.flicker(prediction[:2], mask[0])
    with pytest.raises(ValueError, match=r"`background` must be boolean of shape \[1, 24, 20\]"):
        metrics.flicker(prediction, mask[0, :4])
    with pytest.raises(ValueError, match=r"`features` and `target_features` must have one shape \[B, D\]"):
        metrics.identity_distance(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"must have shapes \[N >= 2, D\] and \[M >= 2, D\], got \[\[1, 3\]"):
        metrics.frechet_distance(torch.zeros(1, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="`values` must be 1-dimensional"):
        metrics.mean_and_standard_error(torch.zeros(2, 2))
