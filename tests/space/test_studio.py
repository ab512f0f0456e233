"""The page's model: one video at a time, and code that makes a video again."""

import os
import subprocess
import sys
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from PIL import Image

from model_card.space import figures
from model_card.space.studio import Settings, Studio, write_result
from tests.launch import ROOT
from training.media import animation
from training.media.outputs import write_frame
from training.media.pictures import iterate_pictures


MODEL = "model_card/tiny"
PERSON, MOTION = "Blue skirt", "Turn round"
SETTINGS = Settings(False, 2, 1.5, 2.0, 7)


@pytest.fixture(scope="module")
def studio():
    return Studio(str(ROOT / MODEL), "cpu")


def test_another_video_ends_one_that_was_left_and_frees_its_scheduler(studio):
    photo, poses = figures.photo(PERSON), figures.poses(PERSON, MOTION)
    left = studio.frames(photo, poses, SETTINGS, chunk_size=2)
    next(left)
    whole = list(studio.frames(photo, poses, SETTINGS, chunk_size=8))
    assert len(whole) == len(poses) and len(list(left)) == 0


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("num_inference_steps", 0, "`steps` must be a whole number from 1 to 100"),
        ("num_inference_steps", 101, "`steps` must be"),
        ("num_inference_steps", 2.5, "`steps` must be"),
        ("seed", -1, "`seed` must be"),
        ("image_guidance_scale", float("nan"), "`image_guidance_scale` must be"),
    ],
)
def test_bad_settings_are_refused_and_the_device_stays_free(studio, name, value, message):
    photo, poses = figures.photo(PERSON), figures.poses(PERSON, MOTION)[:2]
    with pytest.raises(ValueError, match=message):
        list(studio.frames(photo, poses, Settings(**{**vars(SETTINGS), name: value})))
    assert len(list(studio.frames(photo, poses, SETTINGS))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("few, maps", [(False, True), (True, False)], ids=["full-maps", "few-pictures"])
def test_the_code_of_a_result_makes_exactly_its_frames_and_its_video(studio, few, maps, tmp_path):
    """Both run as printed, in a folder that looks like a clone with the download unpacked."""
    if few and not studio.has_few:
        pytest.skip("the small model has no few-step LoRA in this checkout")
    photo, poses = figures.photo(PERSON), figures.poses(PERSON, MOTION)[:9]
    if maps:
        poses = torch.from_numpy(np.stack(poses)).permute(0, 3, 1, 2)[:, [1, 0]].float() / 255
    settings = Settings(few, 1, 1.0, 1.0, 3) if few else SETTINGS
    (tmp_path / "frames").mkdir()
    frames = list(studio.frames(photo, poses, settings))
    for index, frame in enumerate(frames):
        write_frame(frame, animation.frame_path(tmp_path / "frames", index))
    archive = write_result(tmp_path, MODEL, photo, poses, frames, settings)

    clone = tmp_path / "clone"
    clone.mkdir()
    for name in ("animate.py", "model_card"):
        (clone / name).symlink_to(ROOT / name)
    ZipFile(archive).extractall(clone)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{clone}/bin:{os.environ['PATH']}"}
    (clone / "bin").mkdir()
    (clone / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (clone / "bin" / "python").chmod(0o755)
    saving = '\nfor index, frame in enumerate(frames):\n    frame.save(f"{index}.png")\n'
    (clone / "again.py").write_text((clone / "dreampose" / "again.py").read_text() + saving)
    for command in (["python", "again.py"], ["sh", "dreampose/again.sh"]):
        done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    for index, frame in enumerate(frames):
        assert np.array_equal(Image.open(clone / f"{index}.png"), frame)
    first, second = (list(iterate_pictures(clone / path)) for path in ("dreampose/video.mp4", "video.mp4"))
    assert len(first) == len(second) == len(frames)
    assert all(np.array_equal(a, b) for a, b in zip(first, second))
