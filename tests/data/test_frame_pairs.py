"""Samples: pose windows, one generator per position, the distance of references, bad rows."""

import errno
import io
import os
import pickle
from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from pipeline_dreampose import fit_image, iuv_to_pose_map, pose_window, resize_pose_maps, to_rgb
from tests.odd_pictures import BROKEN_EXIF, REFUSED, forbid_ghostscript
from training.data.frame_pairs import (
    BadRow,
    FramePairs,
    LatentShape,
    Picture,
    group_videos,
    sample_generator,
    shuffled_index,
)
from training.data.pair_settings import PairSettings
from training.data.random_crops import to_pixel_values


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
        assert torch.equal(to_pixel_values(target["target_image"]), fit_image(dataset[row]["image"], 80, 64))
    inside = samples.read_target(3)["pose_window"].view(5, 2, 40, 32)
    assert len({frame.numpy().tobytes() for frame in inside}) == 5, "five real poses, not one five times"


def test_each_map_is_read_once(dataset, shape, monkeypatch):
    samples, reads = FramePairs(dataset, shape, seed=0), Counter()
    read = samples._read

    def count(row, column):
        reads[row, column] += 1
        return read(row, column)

    monkeypatch.setattr(samples, "_read", count)
    epochs = [[samples[epoch * 36 + k] for k in range(36)] for epoch in range(2)]
    assert len(epochs[0]) == 36 and all(reads[row, "iuv"] == 1 for row in range(36))
    assert sum(reads[row, "image"] for row in range(36)) == 2 * 2 * 36, "pictures are not kept"
    anew = FramePairs(dataset, shape, seed=0)
    for position in (36, 40, 71):  # read from one memo, decoded in the other
        assert all(torch.equal(value, anew[position][name]) for name, value in epochs[1][position - 36].items())
    crops = FramePairs(dataset, shape, 0, PairSettings(min_crop_scale=0.5))
    assert crops.pose_memo is None, "the map of a crop never occurs again"


def test_workers_share_the_maps_and_a_separate_process_reads_them_again(dataset, shape):
    samples = FramePairs(dataset, shape, seed=0)
    for batch in DataLoader(samples, 6, sampler=range(36), num_workers=2, multiprocessing_context="fork"):
        assert batch["pose_window"].shape[0] == 6
    known = [samples.pose_memo.get(row) for row in range(36)]
    assert None not in known and known[7][1] == dataset[7]["iuv"].size
    other = pickle.loads(pickle.dumps(samples))
    assert other.pose_memo.get(7) is None and torch.equal(other.read_pose_map(7), known[7][0])


@pytest.mark.parametrize("fault", ["full disk", "no folder"])
def test_where_maps_cannot_be_kept_they_are_read_again(dataset, shape, monkeypatch, caplog, tmp_path, fault):
    expected = FramePairs(dataset, shape, seed=0)[5]
    if fault == "full disk":

        def fail(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "posix_fallocate", fail, raising=False)
    else:
        (tmp_path / "file").write_text("in the way")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "cache")
    samples = FramePairs(dataset, shape, seed=0)
    assert samples.pose_memo is None and "Pose maps are not kept" in caplog.text
    assert all(torch.equal(value, samples[5][name]) for name, value in expected.items())


def test_reference_and_target_come_from_one_video(dataset, shape):
    rows = {fit_image(dataset[k]["image"], 80, 64).numpy().tobytes(): dataset[k] for k in range(len(dataset))}
    for reference_frames in ("any", "first"):
        samples = FramePairs(dataset, shape, 0, PairSettings(reference_frames=reference_frames))
        references = []
        for position in range(20):
            sample = samples[position]
            reference, target = (
                rows[to_pixel_values(sample[f"{name}_image"]).numpy().tobytes()] for name in ("reference", "target")
            )
            assert reference["video_id"] == target["video_id"]
            references.append(reference["frame_index"])
        assert (set(references) == {0}) == (reference_frames == "first")


def test_items_are_reproducible_and_noise_has_its_offset(dataset, shape):
    samples = FramePairs(dataset, shape, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(samples[5].values(), samples[5].values()))
    offset = FramePairs(dataset, shape, 3, PairSettings(noise_offset=2.0))[5]["noise"] - samples[5]["noise"]
    np.testing.assert_allclose(offset.std((1, 2)), 0, atol=1e-5)
    assert offset.abs().max() > 0.01


def test_the_order_of_the_draws(dataset, shape):
    """A later draw changes no earlier one, so the recipe of a trained model stays valid."""
    generator = sample_generator(3, 5)
    target, size = shuffled_index(3, 5, len(dataset)), (shape.channels, shape.height, shape.width)
    rows = next(rows for rows in group_videos(dataset).values() if target in rows)
    reference = rows[int(torch.randint(len(rows), (), generator=generator))]
    noise, posterior_noise = torch.randn(size, generator=generator), torch.randn(size, generator=generator)
    noise = noise + 0.5 * torch.randn(shape.channels, 1, 1, generator=generator)
    timestep, dropout = (torch.rand((), generator=generator) for _ in range(2))
    for settings in ({}, {"min_crop_scale": 0.5}, {"max_reference_distance": 5}, {"bad_rows": "skip"}):
        sample = FramePairs(dataset, shape, 3, PairSettings(noise_offset=0.5, **settings))[5]
        assert torch.equal(to_pixel_values(sample["reference_image"]), fit_image(dataset[reference]["image"], 80, 64))
        assert torch.equal(sample["noise"], noise) and torch.equal(sample["posterior_noise"], posterior_noise)
        assert (sample["timestep_draw"], sample["dropout_draw"]) == (timestep, dropout)


def test_the_distance_of_the_reference(dataset, shape):
    """All frames within the distance are equally likely, and none beyond it is drawn."""
    samples = FramePairs(dataset, shape, 0, PairSettings(max_reference_distance=2))
    drawn = []
    samples.read_reference = lambda row: drawn.append(row) or {}
    samples.read_target = lambda row, crop: {}
    for row, near in ((6 + 3, {7, 8, 9, 10, 11}), (6, {6, 7, 8})):
        drawn.clear()
        for position in range(600):
            samples.read_sample(row, sample_generator(1, position))
        counts = Counter(drawn)
        assert set(counts) == near
        # A share of 1/5 or 1/3 of 600 has a standard deviation of at most 12.
        assert max(abs(count - 600 / len(near)) for count in counts.values()) < 48


def test_cropped_frames_fill_the_canvas(dataset, shape):
    wide = LatentShape(shape.channels, 20, 32, 40, 64)
    pictures = [dataset[row]["image"] for row in range(2)]
    samples = FramePairs(dataset.select(range(2)), wide, 0, PairSettings(fit="crop"))
    for row, picture in enumerate(pictures):  # the middle 64x40 of 64x80, pixel by pixel
        assert torch.equal(samples.read_pixel_values(row), fit_image(picture.crop((0, 20, 64, 60)), 40, 64))
        cut = iuv_to_pose_map(dataset[row]["iuv"].crop((0, 20, 64, 60)))[None]
        assert torch.equal(samples.read_frame(row)[1], resize_pose_maps(cut, 20, 32)[0])


def undecoded(dataset):
    return dataset.cast_column("image", datasets.Image(decode=False)).cast_column("iuv", datasets.Image(decode=False))


def spoil(dataset, changes):
    """Replace columns of the rows named in `changes`, or drop the row where the change is `None`."""
    rows = enumerate(undecoded(dataset))
    rows = [row | changes.get(number, {}) for number, row in rows if changes.get(number, 0) is not None]
    return datasets.Dataset.from_list(rows, features=dataset.features)


@pytest.fixture(scope="module")
def faults(dataset):
    """Changes that spoil a row of the first video, and the error message for each."""
    rows = undecoded(dataset.select(range(6)))
    picture = rows[2]["image"]["bytes"]
    small = dataset[2]["image"].resize((32, 40))
    return {
        "truncated": ({"image": {"bytes": picture[: len(picture) // 2], "path": None}}, "its `image` cannot be read"),
        "no picture": ({"iuv": {"bytes": b"<html>", "path": None}}, "its `iuv` cannot be read"),
        "missing": ({"image": None}, "it has no `image`"),
        "no IUV": ({"iuv": {"bytes": picture, "path": None}}, "its `iuv` is not an IUV picture"),
        "sizes": ({"image": small}, r"its picture has \(32, 40\) pixels and its pose map \(64, 80\)"),
        "gap": (None, r"the frames around it are \[0, 1, 3, 4\], which do not follow one another"),
        "twice": ({"frame_index": 1}, r"the frames around it are \[0, 1, 1, 3\], which do not follow"),
    }


@pytest.mark.parametrize("kind", ["truncated", "no picture", "missing", "no IUV", "sizes", "gap", "twice"])
def test_a_bad_row_is_named_or_skipped(dataset, shape, faults, kind):
    change, message = faults[kind]
    spoilt = spoil(dataset.select(range(12)), {2: change})
    frame, row = {"gap": (1, 1), "twice": (1, 1)}.get(kind, (2, 2))
    match = f"`dataset` must hold whole rows, got frame {frame} of video '.*-000000': {message}"
    with pytest.raises(BadRow, match=match):
        FramePairs(spoilt, shape, 0).read_target(row)
    raising = FramePairs(spoilt, shape, 0)
    with pytest.raises(BadRow, match=message[:12]):
        [raising[position] for position in range(len(spoilt))]
    skipping = FramePairs(spoilt, shape, 0, PairSettings(bad_rows="skip", reference_frames="first"))
    samples, again = ([skipping[position] for position in range(len(spoilt))] for _ in range(2))
    assert [sample["num_bad_rows"] for sample in samples] == [sample["num_bad_rows"] for sample in again]
    assert sum(sample["num_bad_rows"] for sample in samples) >= 1
    for position, sample in enumerate(samples):
        if sample["num_bad_rows"]:  # the next row in the epoch's order, with the draws of this position
            row = shuffled_index(0, position + int(sample.pop("num_bad_rows")), len(spoilt))
            expected = skipping.read_sample(row, sample_generator(0, position))
            assert all(torch.equal(sample[name], value) for name, value in expected.items())


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("column", ["image", "iuv"])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_rows_of_other_formats_and_bombs_are_bad(dataset, shape, monkeypatch, column, kind):
    content, message = REFUSED[kind]
    spoilt = spoil(dataset.select(range(6)), {2: {column: {"bytes": content, "path": None}}})
    forbid_ghostscript(monkeypatch)
    with pytest.raises(BadRow, match=f"frame 2 of video .*: its `{column}` cannot be read .{message}"):
        FramePairs(spoilt, shape, 0).read_target(2)


def test_rows_name_local_files_only(dataset, shape, tmp_path):
    dataset[2]["image"].save(tmp_path / "2.png")
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "http://127.0.0.1:9/2.png"):
        spoilt = spoil(dataset.select(range(6)), {2: {"image": {"bytes": None, "path": str(path)}}})
        with pytest.raises(BadRow, match="frame 2 of video .*: its `image` cannot be read .it is not a file"):
            FramePairs(spoilt, shape, 0).read_target(2)
    named = spoil(dataset.select(range(6)), {2: {"image": {"bytes": None, "path": str(tmp_path / "2.png")}}})
    assert torch.equal(FramePairs(named, shape, 0).read_image(2), FramePairs(dataset, shape, 0).read_image(2))


def test_odd_pictures_that_viewers_show_are_good_rows(dataset, shape):
    picture, odd = dataset[2]["image"], []
    levels = np.asarray(picture.convert("L"))
    gray = Image.fromarray(levels.astype(np.int32))  # mode I with 8-bit levels
    for image, file_format, options in ((picture, "PNG", {"exif": BROKEN_EXIF}), (gray, "TIFF", {})):
        image.save(buffer := io.BytesIO(), file_format, **options)
        spoilt = spoil(dataset.select(range(6)), {2: {"image": {"bytes": buffer.getvalue(), "path": None}}})
        odd.append(FramePairs(spoilt, shape, 0).read_image(2))
    assert torch.equal(odd[0], FramePairs(dataset, shape, 0).read_image(2))
    assert torch.equal(odd[1][0], torch.from_numpy(levels.copy()))


def test_skipping_is_the_same_in_worker_processes(dataset, shape, faults):
    spoilt = spoil(dataset.select(range(12)), {2: faults["truncated"][0]})
    skipping = FramePairs(spoilt, shape, 0, PairSettings(bad_rows="skip"))
    alone = [skipping[position] for position in range(12)]
    for batch, sample in zip(DataLoader(skipping, batch_size=None, num_workers=2), alone):
        assert all(torch.equal(batch[name], value) for name, value in sample.items())


def test_only_bad_rows_end_in_an_error(dataset, shape, faults):
    spoilt = spoil(dataset.select(range(2)), dict.fromkeys(range(2), faults["truncated"][0]))
    with pytest.raises(ValueError, match="`dataset` must have at least one usable row, but all 2 are bad"):
        FramePairs(spoilt, shape, 0, PairSettings(bad_rows="skip"))[0]


def test_bad_arguments(dataset, shape):
    with pytest.raises(ValueError, match="`dataset` must have at least one row, got 0"):
        FramePairs(dataset.select([]), shape, 0)


def test_a_dark_crop_of_a_picture_of_floats_keeps_its_levels():
    levels = np.full((4, 6), 0.5, np.float32)
    levels[:, 3:] = 200  # so that the picture's levels are 0..255
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "TIFF")
    picture = Picture().decode_example({"bytes": file.getvalue(), "path": None})
    assert np.asarray(to_rgb(picture.crop((0, 0, 3, 4)))).max() <= 1
