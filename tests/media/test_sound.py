"""Sound of a clip: what is read from a part of it, and what is written."""

from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from training.media import pictures
from training.media.pictures import write_video
from training.media.sound import SAMPLE_RATE, check_sound, read_sound


FRAMES = [Image.new("RGB", (32, 32), (i, 0, 0)) for i in range(25)]


def tone(seconds, rate=SAMPLE_RATE):
    """A tone that gets higher with time, so that each moment sounds different."""
    time = np.arange(round(seconds * rate)) / rate
    return 0.5 * np.sin(2 * np.pi * (300 + 400 * time) * time).astype(np.float32)


def write_clip(path, samples, rate, layout, codec, delay=0.0, gap=0.0):
    """Write a clip of one second whose sound starts after `delay` and pauses for `gap` seconds in its middle."""
    with av.open(path, "w") as container:
        video = container.add_stream("mpeg4", rate=25)
        video.width = video.height = 32
        sound = container.add_stream(codec, rate=rate, layout=layout)
        for frame in FRAMES:
            container.mux(video.encode(av.VideoFrame.from_image(frame)))
        container.mux(video.encode())
        for start in range(0, len(samples), 1024):
            block = np.ascontiguousarray((samples[None, start : start + 1024] * 32767).astype(np.int16))
            frame = av.AudioFrame.from_ndarray(block, format="s16", layout=layout)
            late = delay + gap * (start >= len(samples) / 2)
            frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
            frame.pts = start + round(late * rate)
            container.mux(sound.encode(frame))
        container.mux(sound.encode())


def heard(path, start, duration):
    with av.open(path) as container:
        return read_sound(container, start, duration)


def likeness(first, second):
    return np.corrcoef(first, second)[0, 1]


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_any_rate_becomes_stereo_at_one_rate(tmp_path, rate):
    write_clip(tmp_path / "a.mkv", tone(1, rate), rate, "mono", "pcm_s16le")
    samples = heard(tmp_path / "a.mkv", 0.2, 0.5)
    assert samples.shape == (2, SAMPLE_RATE // 2) and samples.dtype == np.float32
    np.testing.assert_allclose(samples[0], samples[1], atol=1e-6)
    expected = tone(1)[round(0.2 * SAMPLE_RATE) : round(0.7 * SAMPLE_RATE)]
    assert likeness(samples[0], expected) > 0.99


def test_there_is_silence_where_a_clip_has_no_sound(tmp_path):
    write_clip(tmp_path / "a.mkv", tone(0.5), SAMPLE_RATE, "mono", "pcm_s16le", delay=0.2, gap=0.1)
    left = heard(tmp_path / "a.mkv", 0, 1)[0]
    for first, last, is_loud in ((0, 0.19, False), (0.21, 0.44, True), (0.48, 0.53, False), (0.58, 0.79, True),
                                 (0.82, 1, False)):  # fmt: skip
        part = left[round(first * SAMPLE_RATE) : round(last * SAMPLE_RATE)]
        assert (np.abs(part).max() > 0.3) == is_loud, (first, last)
    second_half = left[round(0.58 * SAMPLE_RATE) : round(0.78 * SAMPLE_RATE)]
    expected = tone(0.5)[round(0.28 * SAMPLE_RATE) : round(0.48 * SAMPLE_RATE)]
    assert likeness(second_half, expected) > 0.95


def test_a_video_holds_its_sound_beside_its_frames_and_without_sound_nothing_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "_video_encoder", lambda: "mpeg4")
    sound = np.stack([tone(1), 0.5 * tone(1)])
    for name in ("a", "b"):
        write_video(FRAMES, tmp_path / f"{name}.mp4", 25, sound)
    write_video(FRAMES, tmp_path / "silent.mp4", 25)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    with av.open(tmp_path / "a.mp4") as container:
        kinds = "".join(packet.stream.type[0] for packet in container.demux())
    assert "a" in kinds[:6] and "v" in kinds[-8:], "players find sound and frames side by side"
    shown = []
    for name in ("a", "silent"):
        with av.open(tmp_path / f"{name}.mp4") as container:
            assert len(container.streams) == (2 if name == "a" else 1)
            shown.append([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    np.testing.assert_array_equal(*shown)
    left, right = heard(tmp_path / "a.mp4", 0, 1)[:, 2048:-2048]
    assert likeness(left, sound[0, 2048:-2048]) > 0.99
    assert right.std() == pytest.approx(left.std() / 2, rel=0.1)


def test_a_clip_without_sound_is_refused(tmp_path):
    write_video(FRAMES, tmp_path / "a.mp4")
    with av.open(tmp_path / "a.mp4") as container:
        with pytest.raises(ValueError, match="`sound` must be given with a `driving` that has sound, got 'a'"):
            check_sound(container, "driving", "a")
