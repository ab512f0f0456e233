"""Frames that a clip lacks, found by the numbers in the names of its files."""

import pytest
from PIL import Image

from training.data.clip_frames import ClipFrames
from training.poses.clip_poses import ClipDropped, iterate_with_gaps
from training.poses.gaps import _note_unnumbered, frame_numbers, insert_missing
from training.poses.matching import match_poses
from training.poses.pose_files import read_poses


def save(folder, names):
    for value, name in enumerate(names):
        Image.new("RGB", (6, 8), (value, 9, 1)).save(folder / name)


def stamped(numbers, times, prefix="a_"):
    return [f"{prefix}{number}_{time}.png" for number, time in zip(numbers, times, strict=True)]


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (stamped([0, 1, 2, 30, 31], [100, 133, 166, 966, 999]), [0, 1, 2, 30, 31]),
        (stamped([100, 133, 166, 966, 999], [0, 1, 2, 30, 31]), [0, 1, 2, 30, 31]),  # the time stands first
        (stamped([0, 5, 10], [0, 167, 333]), [0, 5, 10]),
        (stamped([20240115] * 3, [7, 8, 9]), [7, 8, 9]),
        (stamped([12, 12, 13, 13], [5, 6, 7, 8]), [5, 6, 7, 8]),  # several frames in one second
        (["t33.png", "t67.png", "t100.png"], [33, 67, 100]),
        (["1_0.png", "1_1.png", "2_0.png", "2_1.png"], None),  # two clips, each of which starts at 0
        (["a1.png", "b2.png"], None),
    ],
)
def test_the_number_that_counts_the_frames(names, numbers):
    assert frame_numbers(names) == numbers


@pytest.mark.parametrize(
    "names", [[f"f{n}.png" for n in (0, 1, 2, 30, 31)], stamped([0, 1, 2, 30, 31], range(0, 50, 10))]
)
def test_gaps_are_found_with_and_without_a_second_number(tmp_path, names):
    save(tmp_path, names)
    with pytest.raises(ValueError, match="`poses` must be consecutive frames, .* got no frames 3..29 after"):
        read_poses(tmp_path)
    assert len(read_poses(tmp_path, max_gap=27)) == 32


@pytest.mark.parametrize(
    ("names", "other", "usual"),
    [
        (["cover.png", "f0.png", "f1.png", "f2.png", "f30.png", "f31.png"], "'cover.png'", "f0.png"),
        (["frame.png", "frame1.png", "frame2.png", "frame40.png"], "'frame.png'", "frame1.png"),
        (["f0.png", "f1.png", "f1 copy.png"], "'f1 copy.png'", "f0.png"),
        (["f0.png", "f1.png", "f2.png", "g0.png", "g1.png"], "'g0.png' and 1 more", "f0.png"),
    ],
)
def test_a_file_that_is_named_unlike_the_others_is_refused(tmp_path, names, other, usual):
    """It would be shown as a frame, and no gap would be found."""
    save(tmp_path, names)
    with pytest.raises(
        ValueError, match=f"`poses` must have files whose names differ only .* {other} beside '{usual}'"
    ):
        read_poses(tmp_path)
    with pytest.raises(ClipDropped, match=f"`iuv_dir` must have files whose names differ only .* {other} beside"):
        match_poses(tmp_path, range(len(names)), len(names), (6, 8))


@pytest.mark.parametrize(
    ("names", "number"), [(["0.png", "00.png"], "0"), (["1_2.png", "1_02.png"], "1_2"), (["5.bmp", "5.png"], "5")]
)
def test_two_files_of_one_number_are_refused(tmp_path, names, number):
    save(tmp_path, names)
    with pytest.raises(ValueError, match=f"`poses` must have one file per frame, got the number {number} twice: '"):
        read_poses(tmp_path)
    with pytest.raises(ClipDropped, match=f"`iuv_dir` must have one file per frame, got the number {number} twice: '"):
        match_poses(tmp_path, [0, 1], 2, (6, 8))


def test_one_name_twice_is_refused():
    with pytest.raises(
        ValueError, match="`path` must have one file per frame, got one name twice: 'a.png' and 'a.png'"
    ):
        insert_missing(["a.png", "a.png"], [1, 2], 0, argument="path")


def test_names_that_nothing_counts_are_noted(caplog):
    _note_unnumbered.cache_clear()
    assert insert_missing(["a.png", "b.png"], [1, 2], 0) == [1, 2]
    assert "No number counts the frames of `poses`, such as 'a.png' and 'b.png'" in caplog.text
    caplog.clear()
    for names in (["a.png"], ["3.png", "4.png"], []):
        assert insert_missing(names, names, 0) == names
    assert caplog.text == ""


def test_the_notice_about_names_that_nothing_counts_names_the_clip_once(tmp_path, caplog):
    for clip in ("first", "second"):
        (tmp_path / clip).mkdir()
        save(tmp_path / clip, ["a.png", "b.png"])
        for _ in range(2):  # as a run does: once for the numbers and once for DensePose
            ClipFrames(tmp_path / clip).places(5)
            list(iterate_with_gaps(tmp_path / clip, 5))
            read_poses(tmp_path / clip)
        message = f"No number counts the frames of {str(tmp_path / clip)!r}, such as 'a.png' and 'b.png'"
        assert caplog.text.count("No number counts") == caplog.text.count(message) == 1
        caplog.clear()


def test_huge_numbers_are_exact():
    names = [f"{10**400 + step}.png" for step in (0, 1, 3)]
    assert insert_missing(names, [0, 1, 2], 1) == [0, 1, None, 2]
