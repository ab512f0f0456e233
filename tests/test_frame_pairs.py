"""Samples: real windows, one generator a position, the latent cache equal to the direct way."""

import numpy as np
import pytest
import torch

from pipeline_dreampose import DreamPosePipeline, fit_image, iuv_to_pose_map, pose_window, resize_pose_maps
from tests.tiny_components import get_dummy_components
from training.data.frame_pairs import (
    FramePairs,
    LatentFramePairs,
    LatentShape,
    group_videos,
    sample_generator,
    shuffled_index,
)
from training.data.latent_cache import build_latent_cache, latent_cache_path, load_latent_cache
from training.data.procedural_fashion import load_procedural_fashion
from training.denoiser import StageOneLoss


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return load_procedural_fashion("smoke", "train", cache_dir=str(tmp_path_factory.mktemp("datasets")))


@pytest.fixture(scope="module")
def pipeline():
    return DreamPosePipeline(**get_dummy_components())


@pytest.fixture(scope="module")
def shape(pipeline):
    return LatentShape.of(pipeline.vae, 80, 64)


def test_every_epoch_visits_every_row_once_in_another_order():
    epochs = [[shuffled_index(7, epoch * 36 + k, 36) for k in range(36)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(36)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [shuffled_index(8, k, 36) for k in range(36)] != epochs[0]


def test_draws_depend_on_seed_and_position_alone():
    def draw(seed, position):
        return torch.rand(3, generator=sample_generator(seed, position)).tolist()

    assert draw(1, 2) == draw(1, 2)
    assert len({tuple(draw(seed, position)) for seed in range(3) for position in range(3)}) == 9


def test_a_sample_is_the_target_with_the_real_poses_around_it(dataset, shape):
    samples = FramePairs(dataset, shape, seed=0)
    videos = group_videos(dataset)
    assert len(videos) == 6 and all(len(rows) == 6 for rows in videos.values())
    for row in (0, 3, 5):  # the clip's first frame, one inside, its last
        maps = torch.stack([iuv_to_pose_map(dataset[k]["iuv"]) for k in range(6)])
        expected = pose_window(resize_pose_maps(maps, 40, 32), row, 2)
        target = samples.read_target(row)
        assert torch.equal(target["pose_window"], expected)
        assert torch.equal(target["target_pixel_values"], fit_image(dataset[row]["image"], 80, 64))
    inside = samples.read_target(3)["pose_window"].view(5, 2, 40, 32)
    assert len({frame.numpy().tobytes() for frame in inside}) == 5, "five real poses, not one five times"


def test_reference_and_target_come_from_one_video(dataset, shape):
    rows = {fit_image(dataset[k]["image"], 80, 64).numpy().tobytes(): dataset[k] for k in range(len(dataset))}
    for reference_frames in ("any", "first"):
        samples = FramePairs(dataset, shape, seed=0, reference_frames=reference_frames)
        references = []
        for position in range(20):
            sample = samples[position]
            reference, target = (
                rows[sample[f"{name}_pixel_values"].numpy().tobytes()] for name in ("reference", "target")
            )
            assert reference["video_id"] == target["video_id"]
            references.append(reference["frame_index"])
        assert (set(references) == {0}) == (reference_frames == "first")


def test_items_are_reproducible_and_noise_has_its_offset(dataset, shape):
    samples = FramePairs(dataset, shape, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(samples[5].values(), samples[5].values()))
    offset = FramePairs(dataset, shape, seed=3, noise_offset=2.0)[5]["noise"] - samples[5]["noise"]
    np.testing.assert_allclose(offset.std((1, 2)), 0, atol=1e-5)
    assert offset.abs().max() > 0.01


@pytest.mark.parametrize("reference_frames", ["any", "first"])
def test_the_latent_cache_gives_the_samples_of_the_direct_way(dataset, pipeline, shape, tmp_path, reference_frames):
    direct = FramePairs(dataset, shape, seed=1, reference_frames=reference_frames)
    image_size = pipeline.image_encoder.config.image_size
    facts = (tmp_path, direct, pipeline.vae, image_size, pipeline.feature_extractor)
    path = latent_cache_path(*facts)
    build_latent_cache(path, direct, pipeline.vae, image_size, pipeline.feature_extractor)
    cached = LatentFramePairs(dataset, shape, 1, load_latent_cache(path), reference_frames=reference_frames)
    loss = StageOneLoss(pipeline, None, shape)
    for position in (0, 17, 40):
        batch = loss.encode_batch({name: value[None] for name, value in direct[position].items()})
        for name, value in cached[position].items():
            # Latents are kept in fp16, whose step at 1 is 2^-10.
            torch.testing.assert_close(value, batch[name][0], rtol=2e-3, atol=2e-3, msg=name)
    assert [file.suffix for file in tmp_path.iterdir()] == [".safetensors"]
    with torch.no_grad():
        pipeline.vae.quant_conv.bias.add_(1)
        assert latent_cache_path(*facts) != path, "other weights, another cache"
        pipeline.vae.quant_conv.bias.sub_(1)


def test_bad_arguments(dataset, shape):
    with pytest.raises(ValueError, match="`reference_frames` must be one of .*got 'last'"):
        FramePairs(dataset, shape, 0, reference_frames="last")
    with pytest.raises(ValueError, match="`dataset` must have at least one row, got 0"):
        FramePairs(dataset.select([]), shape, 0)
