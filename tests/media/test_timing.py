"""Frame rates, lengths and the choice of frames."""

import json
from fractions import Fraction

import pytest
from PIL import Image

from training.media import timing
from training.media.pictures import write_gif, write_video


FRAMES = [Image.new("RGB", (32, 32), (i, 0, 0)) for i in range(6)]


@pytest.mark.parametrize("fps", [12.5, 24, 30000 / 1001, 60])
def test_a_video_states_its_rate_and_length(tmp_path, fps):
    write_video(FRAMES, tmp_path / "a.mp4", fps)
    assert timing.frame_rate(tmp_path / "a.mp4") == pytest.approx(fps, rel=1e-9)
    assert timing.estimate_length(tmp_path / "a.mp4") == 6


def test_a_gif_is_a_video(tmp_path):
    write_gif(FRAMES, tmp_path / "a.gif", 10)
    assert timing.frame_rate(tmp_path / "a.gif") == 10 and timing.estimate_length(tmp_path / "a.gif") in (6, None)


def test_what_states_no_rate_has_none(tmp_path):
    (tmp_path / "poses.npy").write_bytes(b"\x93NUMPY")
    FRAMES[0].save(tmp_path / "0.png")
    for path in (tmp_path, tmp_path / "poses.npy", tmp_path / "missing.mp4"):
        assert timing.frame_rate(path) is None
    assert timing.estimate_length(tmp_path) == 1 and timing.estimate_length(tmp_path / "poses.npy") is None


def test_a_folder_keeps_the_rate_that_was_written(tmp_path):
    fps = float(Fraction(30000, 1001))
    timing.write_frame_rate(tmp_path / "new", fps, "output_dir")
    assert timing.frame_rate(tmp_path / "new") == fps
    timing.write_frame_rate(tmp_path / "new", None, "output_dir")
    assert timing.frame_rate(tmp_path / "new") is None
    timing.write_frame_rate(tmp_path / "new", None, "output_dir")  # there is none to remove


@pytest.mark.parametrize("fps", [0, -1, 1001, "30", None, True, [30], float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(tmp_path, fps):
    (tmp_path / "fps.json").write_text(json.dumps({"fps": fps}))
    with pytest.raises(ValueError, match=r"`poses` must have an `fps` within \[0.01, 1000\] in its fps.json, got"):
        timing.frame_rate(tmp_path)


def test_a_file_of_the_user_is_neither_replaced_nor_deleted(tmp_path):
    (tmp_path / "fps.json").write_text("mine")
    for fps in (25.0, None):
        with pytest.raises(ValueError, match="`output_dir` must replace only files of earlier runs, got .*fps.json"):
            timing.write_frame_rate(tmp_path, fps, "output_dir")
    assert (tmp_path / "fps.json").read_text() == "mine"


def test_frames_are_chosen_as_by_a_slice():
    for start in range(5):
        for end in (None, *range(start + 1, 6)):
            for every in (1, 2, 7):
                assert list(timing.choose_frames(5, start, end, every)) == list(range(5))[start:end:every]
    with pytest.raises(ValueError, match="`start` must be less than the number of frames, 5, got 5"):
        timing.choose_frames(5, 5)
    with pytest.raises(ValueError, match="`end` must be at most the number of frames, 5, got 6"):
        timing.choose_frames(5, 0, 6)
