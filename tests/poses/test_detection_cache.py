"""What DensePose found, kept in files: any damage is noticed, and nothing else is taken."""

import random

import numpy as np
import pytest
from PIL import Image

from training.media.pictures import UnreadablePictures
from training.poses import detection_cache
from training.poses.detections import Detection


PICTURES = [Image.new("RGB", (24, 32), (40 * i, 0, 0)) for i in range(5)]


def find(picture):
    """Return as many people as a picture's red level says."""
    rng = np.random.default_rng(0)
    people = range(picture.getpixel((0, 0))[0] // 40)
    return [Detection((i, -2, i + 6, 6), rng.integers(0, 24, (8, 6, 3), dtype=np.uint8), 1 / (i + 3)) for i in people]


def detect(folder, pictures=PICTURES, estimator=find, **chosen):
    return detection_cache.detect_frames(folder, lambda: iter(pictures), estimator, **chosen)


def test_a_frame_is_read_as_it_was_written(tmp_path):
    assert detect(tmp_path) == range(5)
    for index, picture in enumerate(PICTURES):
        seen, expected = detection_cache.read_frame(tmp_path, index), find(picture)
        assert seen.size == (24, 32) and seen.picture.size == (24, 32)
        assert [(d.box, d.score) for d in seen.detections] == [(d.box, d.score) for d in expected]
        for detection, other in zip(seen.detections, expected, strict=True):
            np.testing.assert_array_equal(detection.iuv, other.iuv)
    assert detection_cache.read_frame(tmp_path, 5) is None


def test_damage_of_any_kind_is_noticed_or_harmless(tmp_path):
    detect(tmp_path)
    path, damages = tmp_path / "00004.npz", random.Random(0)
    whole = path.read_bytes()
    for number in range(300):
        content = bytearray(whole)
        content[damages.randrange(len(content))] ^= 1 << damages.randrange(8)
        path.write_bytes(content if number % 3 else content[: damages.randrange(len(content))])
        detection_cache.read_frame(tmp_path, 4)  # raises nothing
    path.write_bytes(whole[:200])
    assert detection_cache.read_frame(tmp_path, 4) is None
    detect(tmp_path)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("name, is_folder", [("", False), ("00002.npz", True), ("clip.json", True)])
def test_what_else_has_a_name_of_the_cache_is_refused_before_densepose_runs(tmp_path, name, is_folder):
    cache = tmp_path / "poses" / "clip"
    path = cache / name
    path.parent.mkdir(parents=True)
    path.mkdir() if is_folder else path.write_text("mine")
    expected, got = ("a file", "a folder") if is_folder else ("a folder", "a file")
    with pytest.raises(ValueError, match=rf"`driving` must find {expected} or nothing at .*; got {got}. Move it away"):
        detect(cache, estimator=None)
    assert path.is_dir() if is_folder else path.read_text() == "mine"


def test_the_clip_is_started_only_for_frames_that_are_missing(tmp_path):
    asked = []

    def watch(picture):
        asked.append(picture.getpixel((0, 0))[0] // 40)
        return find(picture)

    assert detect(tmp_path, estimator=watch, start=1, end=4, every=2) == range(1, 4, 2)
    assert detect(tmp_path, estimator=watch) == range(5)
    assert asked == [1, 3, 0, 2, 4]
    for chosen in ({}, {"end": 2}, {"start": 3}, {"start": 1, "end": 5, "every": 3}):
        detect(tmp_path, pictures=None, **chosen)  # `iter(None)` would fail
    for chosen, name in (({"end": 6}, "end"), ({"start": 5}, "start")):
        with pytest.raises(ValueError, match=f"`{name}` must be .* the number of frames, 5"):
            detect(tmp_path, pictures=None, **chosen)


def test_frames_of_several_sizes_and_clips_of_none_are_refused(tmp_path):
    with pytest.raises(UnreadablePictures, match="`input` must have pictures of one size"):
        detect(tmp_path, [PICTURES[0], Image.new("RGB", (32, 32))])
    with pytest.raises(UnreadablePictures, match="`input` must have at least one frame"):
        detect(tmp_path / "empty", [])


def test_a_missing_frame_shows_nobody(tmp_path):
    detect(tmp_path, [PICTURES[1], None, PICTURES[2]])
    assert [len(detection_cache.read_frame(tmp_path, i).detections) for i in range(3)] == [1, 0, 2]


def test_the_name_of_a_cache_depends_on_content_alone(tmp_path):
    for name, level in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        for file in ("0.png", "1.png"):
            Image.new("RGB", (4, 4), (level, 0, 0)).save(tmp_path / name / file)
    first, second, third = (detection_cache.file_digest(tmp_path / name) for name in "abc")
    assert first == second != third
    (tmp_path / "b" / "1.png").rename(tmp_path / "b" / "2.png")  # a number is missing now
    assert detection_cache.file_digest(tmp_path / "b") != first
    assert detection_cache.cache_key(first, third) != detection_cache.cache_key(third, first)
