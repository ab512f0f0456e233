"""Encoded crops of a subject's photos: which of them a sample shows, their size in memory, and the loss on them."""

import pickle
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler

from tests.tiny_components import save_drawn_photos
from training.data.frame_pairs import FramePairs, sample_generator, shuffled_index
from training.data.latent_cache import FrameEncoders
from training.data.pair_settings import PairSettings
from training.models.denoiser import Denoiser, StageOneLoss
from training.subject import crop_cache
from training.subject.crop_cache import CachedSubjectPairs
from training.subject.photos import SubjectPairs, load_photos


CROPS = PairSettings(min_crop_scale=0.6)
# Latents and tokens are stored in float16, whose step at 1 is 2^-10.
CLOSE = {"rtol": 2e-3, "atol": 2e-3}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    save_drawn_photos(folder, 0, [0, 8])
    return load_photos(folder)


@pytest.fixture(scope="module")
def encoders(pipeline):
    pipeline.image_encoder.requires_grad_(False)
    return FrameEncoders(pipeline.vae, pipeline.image_encoder, pipeline.feature_extractor)


def cache(pairs, encoders, num_crops=3):
    return CachedSubjectPairs(pairs, encoders, num_crops, show_progress=False)


def crops_of(pairs, photo, num_crops):
    """Yield the crops of one photo and their poses, by the same random draws as the module."""
    for crop in range(num_crops):
        generator = sample_generator(pairs.seed, 2**61 + photo * 2**32 + crop)
        yield pairs.read_frame(photo, torch.rand(3, generator=generator).tolist())


def batch_of(sample):
    return {name: value[None] for name, value in sample.items()}


def test_a_sample_shows_one_crop_of_its_reference_and_one_of_its_target(photos, pipeline, shape, encoders):
    """Compared with crops that the loss encodes; noise and photos equal those of a sample without a cache."""
    direct = SubjectPairs(photos, shape, 1, CROPS)
    cached, loss = cache(direct, encoders), StageOneLoss(pipeline, None, shape)
    known = {}
    for photo in range(2):
        for crop, (pixel_values, pose_map) in enumerate(crops_of(direct, photo, 3)):
            levels = ((pixel_values + 1) * 127.5).round().byte()[None]
            pictures = {"reference_image": levels, "target_image": levels}
            encoded = {name: value[0] for name, value in loss.encode_batch(pictures).items()}
            known[photo, crop] = encoded | {"pose_window": pose_map.repeat(5, 1, 1)}
    seen = Counter()
    for position in range(60):
        sample, other = cached[position], direct[position]
        assert set(sample) == set(other) - {"reference_image", "target_image"} | {
            "image_latents", "image_embeds", "target_mean", "target_std"
        }  # fmt: skip
        for name in ("noise", "posterior_noise", "timestep_draw", "dropout_draw"):
            assert torch.equal(sample[name], other[name])
        found = {}
        for role, names in (
            ("reference", ("image_latents", "image_embeds")),
            ("target", ("target_mean", "target_std", "pose_window")),
        ):
            (found[role],) = [
                place
                for place, values in known.items()
                if all(torch.allclose(sample[name], values[name], **CLOSE) for name in names)
            ]
        assert found["target"][0] == shuffled_index(1, position, 2)
        seen[found["reference"], found["target"]] += 1
    assert len({pair[0] for pair in seen}) == len({pair[1] for pair in seen}) == 6, "every crop is used as both"
    assert len(seen) > 25, "the two crops are drawn separately"


def test_crops_depend_only_on_photos_seed_settings_and_weights(photos, pipeline, shape, encoders):
    """A resumed run makes the same crops, and a larger number of crops includes those of a smaller one."""
    direct = SubjectPairs(photos, shape, 1, CROPS)
    first, again, more = cache(direct, encoders), cache(direct, encoders), cache(direct, encoders, 4)
    assert all(torch.equal(first.crops[name], again.crops[name]) for name in first.crops)
    for name, tensor in first.crops.items():
        kept = more.crops[name].unflatten(0, (2, 4))[:, :3].flatten(0, 1)
        torch.testing.assert_close(tensor, kept, **CLOSE)  # encoded in another batch
    other = cache(SubjectPairs(photos, shape, 2, CROPS), encoders)
    assert not torch.equal(first.crops["mean"], other.crops["mean"])
    copied = pickle.loads(pickle.dumps(first))  # as for a data worker
    assert all(torch.equal(value, copied[5][name]) for name, value in first[5].items())


def test_its_size_is_the_documented_one(photos, shape, encoders):
    """Per cell two numbers of 2 bytes per channel and two of 1 byte; per token its width in numbers of 2 bytes."""
    crops = cache(SubjectPairs(photos, shape, 1, CROPS), encoders).crops
    cells, config = shape.height * shape.width, encoders.image_encoder.config
    tokens = (config.image_size // config.patch_size) ** 2 + 1
    expected = 6 * (cells * (2 * 4 * 2 + 2) + tokens * config.hidden_size * 2)
    assert sum(tensor.nbytes for tensor in crops.values()) == expected
    # The docstring's figures hold at 512x640 with CLIP ViT-B/32.
    crop = 80 * 64 * (2 * 4 * 2 + 2) + 50 * 768 * 2
    prior = 80 * 64 * (3 * 4 * 2 + 10) + 50 * 768 * 2
    assert (round(crop / 1e3), round(prior / 1e3), round(7 * 64 * crop / 1e6)) == (169, 251, 76)
    for figure in ("169 KB", "251 KB", "76 MB"):
        assert figure in crop_cache.__doc__


def test_whole_photos_are_encoded_once(photos, shape, encoders):
    cached = cache(SubjectPairs(photos, shape, 1, PairSettings()), encoders, 64)
    assert len(cached.crops["mean"]) == 2
    assert len({float(cached[position]["target_mean"].sum()) for position in range(8)}) == 2


@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_the_loss_needs_no_encoder_and_equals_that_of_the_pictures(photos, pipeline, shape, encoders, dropout):
    """Also with dropout, because the black picture has been encoded before."""
    direct = SubjectPairs(photos, shape, 1, PairSettings())  # whole photos, so both show the same
    cached = cache(direct, encoders)
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    loss = StageOneLoss(pipeline, scheduler, shape, dropout, 0.0, 0.0)
    module = Denoiser(pipeline.unet, pipeline.adapter)
    for position in range(3):
        expected, _ = loss(module, batch_of(direct[position]))
        with pytest.MonkeyPatch.context() as gone, torch.no_grad():
            gone.setattr(loss, "vae", SimpleNamespace(config=pipeline.vae.config))
            gone.setattr(loss, "image_encoder", None)
            value, _ = loss(module, batch_of(cached[position]))
        assert value.item() == pytest.approx(expected.item(), rel=2e-3)


def test_whole_photos_do_not_change_the_number_of_prior_samples(photos, dataset, shape, encoders):
    prior = FramePairs(dataset, shape, 1)
    cached = cache(SubjectPairs(photos, shape, 1, PairSettings(), prior, 0.99), encoders, 3)
    assert len(cached.crops["mean"]) == 2 and len(cached.prior.samples["mean"]) == 2 * 3
    assert len({float(cached[position]["target_mean"].sum()) for position in range(60)}) >= 6


def test_the_prior_is_encoded_and_keeps_its_share(photos, dataset, pipeline, shape, encoders):
    prior = FramePairs(dataset, shape, 1)
    direct = SubjectPairs(photos, shape, 1, CROPS, prior, 0.25)
    cached, loss = cache(direct, encoders), StageOneLoss(pipeline, None, shape)
    encoded = [loss.encode_batch(batch_of(prior[position])) for position in range(6)]
    num_priors, seen = 0, set()
    for position in range(80):
        sample, other = cached[position], direct[position]
        assert torch.equal(sample["noise"], other["noise"])
        if not torch.equal(other["target_image"], prior[position]["target_image"]):
            continue
        num_priors += 1
        (number,) = [
            number
            for number, values in enumerate(encoded)
            if all(
                torch.allclose(sample[name], values[name][0], **CLOSE)
                for name in ("target_mean", "target_std", "image_latents", "image_embeds", "pose_window")
            )
        ]
        seen.add(number)
    assert 10 <= num_priors <= 32 and len(seen) == 6, "20 of 80 on average, from six encoded samples"
