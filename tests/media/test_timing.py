"""Frame rates, lengths and the choice of frames."""

import json
from fractions import Fraction

import av
import numpy as np
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


def test_the_times_of_frames_are_those_that_were_written(tmp_path):
    times = [0, 40, 80, 100, 300, 1000]  # milliseconds
    with av.open(tmp_path / "a.mkv", "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.codec_context.time_base = *FRAMES[0].size, Fraction(1, 1000)
        for milliseconds, frame in zip(times, FRAMES, strict=True):
            frame = av.VideoFrame.from_image(frame)
            frame.pts, frame.time_base = milliseconds, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    np.testing.assert_allclose(timing.frame_times(tmp_path / "a.mkv"), np.array(times) / 1000)
    write_video(FRAMES, tmp_path / "b.mp4", 12.5)
    np.testing.assert_allclose(timing.frame_times(tmp_path / "b.mp4"), np.arange(6) / 12.5)


def test_frames_at_a_variable_rate_are_repeated_or_left_out():
    assert timing.steady_frames(np.array([0, 0.1, 0.2, 0.3]), 10) == [0, 1, 2, 3]
    assert timing.steady_frames(np.array([0, 0.1, 0.4, 0.5]), 10) == [0, 1, 1, 1, 2, 3]
    assert timing.steady_frames(np.array([0, 0.1, 0.12, 0.13, 0.2]), 10) == [0, 3, 4]
    assert timing.steady_frames(np.array([0.0]), 25) == [0]
    rounded = np.round(np.arange(1000) / 29.97, 3)  # as some containers do
    assert timing.steady_frames(rounded, 29.97) == list(range(1000))
