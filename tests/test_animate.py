import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

import animate
from pipeline_dreampose import DreamPosePipeline
from tests.launch import launch_two_processes
from tests.tiny_components import HEIGHT, NUM_FRAMES, WIDTH, get_dummy_image, get_dummy_iuv, get_dummy_pipeline


ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A model, a photo and poses on disk, as arguments."""
    folder = tmp_path_factory.mktemp("inputs")
    get_dummy_pipeline().save_pretrained(folder / "model")
    get_dummy_image().save(folder / "photo.png")
    (folder / "poses").mkdir()
    for i in range(NUM_FRAMES):
        get_dummy_iuv(i).save(folder / "poses" / f"{i}.png")
    return {"--model": folder / "model", "--image": folder / "photo.png", "--poses": folder / "poses"}


def as_words(arguments):
    return [str(word) for pair in {**arguments, "--device": "cpu"}.items() for word in pair]


def run(inputs, *more, **changes):
    arguments = {**inputs, **{"--" + name: value for name, value in changes.items()}}
    return animate.main(animate.parse_args([*as_words(arguments), *more]))


def read_video(path):
    with av.open(path) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_what_is_written_are_the_frames_of_the_pipeline(inputs, tmp_path, capsys):
    frames = run(inputs, "--gif", output=tmp_path / "new" / "video.mp4", scale=2, seed=3, fps=10)
    poses = [get_dummy_iuv(i) for i in range(NUM_FRAMES)]
    pipe = DreamPosePipeline.from_pretrained(inputs["--model"])
    expected = pipe(get_dummy_image(), poses, generator=torch.Generator().manual_seed(3)).frames[0]
    assert [f.tobytes() for f in frames] == [f.tobytes() for f in expected]

    written = read_video(tmp_path / "new" / "video.mp4")
    assert [frame.shape for frame in written] == [(2 * HEIGHT, 2 * WIDTH, 3)] * NUM_FRAMES
    with Image.open(tmp_path / "new" / "video.gif") as gif:
        assert gif.n_frames == NUM_FRAMES
    output = capsys.readouterr().out
    assert f"{NUM_FRAMES} frames" in output
    for suffix in (".mp4", ".png", ".gif"):
        assert str(tmp_path / "new" / f"video{suffix}") in output


def test_the_strip_shows_photo_poses_and_predictions(inputs, tmp_path):
    frames = run(inputs, output=tmp_path / "video.mp4", strip_frames=3)
    strip = np.asarray(Image.open(tmp_path / "video.png"))
    assert strip.shape == (2 * HEIGHT + 4, 4 * WIDTH + 3 * 4, 3)
    np.testing.assert_array_equal(strip[HEIGHT + 4 :, :WIDTH], np.asarray(get_dummy_image()))
    for column, index in enumerate((0, 2, 4), start=1):
        left = column * (WIDTH + 4)
        np.testing.assert_array_equal(strip[:HEIGHT, left : left + WIDTH], np.asarray(get_dummy_iuv(index)))
        np.testing.assert_array_equal(strip[HEIGHT + 4 :, left : left + WIDTH], np.asarray(frames[index]))


def test_options_reach_the_pipeline(inputs, tmp_path, monkeypatch):
    seen = {}
    call = DreamPosePipeline.__call__

    def spy(self, *args, **kwargs):
        seen.update(kwargs)
        return call(self, *args, **kwargs)

    monkeypatch.setattr(DreamPosePipeline, "__call__", spy)
    options = {
        "num_inference_steps": 3,
        "image_guidance_scale": 1.5,
        "pose_guidance_scale": 0.5,
        "height": 40,
        "width": 32,
        "chunk_size": 2,
    }
    frames = run(inputs, output=tmp_path / "video.mp4", **options)
    assert {name: seen[name] for name in options} == options and frames[0].size == (32, 40)


def test_a_stack_gives_the_video_of_the_folder(inputs, tmp_path):
    from_folder = run(inputs, output=tmp_path / "video.mp4")
    np.save(tmp_path / "poses.npy", np.stack([np.asarray(get_dummy_iuv(i)) for i in range(NUM_FRAMES)]))
    from_stack = run({**inputs, "--poses": tmp_path / "poses.npy"}, output=tmp_path / "stack.mp4")
    assert [f.tobytes() for f in from_stack] == [f.tobytes() for f in from_folder]


def test_the_shares_of_two_processes_make_the_whole_video(inputs, tmp_path, monkeypatch):
    whole = run(inputs, output=tmp_path / "video.mp4")
    shares = []
    for index in range(2):
        state = type("State", (), {"num_processes": 2, "process_index": index})
        monkeypatch.setattr(animate, "PartialState", lambda state=state: state)
        pipe = DreamPosePipeline.from_pretrained(inputs["--model"])
        options = animate.parse_args(["--model", "-", "--image", "-", "--poses", "-"])
        shares.append(animate.render(pipe, get_dummy_image(), [get_dummy_iuv(i) for i in range(NUM_FRAMES)], options))
    assert [len(share) for share in shares] == [3, 2]
    difference = np.stack(shares[0] + shares[1]).astype(int) - np.stack(whole).astype(int)
    assert np.abs(difference).max() <= 1


def test_bad_input_is_refused_before_a_model_is_loaded(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(animate, "load_pipeline", lambda *args: pytest.fail("a model was loaded"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no picture")
    for changes, match in (
        ({"image": tmp_path / "missing.png"}, "`image` must be a file"),
        ({"image": tmp_path / "text.png"}, "`image` must be a readable picture"),
        ({"poses": tmp_path / "missing"}, "`poses` must be a folder"),
        ({"poses": tmp_path / "empty"}, "`poses` must hold IUV pictures"),
    ):
        with pytest.raises(ValueError, match=match):
            run(inputs, **changes)


def test_pose_frames_of_different_sizes_are_refused(inputs, tmp_path):
    get_dummy_iuv(0).save(tmp_path / "0.png")
    get_dummy_iuv(0, height=16).save(tmp_path / "1.png")
    with pytest.raises(ValueError, match="`poses` must have one size"):
        run(inputs, poses=tmp_path)


def test_folders_that_are_no_pipeline_are_refused(inputs, tmp_path):
    with pytest.raises(ValueError, match="`model` must be the folder of a DreamPosePipeline.*no model_index.json"):
        run(inputs, model=tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(ValueError, match="`model` must be the folder .* StableDiffusionPipeline"):
        run(inputs, model=tmp_path)
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match="names no pipeline class"):
        run(inputs, model=tmp_path)
    AutoencoderKL(block_out_channels=(4,), norm_num_groups=2).save_pretrained(tmp_path / "vae")
    with pytest.raises(ValueError, match="no model_index.json"):
        run(inputs, model=tmp_path / "vae")


def test_sizes_that_do_not_divide_are_refused(inputs):
    with pytest.raises(ValueError, match="`height` must be a positive multiple of 4; got 30"):
        run(inputs, height=30)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "video.avi"], "`--output` must end in .mp4, got 'video.avi'"),
        (["--fps", "0"], "`--fps` must be positive, got 0"),
        (["--scale", "-1"], "`--scale` must be positive, got -1"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
    ],
)
def test_bad_options_are_parser_errors(words, message, capsys):
    with pytest.raises(SystemExit):
        animate.parse_args(["--model", "m", "--image", "i", "--poses", "p", *words])
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_from_a_shell_an_error_is_one_line(inputs, tmp_path):
    words = as_words({**inputs, "--image": tmp_path / "missing.png"})
    command = [sys.executable, str(ROOT / "animate.py"), *words]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("animate.py: error: `image` must be a file")


@pytest.mark.slow
def test_two_launched_processes_write_the_video_of_one(inputs, tmp_path):
    frames = run(inputs, output=tmp_path / "one.mp4")
    result = launch_two_processes("animate.py", as_words({**inputs, "--output": tmp_path / "two.mp4"}))
    assert f"{NUM_FRAMES} frames from 2 process(es)" in result.stdout
    one, two = read_video(tmp_path / "one.mp4"), read_video(tmp_path / "two.mp4")
    assert len(one) == len(two) == len(frames)
    assert np.abs(np.stack(one).astype(int) - np.stack(two).astype(int)).mean() < 0.5
