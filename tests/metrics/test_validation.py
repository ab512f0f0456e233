"""Held-out pairs and their figures, the animated held-out clip, and bad rows, which raise or are replaced."""

from types import SimpleNamespace
from unittest import mock

import datasets
import pytest
import torch
from PIL import Image

from training.data.frame_pairs import BadRow, FramePairs
from training.data.pair_settings import PairSettings
from training.metrics.frames import l1, psnr, ssim, temporal_error
from training.metrics.validation import HeldOutClip, HeldOutPairs


SKIP = PairSettings(bad_rows="skip")


def spoil(dataset, changes):
    """Replace columns of some rows."""
    undecoded = datasets.Image(decode=False)
    rows = dataset.cast_column("image", undecoded).cast_column("iuv", undecoded)
    rows = [row | changes.get(number, {}) for number, row in enumerate(rows)]
    return datasets.Dataset.from_list(rows, features=dataset.features)


NO_PICTURE = {"image": {"bytes": b"<html>", "path": None}}
NO_MAP = {"iuv": {"bytes": b"<html>", "path": None}}


def rows_of(pairs, samples):
    """Return for each pair the rows of photo and target and the number of poses."""
    pictures = {samples.dataset[row]["image"].tobytes(): row for row in range(len(samples))}
    truths = {samples.read_pixel_values(row).numpy().tobytes(): row for row in range(len(samples))}
    return [(pictures[p.photo.tobytes()], truths[p.truth.numpy().tobytes()], len(p.poses)) for p in pairs.pairs]


def test_figures_are_those_of_the_whole_clips(dataset, pipeline, shape):
    samples = FramePairs(dataset, shape, 0)
    prediction, truth = [], []
    for clip, target in enumerate((3, 2, 1)):
        rows = dataset.select(range(6 * clip, 6 * clip + 6))
        generator = torch.Generator().manual_seed(7)
        frames = pipeline(
            rows[0]["image"], rows["iuv"][:], frame_indices=[target], num_inference_steps=2, generator=generator,
            output_type="pt",
        ).frames[0]  # fmt: skip
        prediction.append(frames[0])
        truth.append(samples.read_pixel_values(6 * clip + target) / 2 + 0.5)
    metrics = {"l1": l1, "psnr": psnr, "ssim": ssim}
    expected = {n: metric(torch.stack(prediction), torch.stack(truth)).mean().item() for n, metric in metrics.items()}
    assert HeldOutPairs(pipeline, samples, 7, num_pairs=3, num_inference_steps=2)(None, 0) == expected


def test_only_frames_in_the_windows_are_read_and_kept(dataset, pipeline, shape):
    samples = FramePairs(dataset, shape, 0)
    with mock.patch.object(samples, "dataset", None):  # its rows would decode a picture with every pose
        pairs = HeldOutPairs(pipeline, samples, 0)
    # Targets 3, 2, 1, 0, 5, 4 of clips of six frames.
    assert rows_of(pairs, samples) == [(0, 3, 5), (6, 8, 5), (12, 13, 4), (18, 18, 3), (24, 29, 3), (30, 34, 4)]


def test_bad_rows_raise(dataset, pipeline, shape):
    for row, change, message in (
        (0, NO_PICTURE, "frame 0 of video '.*': its `image` cannot be read"),
        (8, NO_PICTURE, "frame 2 of video '.*': its `image` cannot be read"),
        (5, NO_MAP, "frame 5 of video '.*': its `iuv` cannot be read"),
    ):
        with pytest.raises(BadRow, match=f"`dataset` must hold whole rows, got {message}"):
            HeldOutPairs(pipeline, FramePairs(spoil(dataset, {row: change}), shape, 0), 0)


def test_the_clip_s_next_good_frame_replaces_a_bad_one(dataset, pipeline, shape):
    changes = {0: NO_PICTURE, 3: NO_PICTURE}  # the photo and the target; windows may still use the target's map
    changes |= {8: {"image": dataset[8]["image"].resize((32, 40))}}
    changes |= {17: NO_MAP}  # at the other end of the clip of target 13
    changes |= {23: NO_MAP, 18: NO_PICTURE}
    changes |= dict.fromkeys(range(24, 30), NO_MAP)  # no target in this clip
    changes |= {32: {"iuv": dataset[32]["iuv"].resize((32, 40))}}  # in the window of target 34
    samples = FramePairs(spoil(dataset, changes), shape, 0, SKIP)
    pairs = HeldOutPairs(pipeline, samples, 0, num_inference_steps=2)
    whole = FramePairs(dataset, shape, 0)
    assert rows_of(pairs, whole) == [(1, 4, 4), (6, 9, 5), (12, 13, 4), (19, 19, 4), (30, 35, 3)]
    assert pairs(None, 0)["psnr"] > 3


def test_nothing_but_bad_rows_is_refused(dataset, pipeline, shape):
    samples = FramePairs(spoil(dataset.select(range(6)), dict.fromkeys(range(6), NO_MAP)), shape, 0, SKIP)
    with pytest.raises(ValueError, match="`samples` must have a clip with a good photo and a good target, got bad"):
        HeldOutPairs(pipeline, samples, 0)


NO_TRACKERS = SimpleNamespace(trackers=[])


def test_a_clip_is_animated_and_shown(dataset, pipeline, shape, tmp_path):
    samples = FramePairs(dataset, shape, 0)
    clip = HeldOutClip(pipeline, samples, NO_TRACKERS, tmp_path, 7, num_frames=4, num_inference_steps=2)
    figures = clip(None, 12)
    frames = pipeline(
        dataset[0]["image"], dataset["iuv"][:4], num_inference_steps=2, generator=torch.Generator().manual_seed(7),
        output_type="pt",
    ).frames[0]  # fmt: skip
    truth = torch.stack([samples.read_pixel_values(row) for row in range(4)]) / 2 + 0.5
    assert figures == pytest.approx({"temporal_error": temporal_error(frames, truth).item()}, rel=1e-4)
    files = [tmp_path / "validation" / f"step-000012.{suffix}" for suffix in ("gif", "mp4", "png")]
    assert sorted((tmp_path / "validation").iterdir()) == files
    assert Image.open(files[0]).n_frames == 4 and Image.open(files[0]).size == (64, 80)
    strip = Image.open(files[2])
    assert strip.size == (5 * 68 - 4, 3 * 84 - 4), "photo and four frames; poses, truth, prediction"
    assert strip.crop((68, 84, 132, 164)).tobytes() == dataset[0]["image"].tobytes()


def test_frames_are_sampled_one_at_a_time(dataset, pipeline, shape, tmp_path):
    """A GPU with just enough memory to train can then also validate."""
    samples, frames, latents = FramePairs(dataset, shape, 0), [], []
    hooks = [
        pipeline.unet.register_forward_pre_hook(lambda unet, inputs: frames.append(len(inputs[0]))),
        pipeline.vae.decoder.register_forward_pre_hook(lambda decoder, inputs: latents.append(len(inputs[0]))),
    ]
    how = {"num_inference_steps": 2}
    HeldOutClip(pipeline, samples, NO_TRACKERS, tmp_path, 7, num_frames=4, **how)(None, 0)
    HeldOutPairs(pipeline, samples, 7, num_pairs=2, **how)(None, 0)
    for hook in hooks:
        hook.remove()
    # The three branches of one frame; of the first step, later frames need the branch with their pose alone.
    assert set(frames) == {1, 3} and set(latents) == {1}
    assert (len(frames), len(latents)) == (2 * (4 + 2), 4 + 2)


def test_a_clip_without_bad_rows_is_taken(dataset, pipeline, shape, tmp_path):
    spoilt = spoil(dataset, {2: NO_PICTURE, 9: NO_MAP})
    clip = HeldOutClip(pipeline, FramePairs(spoilt, shape, 0, SKIP), NO_TRACKERS, tmp_path, 0)
    assert clip.photo.tobytes() == dataset[12]["image"].tobytes() and len(clip.poses) == 6
    with pytest.raises(BadRow, match="frame 2 of video '.*': its `image` cannot be read"):
        HeldOutClip(pipeline, FramePairs(spoilt, shape, 0), NO_TRACKERS, tmp_path, 0)
    none = spoil(dataset, dict.fromkeys(range(0, 36, 6), NO_MAP))
    with pytest.raises(ValueError, match="`samples` must have a clip without bad rows, got bad rows in each"):
        HeldOutClip(pipeline, FramePairs(none, shape, 0, SKIP), NO_TRACKERS, tmp_path, 0)


def test_a_clip_of_poses_of_several_sizes_is_bad(dataset, pipeline, shape, tmp_path):
    resized = {name: dataset[2][name].resize((32, 40), Image.Resampling.NEAREST) for name in ("image", "iuv")}
    spoilt = spoil(dataset, {2: resized})
    clip = HeldOutClip(pipeline, FramePairs(spoilt, shape, 0, SKIP), NO_TRACKERS, tmp_path, 0)
    assert clip.photo.tobytes() == dataset[6]["image"].tobytes()
    with pytest.raises(BadRow, match="the pose maps from this frame on have several sizes"):
        HeldOutClip(pipeline, FramePairs(spoilt, shape, 0), NO_TRACKERS, tmp_path, 0)
