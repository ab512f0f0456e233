"""Existing DensePose output, matched to the frames of a clip by the numbers in file names."""

import numpy as np
import pytest
from PIL import Image

from pipeline_dreampose import iuv_to_pose_map
from training.media.pictures import write_frames
from training.poses import matching
from training.poses.clip_poses import ClipDropped
from training.poses.clip_settings import PoseSettings
from training.poses.detections import Detection
from training.poses.matching import match_poses


SIZE = (6, 8)  # width and height


def iuv(value, size=SIZE):
    """An IUV picture that shows a person on all but its first column; V and U tell which one it is."""
    frame = np.zeros((size[1], size[0], 3), np.uint8)
    frame[:, 1:] = (value, 255 - value, 3)
    return frame


def write(folder, numbers, prefix="", frame=iuv):
    """Write pictures whose value is their number."""
    folder.mkdir()
    for number in numbers:
        Image.fromarray(frame(number)).save(folder / f"{prefix}{number:04d}.png")
    return folder


def values(matched):
    return [int(frame[0, 1, 0]) for frame in matched.poses]


def test_poses_are_matched_by_number_and_what_does_not_match_is_named(tmp_path):
    folder = write(tmp_path / "poses", [101, 102, 104, 105, 106], prefix="iuv_")
    matched = match_poses(folder, [100, 101, 102, 103, 104], 5, SIZE)
    assert values(matched) == [101, 101, 102, 102, 104] and matched.filled == [0, 3]
    assert matched.notices == ["poses without a frame, by their numbers: [105, 106]."]
    np.testing.assert_array_equal(matched.poses[1], iuv(101))
    with pytest.raises(ClipDropped, match="`max_gap` must be at least 1 for the gap at frame 0, got 0"):
        match_poses(folder, [100, 101, 102, 103, 104], 5, SIZE, PoseSettings(max_gap=0))


def test_pictures_that_show_nobody_are_gaps(tmp_path):
    folder = write(tmp_path / "poses", [1, 2, 3], frame=lambda number: iuv(number) * (number != 2))
    matched = match_poses(folder, [1, 2, 3], 3, SIZE)
    assert values(matched) == [1, 1, 3] and matched.filled == [1]
    with pytest.raises(ClipDropped, match="`iuv_dir` must show a person, got none in any of 2"):
        match_poses(write(tmp_path / "nobody", [0, 1], frame=lambda number: iuv(number) * 0), [0, 1], 2, SIZE)


def test_one_missing_pose_does_not_shift_the_others(tmp_path):
    matched = match_poses(write(tmp_path / "poses", [1, 2, 4]), [1, 2, 3], 3, SIZE)
    assert values(matched) == [1, 2, 2] and matched.filled == [2]


@pytest.mark.parametrize("first", [0, 1])
def test_numbers_of_a_video_s_poses_start_at_0_or_1(tmp_path, first):
    folder = write(tmp_path / "poses", [number + first for number in (0, 1, 3, 4)])
    matched = match_poses(folder, None, 5, SIZE)
    assert values(matched) == [first, 1 + first, 1 + first, 3 + first, 4 + first] and matched.filled == [2]


@pytest.mark.parametrize(
    "numbers, frames, num_frames, reason",
    [
        ([1, 2, 3], [11, 12, 13, 14], 4, "its 4 frames have the numbers 11 to 14 and its 3 poses 1 to 3. A frame and"),
        ([0, 1, 2], [1, 2, 3], 3, "its 3 frames have the numbers 1 to 3 and its 3 poses 0 to 2. A frame and its pose"),
        (
            [0, 2, 3],
            [1, 2, 3, 4],
            4,
            "its 4 frames have the numbers 1 to 4 and its 3 poses 0 to 3. A frame and",
        ),
        (
            [0, 33, 66, 99],
            [*range(9)],
            9,
            "`max_gap` .* got 5. Poses without a frame, by their numbers: .33, 66",
        ),
        ([0, 1, 2], [], 5, "no number counts its 5 frames, and it has 3 poses"),
        ([1, 2, 3], None, 5, "do not tell whether its first frame has the number 0 or 1"),
        ([7, 8, 9], None, 5, "the numbers 7 to 9, which do not tell"),
    ],
)
def test_poses_that_cannot_be_matched_drop_the_clip(tmp_path, numbers, frames, num_frames, reason):
    with pytest.raises(ClipDropped, match=reason):
        match_poses(write(tmp_path / "poses", numbers), frames, num_frames, SIZE)


def test_files_without_numbers_must_have_a_pose_for_each_frame(tmp_path):
    stack = np.stack([iuv(value) for value in (5, 6, 7)])
    np.save(tmp_path / "clip.npy", stack)
    write_frames([Image.fromarray(frame) for frame in stack], tmp_path / "lossy.mp4")
    assert values(match_poses(tmp_path / "clip.npy", [10, 11, 12], 3, SIZE)) == [5, 6, 7]
    with pytest.raises(ClipDropped, match="it has 4 frames and 3 poses, whose names have no numbers"):
        match_poses(tmp_path / "clip.npy", None, 4, SIZE)
    with pytest.raises(ClipDropped, match="`iuv_dir` must be a video in a lossless RGB codec"):
        match_poses(tmp_path / "lossy.mp4", None, 3, SIZE)


def test_the_channel_order_is_found_or_stated(tmp_path):
    folder = write(tmp_path / "poses", [90, 91], frame=lambda value: iuv(value)[..., ::-1])
    for order in ("auto", "iuv"):
        np.testing.assert_array_equal(match_poses(folder, None, 2, SIZE, channel_order=order).poses[0], iuv(90))


def test_maps_without_part_codes_keep_u_and_v(tmp_path):
    maps = np.random.default_rng(0).random((2, 2, 8, 6), np.float32)
    maps[:, :, :, 0] = 0
    np.save(tmp_path / "maps.npy", maps)
    poses = match_poses(tmp_path / "maps.npy", None, 2, SIZE).poses
    for pose, expected in zip(poses, maps, strict=True):
        assert np.abs(iuv_to_pose_map(pose).numpy() - expected).max() <= 0.5 / 255 + 1e-6


def test_poses_of_another_size_are_resized_by_nearest_neighbour_and_others_refused(tmp_path):
    folder = write(tmp_path / "poses", [30, 31], frame=lambda value: iuv(value, (3, 4)))
    poses = match_poses(folder, None, 2, SIZE).poses
    np.testing.assert_array_equal(poses[0], np.kron(iuv(30, (3, 4)), np.ones((2, 2, 1), np.uint8)))
    with pytest.raises(ClipDropped, match="its poses, 3x4 pixels, have another proportion than its frames, 8x8"):
        match_poses(folder, None, 2, (8, 8))
    assert match_poses(folder, None, 2, (8, 8), stretch=True).poses[0].shape == (8, 8, 3)


def test_the_median_calms_poses(tmp_path):
    folder = write(tmp_path / "poses", [1, 2, 3], frame=lambda number: iuv([10, 90, 12][number - 1]))
    assert values(match_poses(folder, None, 3, SIZE, PoseSettings(median=1))) == [10, 12, 12]


def test_a_dump_is_matched_by_the_numbers_of_its_pictures(monkeypatch):
    people = {number: [Detection((1, 0, 6, 8), iuv(number)[:, 1:], 0.9)] for number in (3, 5)}
    dump = [("f_0003.png", people[3]), (None, []), ("f_0005.png", people[5]), ("f_0006.png", [])]
    monkeypatch.setattr(matching, "read_dump", lambda path, max_gap: dump)
    matched = match_poses("clip.pkl", [3, 4, 5], 3, SIZE)
    assert values(matched) == [3, 3, 5] and matched.filled == [1]
    assert matched.notices == ["poses without a frame, by their numbers: [6]."]
    np.testing.assert_array_equal(matched.poses[0], iuv(3))


def test_a_broken_dump_is_named_as_it_was_given(tmp_path):
    (tmp_path / "clip.pkl").write_text("no dump")
    with pytest.raises(ClipDropped, match="`iuv_dir` must be a dump of .* got 'clip.pkl'"):
        match_poses(tmp_path / "clip.pkl", [3, 4, 5], 3, SIZE)
