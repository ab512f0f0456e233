import shutil
import subprocess
import sys
from argparse import Namespace

import av
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler
from PIL import Image

import animate
from pipeline_dreampose import DreamPosePipeline
from tests.animating import Killed, animate_frames
from tests.launch import ROOT, launch_two_processes
from tests.tiny_components import (
    HEIGHT,
    NUM_FRAMES,
    WIDTH,
    get_dummy_image,
    get_dummy_iuv,
    get_dummy_pipeline,
    save_subject,
)
from training.engine.output_lock import locks_output
from training.media.animation import default_scale
from training.media.outputs import RECORD_NAME
from training.media.pictures import _video_encoder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Arguments that name a model, a photo and poses on disk."""
    folder = tmp_path_factory.mktemp("inputs")
    get_dummy_pipeline().save_pretrained(folder / "model")
    get_dummy_image().save(folder / "photo.png")
    (folder / "poses").mkdir()
    for i in range(NUM_FRAMES):
        get_dummy_iuv(i).save(folder / "poses" / f"{i}.png")
    paths = {"--model": folder / "model", "--image": folder / "photo.png", "--poses": folder / "poses"}
    return {**paths, "--scale": 1}


def as_words(arguments):
    pairs = [pair for pair in {**arguments, "--device": "cpu"}.items() if pair[1] is not None]
    return [str(word) for pair in pairs for word in pair]


def run(inputs, *more, **changes):
    arguments = {**inputs, **{"--" + name: value for name, value in changes.items()}}
    return animate_frames([*as_words(arguments), *more])


def read_video(path):
    with av.open(path) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_the_written_frames_are_those_of_the_pipeline(inputs, tmp_path, capsys):
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
    stream = DreamPosePipeline.stream

    def spy(self, *args, **kwargs):
        seen.update(kwargs)
        return stream(self, *args, **kwargs)

    monkeypatch.setattr(DreamPosePipeline, "stream", spy)
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


def test_a_small_model_s_video_is_no_stamp(inputs, tmp_path):
    run(inputs, output=tmp_path / "video.mp4", scale=None)
    with av.open(tmp_path / "video.mp4") as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == (_video_encoder().replace("libx264", "h264"), "yuv420p")
        assert (stream.width, stream.height) == (10 * WIDTH, 10 * HEIGHT)
    assert [default_scale(height) for height in (16, 80, 160, 161, 319, 320, 640)] == [16, 4, 2, 2, 2, 1, 1]


def test_a_size_that_the_model_was_not_trained_for_is_named(inputs, tmp_path, caplog):
    run(inputs, output=tmp_path / "a.mp4", height=HEIGHT)
    assert "trained" not in caplog.text
    run(inputs, output=tmp_path / "b.mp4", height=2 * HEIGHT, width=2 * WIDTH)
    assert f"trained for frames of {HEIGHT} x {WIDTH} pixels (height x width), " in caplog.text
    assert f"so frames of {2 * HEIGHT} x {2 * WIDTH} may be smeared" in caplog.text


def test_a_stack_gives_the_video_of_the_folder(inputs, tmp_path):
    from_folder = run(inputs, output=tmp_path / "video.mp4")
    np.save(tmp_path / "poses.npy", np.stack([np.asarray(get_dummy_iuv(i)) for i in range(NUM_FRAMES)]))
    from_stack = run({**inputs, "--poses": tmp_path / "poses.npy"}, output=tmp_path / "stack.mp4")
    assert [f.tobytes() for f in from_stack] == [f.tobytes() for f in from_folder]


def test_a_lora_gives_the_frames_of_the_pipeline_with_it(inputs, tmp_path):
    plain = run(inputs, output=tmp_path / "plain.mp4")
    save_subject(tmp_path / "anna", 1)
    frames = run(inputs, output=tmp_path / "anna.mp4", lora=tmp_path / "anna")
    pipe = DreamPosePipeline.from_pretrained(inputs["--model"])
    pipe.load_lora_weights(tmp_path / "anna")
    poses = [get_dummy_iuv(i) for i in range(NUM_FRAMES)]
    expected = np.stack(pipe(get_dummy_image(), poses, generator=torch.Generator().manual_seed(0)).frames[0])
    assert np.abs(np.stack(frames).astype(int) - expected).max() <= 1  # fused weights round differently
    assert np.abs(np.stack(plain).astype(int) - expected).max() > 10
    with pytest.raises(ValueError, match="`lora` must be the file, folder or Hub id of a LoRA, got .*missing"):
        run(inputs, output=tmp_path / "none.mp4", lora=tmp_path / "missing")


def test_every_kind_of_output_shows_the_frames(inputs, tmp_path):
    frames = run(inputs, output=tmp_path / "video.gif")
    with Image.open(tmp_path / "video.gif") as gif:
        assert gif.n_frames == NUM_FRAMES
    run(inputs, output=tmp_path / "frames")
    files = sorted((tmp_path / "frames").glob("*.png"))
    assert [np.asarray(Image.open(file)).tobytes() for file in files] == [frame.tobytes() for frame in frames]
    # Only the requested files, the strips and the record of them are left.
    expected = [RECORD_NAME, "frames", "frames.png", "video.gif", "video.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == expected


def test_the_grid_holds_every_pair_of_scales(inputs, tmp_path, capsys):
    run(inputs, "--grid", "0,2", "1,3,5", output=tmp_path / "grid.png", num_inference_steps=3)
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    pipe = DreamPosePipeline.from_pretrained(inputs["--model"])
    for r, image_scale in enumerate((0, 2)):
        for c, pose_scale in enumerate((1, 3, 5)):
            options = {"image_guidance_scale": image_scale, "pose_guidance_scale": pose_scale}
            frame = pipe(
                get_dummy_image(), [get_dummy_iuv(i) for i in range(NUM_FRAMES)], num_inference_steps=3,
                frame_indices=[NUM_FRAMES // 2], generator=torch.Generator().manual_seed(0), **options,
            ).frames[0][0]  # fmt: skip
            bottom, right = grid.shape[0] - (1 - r) * (HEIGHT + 4), grid.shape[1] - (2 - c) * (WIDTH + 4)
            np.testing.assert_array_equal(grid[bottom - HEIGHT : bottom, right - WIDTH : right], np.asarray(frame))
    assert "grid.png" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == [RECORD_NAME, "grid.png"]


@pytest.mark.parametrize(
    ("output", "more", "lost"),
    [
        ("photo.mp4", [], "photo.png"),  # its strip
        ("photo", [], "photo.png"),
        ("photo.png", ["--grid", "1", "1"], "photo.png"),
        ("poses", [], "poses"),
        (".", [], "photo.png"),
    ],
)
def test_inputs_are_never_overwritten(inputs, output, more, lost, monkeypatch):
    monkeypatch.setattr("training.hub.repositories.load_pipeline", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match=f"`output` must spare what is read, .* writes over .*{lost}"):
        run(inputs, *more, output=inputs["--image"].parent / output)


def test_the_revision_reaches_the_hub(inputs, monkeypatch):
    asked, looked_up = [], []
    monkeypatch.setattr("training.hub.repositories.check_reachable", lambda *_: None)
    monkeypatch.setattr("training.hub.loras._find_own_fast", lambda *asked: looked_up.append(asked) or (None, None))
    monkeypatch.setattr(DreamPosePipeline, "from_pretrained", lambda name, **options: asked.append((name, options)))
    with pytest.raises(AttributeError):  # there is no pipeline to move to a device
        run(inputs, "--revision", "v1", **{"model": "some/one"})
    ((name, options),) = asked
    assert (name, options["revision"]) == ("some/one", "v1") and looked_up == [("some/one", "v1")]


def test_a_killed_run_resumes_with_the_missing_frames(inputs, tmp_path, kill_after):
    options = {"chunk_size": 2, "output": tmp_path / "video.mp4"}
    whole = run(inputs, **options | {"output": tmp_path / "whole.mp4"})
    kill_after(3)
    with pytest.raises(Killed):
        run(inputs, **options)
    assert [path.name for path in tmp_path.glob("*video*")] == [".video.mp4.frames"], "no part of a video is left"
    (tmp_path / ".video.mp4.frames" / ".00004.png.partial").write_bytes(b"a frame half written")
    (tmp_path / f".video.mp4.{'0a' * 16}.partial").write_bytes(b"a video half written, by a process that was killed")
    rendered = kill_after(9)
    shutil.copytree(inputs["--model"], tmp_path / "moved")  # the same model in another folder
    frames = run({**inputs, "--model": tmp_path / "moved"}, "--resume", **options)
    assert rendered == [3, 4]
    assert [frame.tobytes() for frame in frames] == [frame.tobytes() for frame in whole]
    assert [path.name for path in tmp_path.glob(".video*")] == []
    assert options["output"].read_bytes() == (tmp_path / "whole.mp4").read_bytes()


def test_only_a_run_with_the_same_settings_resumes(inputs, tmp_path, kill_after):
    options = {"chunk_size": 2, "output": tmp_path / "video.mp4"}
    kill_after(2)
    with pytest.raises(Killed):
        run(inputs, **options)
    kept = sorted((tmp_path / ".video.mp4.frames").iterdir())
    kill_after(9)
    with pytest.raises(ValueError, match=r"`resume` must keep the settings of .* got seed 0, now 7\."):
        run(inputs, "--resume", seed=7, **options)
    get_dummy_image(5).save(tmp_path / "photo.png")
    with pytest.raises(ValueError, match="`resume` must keep the settings of .* got image '"):
        run({**inputs, "--image": tmp_path / "photo.png"}, "--resume", **options)
    pipe = DreamPosePipeline.from_pretrained(inputs["--model"])
    torch.nn.init.ones_(pipe.unet.conv_out.bias)
    pipe.save_pretrained(tmp_path / "trained_on")
    with pytest.raises(ValueError, match="`resume` must keep the settings of .* got model '"):
        run({**inputs, "--model": tmp_path / "trained_on"}, "--resume", **options)
    pipe = DreamPosePipeline.from_pretrained(inputs["--model"])
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained(tmp_path / "rescheduled")
    with pytest.raises(ValueError, match="`resume` must keep the settings of .* got model '"):
        run({**inputs, "--model": tmp_path / "rescheduled"}, "--resume", **options)
    assert sorted((tmp_path / ".video.mp4.frames").iterdir()) == kept, "a refusal loses nothing"
    rendered = kill_after(9)
    run(inputs, "--overwrite", seed=7, **options)
    assert rendered == list(range(NUM_FRAMES)), "with --overwrite all is rendered anew"


def test_finished_frames_are_not_deleted_without_being_asked(inputs, tmp_path, kill_after, monkeypatch):
    options, folder = {"chunk_size": 2, "output": tmp_path / "video.mp4"}, tmp_path / ".video.mp4.frames"
    kill_after(2)
    with pytest.raises(Killed):
        run(inputs, **options)
    (folder / "notes.txt").write_text("the user's")
    with monkeypatch.context() as patch:
        patch.setattr("training.hub.repositories.load_pipeline", lambda *_, **__: pytest.fail("a model was loaded"))
        with pytest.raises(ValueError, match=r"frames' holds frames of a stopped run \(2\). Give `--resume`"):
            run(inputs, **options)
        with pytest.raises(ValueError, match="`overwrite` must be given without `resume`, got both"):
            run(inputs, "--resume", "--overwrite", **options)
    assert len(list(folder.glob("*.png"))) == 2
    kill_after(9)
    run(inputs, "--resume", **options)
    run(inputs, **options)  # onto the finished video
    assert [path.name for path in folder.iterdir()] == ["notes.txt"], "only the run's own files are deleted"
    (folder / "00000.png").write_bytes(b"the user's")
    with pytest.raises(ValueError, match="`output` must have no frames but those of a run, .* has no settings.json"):
        run(inputs, "--overwrite", **options)
    assert (folder / "00000.png").read_bytes() == b"the user's"


def test_only_recorded_pictures_of_a_folder_are_deleted(inputs, tmp_path, monkeypatch):
    clip = tmp_path / "clip"
    clip.mkdir()
    (clip / "00007.png").write_bytes(b"the user's")
    with monkeypatch.context() as patch:
        patch.setattr("training.hub.repositories.load_pipeline", lambda *_, **__: pytest.fail("a model was loaded"))
        with pytest.raises(ValueError, match="`output` must be a folder whose numbered PNGs .* with 00007.png"):
            run(inputs, output=clip)
    assert [path.name for path in tmp_path.rglob("*")] == ["clip", "00007.png"]
    (clip / "00007.png").rename(clip / "mine.png")
    run(inputs, output=clip)
    (tmp_path / "fewer").mkdir()
    get_dummy_iuv(0).save(tmp_path / "fewer" / "0.png")
    run(inputs, poses=tmp_path / "fewer", output=clip)  # the same command may run again
    assert sorted(path.name for path in clip.glob("*.png")) == ["00000.png", "mine.png"]
    assert (clip / "mine.png").read_bytes() == b"the user's"


def test_a_stopped_run_leaves_the_video_of_its_folder_until_it_is_done(inputs, tmp_path, kill_after):
    clip = tmp_path / "clip"
    run(inputs, output=clip)
    before = {path.name: path.read_bytes() for path in clip.iterdir()}
    kill_after(3)
    with pytest.raises(Killed):
        run(inputs, output=clip, chunk_size=1, seed=7)
    assert {path.name: path.read_bytes() for path in clip.iterdir()} == before
    kill_after(NUM_FRAMES)
    frames = run(inputs, "--resume", output=clip, chunk_size=1, seed=7)
    written = [np.asarray(Image.open(path)).tobytes() for path in sorted(clip.glob("*.png"))]
    assert written == [frame.tobytes() for frame in frames]


def test_two_runs_that_would_write_one_file_exclude_each_other(inputs, tmp_path):
    """Their lock is that of the stem, since each also deletes what a killed run left of its files."""
    locks = locks_output("output", is_folder=False)
    for first, second, more in (
        ("v.mp4", "v.gif", []),  # the first with --gif writes both
        ("v.gif", "v.mp4", ["--gif"]),
        ("v", "v.mp4", []),  # both have the strip v.png
        ("v.mp4", "v.png", ["--grid", "1", "1"]),
    ):

        @locks
        def while_it_is_locked(options, second=second, more=more):
            with pytest.raises(ValueError, match=r"`output` must not be in use by another run, .* holds \.v\.lock"):
                run(inputs, *more, output=tmp_path / second)

        while_it_is_locked(Namespace(output=tmp_path / first))
    assert list(tmp_path.iterdir()) == []


def test_files_of_the_user_are_replaced_only_with_overwrite(inputs, tmp_path, kill_after):
    (tmp_path / "clip.png").write_bytes(b"the user's")
    with pytest.raises(ValueError, match="`output` must replace only files of earlier runs, got .*clip.png'"):
        run(inputs, output=tmp_path / "clip.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["clip.png"]
    kill_after(2)
    with pytest.raises(Killed):
        run(inputs, "--overwrite", output=tmp_path / "clip.mp4", chunk_size=2)
    assert (tmp_path / "clip.png").read_bytes() == b"the user's", "nothing is replaced before the video is there"
    kill_after(9)
    run(inputs, "--resume", output=tmp_path / "clip.mp4", chunk_size=2)
    assert Image.open(tmp_path / "clip.png").size[0] > WIDTH
    run(inputs, output=tmp_path / "clip.mp4")  # the same command may run again


def test_bad_input_is_refused_before_a_model_is_loaded(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr("training.hub.repositories.load_pipeline", lambda *_, **__: pytest.fail("a model was loaded"))
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


def test_folders_without_a_pipeline_are_refused(inputs, tmp_path):
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


def test_sizes_that_do_not_divide_are_refused(inputs, tmp_path):
    for more in ([], ["--grid", "1", "1"]):
        output = tmp_path / ("grid.png" if more else "video.mp4")
        with pytest.raises(ValueError, match="`height` must be a positive multiple of 4, at most 16384; got 30"):
            run(inputs, *more, height=30, output=output)
        assert list(tmp_path.iterdir()) == [], "nothing is written"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--output", "video.avi"],
            "`--output` must end in .mp4 or .gif, or be a folder without a dot, got 'video.avi'",
        ),
        (["--grid", "1", "1", "--output", "a.mp4"], "`--output` must end in .png, got 'a.mp4'"),
        (["--grid", "1,x", "1"], "argument --grid: invalid scales value: '1,x'"),
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
def test_two_launched_processes_resume_after_a_kill_and_write_the_video_of_one(inputs, tmp_path, kill_after):
    one = np.stack(run(inputs, output=tmp_path / "one")).astype(int)
    kill_after(2)
    with pytest.raises(Killed):
        run(inputs, chunk_size=2, output=tmp_path / "two")
    # A frame of one colour shows that the run keeps it and does not render it again.
    Image.new("RGB", (WIDTH, HEIGHT), "white").save(tmp_path / ".two.frames" / "00000.png")
    words = as_words({**inputs, "--output": tmp_path / "two", "--chunk_size": 2})
    result = launch_two_processes("animate.py", [*words, "--resume"])
    assert f"{NUM_FRAMES} frames from 2 process(es)" in result.stdout
    two = np.stack([Image.open(tmp_path / "two" / f"{i:05d}.png") for i in range(NUM_FRAMES)]).astype(int)
    assert two[0].min() == 255 and np.abs(one - two)[1:].max() <= 1
