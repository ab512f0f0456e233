"""Frames of an unfinished video: which files count as a run's, and what a resumed run renders again."""

import os
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline_dreampose import iuv_to_pose_map
from tests.tiny_components import (
    HEIGHT,
    LATENT_HEIGHT,
    LATENT_WIDTH,
    NUM_FRAMES,
    WIDTH,
    get_dummy_image,
    get_dummy_iuv,
    get_dummy_pipeline,
)
from training.media import animation


SETTINGS = {"seed": 0}
OTHERS = ["cover.png", "0.png", "000001.png", "20240115.png", ".00000.png", ".notes.partial", "00001.png.bak"]
OWN = ["00000.png", "123456.png", ".00001.png.partial", f".00002.png.{'0a' * 16}.partial"]
OWN.append(f".settings.json.{'0a' * 16}.partial")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_only_names_that_a_run_writes_count_as_frames_and_are_deleted(tmp_path):
    folder = tmp_path / "frames"
    animation.open_frames(folder, SETTINGS, resume=False)
    for name in [*OTHERS, *OWN]:
        (folder / name).write_text("content")
    assert {path.name for path in animation.finished_frames(folder)} == set(OWN[:2])
    with pytest.raises(ValueError, match=r"holds frames of a stopped run \(2\)"):
        animation.check_frames(folder, resume=False, overwrite=False)
    animation.open_frames(folder, SETTINGS, resume=False, overwrite=True)
    assert names(folder) == sorted([*OTHERS, "settings.json"])
    animation.remove_frames(folder)
    assert names(folder) == sorted(OTHERS)


def test_the_users_files_stand_in_no_run_s_way(tmp_path):
    (tmp_path / "cover.png").write_text("the user's")
    animation.check_frames(tmp_path, resume=False, overwrite=False)


def test_records_have_the_run_s_suffix_and_stem(tmp_path):
    for name in ("00000.safetensors", "model.safetensors", "1, 3.values.json", "notes.json"):
        (tmp_path / name).touch()
    assert [path.name for path in animation.finished_frames(tmp_path, ".safetensors")] == ["00000.safetensors"]
    pairs = animation.finished_frames(tmp_path, ".values.json", "[^.].*")
    assert [path.name for path in pairs] == ["1, 3.values.json"]


@pytest.mark.parametrize("kind", ["folder", "dead link"])
def test_what_has_a_frame_s_name_and_is_no_file_is_refused(tmp_path, kind):
    folder = tmp_path / "frames"
    animation.open_frames(folder, SETTINGS, resume=False)
    path = folder / "00000.png"
    path.mkdir() if kind == "folder" else path.symlink_to("gone")
    for how in ({"resume": True, "overwrite": False}, {"resume": False, "overwrite": True}):
        with pytest.raises(
            ValueError, match="`output` must have frames that are files, got .* where 00000.png is none"
        ):
            animation.check_frames(folder, **how)
    assert names(folder) == ["00000.png", "settings.json"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "frames").touch()
    with pytest.raises(ValueError, match="`output` must be a folder that can be written, got .*which is a file"):
        animation.check_frames(tmp_path / "frames", resume=False, overwrite=False)


def test_frames_that_cannot_be_read_are_rendered_again(tmp_path, kill_after):
    pipe, poses, folder = get_dummy_pipeline(), [get_dummy_iuv(i) for i in range(NUM_FRAMES)], tmp_path / "a.frames"
    animation.open_frames(folder, SETTINGS, resume=False)
    before = [np.asarray(frame) for frame in animation.render_frames(pipe, get_dummy_image(), poses, folder)]
    whole = (folder / "00000.png").read_bytes()
    (folder / "00000.png").write_bytes(b"")
    (folder / "00001.png").write_bytes(whole[: len(whole) // 2])
    (folder / "00002.png").write_text("no picture")
    get_dummy_image().save(folder / "00004.png", "JPEG")
    rendered = kill_after(NUM_FRAMES)
    after = [np.asarray(frame) for frame in animation.render_frames(pipe, get_dummy_image(), poses, folder)]
    assert rendered == [0, 1, 2, 4]
    np.testing.assert_array_equal(after, before)


def test_fitted_poses_give_the_frames_of_the_poses(tmp_path):
    pipe, poses = get_dummy_pipeline(), [get_dummy_iuv(i, 40, 36) for i in range(NUM_FRAMES)]
    expected = pipe(get_dummy_image(), poses, generator=torch.Generator().manual_seed(0), output_type="pt").frames
    maps = torch.stack([iuv_to_pose_map(pose) for pose in poses])
    for kind in (poses, maps):
        fitted = animation.fit_poses(pipe, kind, HEIGHT, WIDTH)
        assert fitted.shape == (NUM_FRAMES, 2, LATENT_HEIGHT, LATENT_WIDTH)
        result = pipe(get_dummy_image(), fitted, generator=torch.Generator().manual_seed(0), output_type="pt").frames
        assert torch.equal(result, expected)


@pytest.mark.parametrize("name", ["video.mp4", "video"])
def test_a_frame_is_written_when_it_is_rendered_and_then_forgotten(tmp_path, monkeypatch, name):
    """The memory does not grow with the number of frames, and the first frames can be seen early."""
    pipe, poses, folder = get_dummy_pipeline(), [get_dummy_iuv(i) for i in range(24)], tmp_path / "a.frames"
    references, held, visible, write = [], [], [], animation.write_frame

    def count(frame, path):
        if path.parent == folder:
            references.append(weakref.ref(frame))
            held.append(sum(reference() is not None for reference in references))
            visible.append(len(list((tmp_path / "video").glob("0*.png"))))
        write(frame, path)

    monkeypatch.setattr(animation, "write_frame", count)
    animation.open_frames(folder, SETTINGS, resume=False)
    fitted = animation.fit_poses(pipe, poses, HEIGHT, WIDTH)
    frames = animation.render_frames(pipe, get_dummy_image(), fitted, folder, chunk_size=2)
    animation.write_outputs([tmp_path / name, tmp_path / "strip.png"], get_dummy_image(), poses, frames, folder)
    assert len(held) == 24 and max(held) <= 2 * 2
    assert visible == (list(range(24)) if name == "video" else [0] * 24)


def test_a_frame_replaces_a_link_and_spares_what_the_link_names(tmp_path):
    (tmp_path / "notes.txt").write_text("the user's")
    for name in ("00000.png", ".00000.png.partial"):
        (tmp_path / name).symlink_to("notes.txt")
    animation.write_frame(Image.new("RGB", (2, 2)), tmp_path / "00000.png")
    assert (tmp_path / "notes.txt").read_text() == "the user's"
    assert not os.path.islink(tmp_path / "00000.png") and Image.open(tmp_path / "00000.png").size == (2, 2)


@pytest.mark.parametrize(
    ("name", "value"), [("height", 30), ("num_inference_steps", 1001), ("pose_guidance_scale", -1.0)]
)
def test_what_the_pipeline_refuses_is_refused_before_anything_is_written(name, value):
    names = ("height", "width", "num_inference_steps", "image_guidance_scale", "pose_guidance_scale")
    pipe, options = get_dummy_pipeline(), dict.fromkeys(names)
    animation.check_call(pipe, **options)
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        animation.check_call(pipe, **options | {name: value})


def test_the_digest_of_a_model_does_not_depend_on_how_the_code_of_its_parts_was_imported():
    pipe = get_dummy_pipeline()
    expected = animation.model_digest(pipe)
    # The blocks give the adapter's class this module.
    pipe.register_to_config(adapter=("dreampose_adapter", "DreamPoseAdapter"))
    assert animation.model_digest(pipe) == expected
    pipe.register_to_config(default_width=pipe.config.default_width + 8)
    assert animation.model_digest(pipe) != expected
