"""`animate.py --driving`: a video of anybody drives a photo, in one command."""

import shutil
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageChops, ImageOps

from pipeline_dreampose import DreamPosePipeline, iuv_to_pose_map
from tests.animating import Killed, animate_frames
from tests.densepose_exports import TupleExport
from tests.tiny_components import HEIGHT, WIDTH, get_dummy_image, get_dummy_pipeline
from training import extract_poses
from training.data.procedural_fashion import ProceduralFashionConfig
from training.media.sound import SAMPLE_RATE, SoundWriter, read_sound
from training.poses import alignment, driving
from training.poses.estimator import DensePoseEstimator


FRAMES = 6


@pytest.fixture(scope="module")
def drawn():
    """IUV pictures of a drawn clip, 80 x 64 pixels. The fake DensePose returns a picture as it is."""
    clip = ProceduralFashionConfig(name="driver", height=80, width=64, num_frames=FRAMES).clip(
        "test", 0, 0, range(FRAMES)
    )
    return [Image.fromarray(frame.iuv) for frame in clip]


def write_lossless(path, frames, fps=25, sound=None):
    with av.open(path, "w") as container:
        stream = container.add_stream("ffv1", rate=fps)
        writer = None if sound is None else SoundWriter(container, sound)
        stream.width, stream.height, stream.pix_fmt = *frames[0].size, "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame).reformat(format="bgr0")))
        container.mux(stream.encode())
        if writer is not None:
            writer.close()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, drawn):
    """Arguments that name a model, a photo, a video of IUV pictures and the fake DensePose."""
    folder = tmp_path_factory.mktemp("inputs")
    get_dummy_pipeline().save_pretrained(folder / "model")
    get_dummy_image().save(folder / "photo.png")
    write_lossless(folder / "dance.mkv", drawn)
    torch.jit.script(TupleExport()).save(folder / "model.pt")
    return {
        "--model": folder / "model", "--image": folder / "photo.png", "--driving": folder / "dance.mkv",
        "--densepose": folder / "model.pt", "--align": "none", "--scale": 1, "--device": "cpu",
    }  # fmt: skip


def run(inputs, *more, **changes):
    arguments = {**inputs, **{"--" + name: value for name, value in changes.items()}}
    words = [str(word) for pair in arguments.items() if pair[1] is not None for word in pair]
    return animate_frames([*words, *more])


def extract(*words):
    extract_poses.main(extract_poses.parse_args([str(word) for word in words]))


def inside(iuv):
    """Empty an IUV picture outside the box that the fake DensePose returns."""
    pixels = np.zeros_like(np.asarray(iuv))
    pixels[2:78, 4:60] = np.asarray(iuv)[2:78, 4:60]
    return Image.fromarray(pixels)


def test_a_video_drives_the_photo(inputs, drawn, tmp_path):
    frames = run(inputs, output=tmp_path / "video.mp4")
    pipe = DreamPosePipeline.from_pretrained(inputs["--model"])
    expected = pipe(get_dummy_image(), [inside(iuv) for iuv in drawn], generator=torch.Generator().manual_seed(0))
    assert [f.tobytes() for f in frames] == [f.tobytes() for f in expected.frames[0]]


@pytest.fixture
def seen(monkeypatch):
    """The pictures that DensePose saw. `seen.limit` stops it like a kill."""

    class Seen(list):
        limit = None

    seen, call = Seen(), DensePoseEstimator.__call__

    def spy(self, picture):
        if len(seen) == seen.limit:
            raise Killed
        seen.append(picture)
        return call(self, picture)

    monkeypatch.setattr(DensePoseEstimator, "__call__", spy)
    return seen


def test_a_second_run_with_another_photo_and_seed_reads_no_video(inputs, tmp_path, seen, monkeypatch):
    run(inputs, output=tmp_path / "a.mp4")
    assert len(seen) == FRAMES
    monkeypatch.setattr(driving, "iterate_with_gaps", lambda *_: pytest.fail("the video was read"))
    get_dummy_image(3).save(tmp_path / "other.png")
    run(inputs, output=tmp_path / "b.mp4", image=tmp_path / "other.png", seed=5)
    run(inputs, output=tmp_path / "c.mp4", person="score", median=1)
    assert len(seen) == FRAMES


def test_a_progress_bar_names_the_stage(inputs, photo, tmp_path, capsys):
    run({**inputs, "--image": photo / "photo.png", "--align": "place"}, output=tmp_path / "a.mp4")
    shown = capsys.readouterr().err
    places = [
        shown.index(name) for name in ("poses:", "pose of the photo ...", "alignment ...", "frames:", "video ...")
    ]
    assert places == sorted(places) and f"poses:   0%|          | 0/{FRAMES}" in shown


def test_the_kept_poses_are_those_of_this_video_and_this_densepose(inputs, drawn, tmp_path, seen):
    run(inputs, output=tmp_path / "a.mp4")
    shutil.copy(inputs["--driving"], tmp_path / "renamed.mkv")
    run(inputs, output=tmp_path / "b.mp4", driving=tmp_path / "renamed.mkv")
    assert len(seen) == FRAMES, "a name is no content"
    write_lossless(tmp_path / "renamed.mkv", drawn[:2])
    run(inputs, output=tmp_path / "c.mp4", driving=tmp_path / "renamed.mkv")
    assert len(seen) == FRAMES + 2
    torch.jit.save(torch.jit.script(TupleExport()), tmp_path / "model.pt", {"note": "other bytes"})
    run(inputs, output=tmp_path / "c.mp4", densepose=tmp_path / "model.pt")
    assert len(seen) == FRAMES + 2 + FRAMES


def test_a_killed_run_goes_on_where_it_stopped(inputs, tmp_path, seen):
    seen.limit = 2
    with pytest.raises(Killed):
        run(inputs, output=tmp_path / "video.mp4")
    seen.limit = None
    (kept,) = (tmp_path / ".dreampose_poses").iterdir()
    (kept / "00001.npz").write_bytes((kept / "00001.npz").read_bytes()[:100])
    frames = run(inputs, output=tmp_path / "video.mp4")
    assert len(seen) == FRAMES + 1, "only a damaged frame is seen twice"
    for wrong in (0, -3):
        (kept / "clip.json").write_text(f'{{"num_frames": {wrong}}}')
        assert len(run(inputs, output=tmp_path / "video.mp4")) == FRAMES
    whole = run(inputs, output=tmp_path / "whole" / "video.mp4")
    assert [f.tobytes() for f in frames] == [f.tobytes() for f in whole]


def test_a_run_that_is_killed_later_resumes_with_the_kept_poses(inputs, tmp_path, seen, kill_after):
    kill_after(4)
    with pytest.raises(Killed):
        run(inputs, output=tmp_path / "video.mp4", chunk_size=4)
    kill_after(FRAMES)
    assert len(list((tmp_path / ".video.mp4.frames").glob("*.png"))) == 4
    frames = run(inputs, "--resume", output=tmp_path / "video.mp4", chunk_size=4)
    assert len(frames) == len(seen) == FRAMES
    assert not (tmp_path / ".video.mp4.frames").exists() and (tmp_path / ".dreampose_poses").is_dir()


def test_a_frame_that_densepose_cannot_take_is_one_of_the_driver(inputs, tmp_path):
    write_lossless(tmp_path / "dance.mkv", [Image.new("RGB", (64, 80), (9, 9, 25))] * 2)  # there are 24 parts
    with pytest.raises(ValueError, match="`driving` must be a picture that the model accepts, but it failed on"):
        run(inputs, output=tmp_path / "video.mp4", driving=tmp_path / "dance.mkv")


def test_only_the_chosen_frames_are_read_and_shown(inputs, drawn, tmp_path, seen, capsys):
    frames = run(inputs, output=tmp_path / "some.mp4", start=1, end=6, every=2)
    assert "--align none: " in capsys.readouterr().out
    assert [picture.tobytes() for picture in seen] == [drawn[i].tobytes() for i in (1, 3, 5)]
    pipe = DreamPosePipeline.from_pretrained(inputs["--model"])
    poses = [inside(drawn[i]) for i in (1, 3, 5)]
    expected = pipe(get_dummy_image(), poses, generator=torch.Generator().manual_seed(0)).frames[0]
    assert [f.tobytes() for f in frames] == [f.tobytes() for f in expected]
    run(inputs, output=tmp_path / "all.mp4")
    capsys.readouterr()
    assert len(seen) == FRAMES, "the others follow when they are needed"
    for words, message in (
        ({"start": 6}, "`start` must be less than the number of frames, 6, got 6"),
        ({"end": 7}, "`end` must be at most the number of frames, 6, got 7"),
    ):
        with pytest.raises(ValueError, match=message):
            run(inputs, output=tmp_path / "none.mp4", **words)
        assert "--align" not in capsys.readouterr().out, "nothing is announced that is not done"


def test_frames_of_poses_are_chosen_as_well(inputs, drawn, tmp_path):
    (tmp_path / "poses").mkdir()
    for index, iuv in enumerate(drawn):
        inside(iuv).save(tmp_path / "poses" / f"{index}.png")
    chosen = {"start": 1, "end": 6, "every": 2}
    expected = run(inputs, output=tmp_path / "video.mp4", **chosen)
    files = {"poses": tmp_path / "poses", "driving": None, "densepose": None, "align": None}
    frames = run(inputs, output=tmp_path / "files.mp4", **chosen, **files)
    assert [f.tobytes() for f in frames] == [f.tobytes() for f in expected]
    with pytest.raises(ValueError, match="`start` must be less than the number of frames, 6, got 6"):
        run(inputs, output=tmp_path / "none.mp4", **files | {"start": 6})


def test_a_folder_of_pictures_drives_as_well(inputs, drawn, tmp_path):
    (tmp_path / "frames").mkdir()
    for index in (0, 1, 2, 4, 5):  # the missing one copies a neighbour
        drawn[index].save(tmp_path / "frames" / f"{index}.png")
    frames = run(inputs, output=tmp_path / "video.mp4", driving=tmp_path / "frames")
    whole = run(inputs, output=tmp_path / "whole.mp4")
    same = [first.tobytes() == second.tobytes() for first, second in zip(frames, whole, strict=True)]
    assert same[0] and not same[3]


def frames_per_second(path):
    with av.open(path) as container:
        return container.streams.video[0].average_rate


def read_video(path):
    with av.open(path) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_the_video_is_as_fast_as_its_driver(inputs, drawn, tmp_path):
    run(inputs, output=tmp_path / "a.mp4")
    assert frames_per_second(tmp_path / "a.mp4") == 25
    run(inputs, output=tmp_path / "b.mp4", every=2)
    assert frames_per_second(tmp_path / "b.mp4") == Fraction(25, 2)
    run(inputs, output=tmp_path / "still.mp4", every=10**6)
    assert len(read_video(tmp_path / "still.mp4")) == 1
    run(inputs, output=tmp_path / "c.mp4", fps=10)
    assert frames_per_second(tmp_path / "c.mp4") == 10
    write_lossless(tmp_path / "ntsc.mkv", drawn, Fraction(30000, 1001))
    run(inputs, output=tmp_path / "d.mp4", driving=tmp_path / "ntsc.mkv")
    assert frames_per_second(tmp_path / "d.mp4") == Fraction(30000, 1001)


def test_poses_of_a_video_keep_its_rate(inputs, tmp_path):
    """`extract_poses.py` and `--save_poses` write it down, and a turned copy of a folder takes it over."""
    words = ["--input", inputs["--driving"], "--densepose", inputs["--densepose"], "--device", "cpu"]
    extract(*words, "--output_dir", tmp_path / "poses")
    extract("--input", tmp_path / "poses", "--output_dir", tmp_path / "copy")
    run(inputs, output=tmp_path / "a.mp4", save_poses=tmp_path / "saved", every=2)
    files = {"driving": None, "densepose": None, "align": None}
    for name, fps in (("poses", 25), ("copy", 25), ("saved", Fraction(25, 2))):
        run(inputs, output=tmp_path / "b.mp4", poses=tmp_path / name, **files)
        assert frames_per_second(tmp_path / "b.mp4") == fps
    (tmp_path / "copy" / "fps.json").unlink()
    run(inputs, output=tmp_path / "b.mp4", poses=tmp_path / "copy", **files)
    assert frames_per_second(tmp_path / "b.mp4") == 30
    extract("--input", tmp_path / "copy", "--output_dir", tmp_path / "poses")
    assert not (tmp_path / "poses" / "fps.json").exists(), "the rate of an earlier run goes"


def test_saved_poses_give_the_same_frames(inputs, drawn, tmp_path):
    frames = run(inputs, output=tmp_path / "a.mp4", save_poses=tmp_path / "saved")
    saved = [np.asarray(Image.open(tmp_path / "saved" / f"{i:05d}.png")) for i in range(FRAMES)]
    np.testing.assert_array_equal(saved, [np.asarray(inside(iuv)) for iuv in drawn])
    files = {"poses": tmp_path / "saved", "driving": None, "densepose": None, "align": None}
    again = run(inputs, output=tmp_path / "b.mp4", **files)
    assert [f.tobytes() for f in again] == [f.tobytes() for f in frames]


def tone(seconds):
    """A tone that gets higher with time."""
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    wave = 0.5 * np.sin(2 * np.pi * (300 + 2000 * time) * time)
    return np.stack([wave, 0.5 * wave]).astype(np.float32)


def sound_of(path):
    with av.open(path) as container:
        stream = container.streams.audio[0]
        return stream.codec_context.name, read_sound(container, 0, float(stream.duration * stream.time_base))


@pytest.mark.parametrize("start", [0, 2])
def test_the_sound_is_that_of_the_chosen_frames(inputs, drawn, tmp_path, start):
    sound = tone(FRAMES / 25)
    write_lossless(tmp_path / "dance.mkv", drawn, sound=sound)
    run(inputs, "--sound", output=tmp_path / "a.mp4", driving=tmp_path / "dance.mkv", start=start, every=2)
    codec, heard = sound_of(tmp_path / "a.mp4")
    expected = sound[:, round(start / 25 * SAMPLE_RATE) :]
    assert codec == "aac" and heard.shape == expected.shape
    middle = slice(1024, -1024)  # AAC needs a while at either end
    for channel in (0, 1):
        assert np.corrcoef(heard[channel, middle], expected[channel, middle])[0, 1] > 0.95
    with av.open(tmp_path / "a.mp4") as container:
        video = container.streams.video[0]
        assert float(video.duration * video.time_base) == pytest.approx((FRAMES - start) / 25)


def test_frames_at_a_variable_rate_stay_with_the_sound(inputs, drawn, tmp_path):
    times = [0, 40, 80, 480, 520, 560]  # milliseconds; the mean rate gives the fourth frame 360 ms less
    with av.open(tmp_path / "dance.mkv", "w") as container:
        stream = container.add_stream("ffv1", rate=Fraction(25, 3))
        stream.width, stream.height, stream.pix_fmt = *drawn[0].size, "bgr0"
        stream.codec_context.time_base = Fraction(1, 1000)
        writer = SoundWriter(container, tone(0.6))
        for milliseconds, iuv in zip(times, drawn, strict=True):
            frame = av.VideoFrame.from_image(iuv).reformat(format="bgr0")
            frame.pts, frame.time_base = milliseconds, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        writer.close()
    fps = float(frames_per_second(tmp_path / "dance.mkv"))
    run(inputs, "--sound", output=tmp_path / "a.mp4", driving=tmp_path / "dance.mkv", save_poses=tmp_path / "poses")
    poses = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "poses").glob("*.png"))]
    whole = [np.asarray(inside(iuv)) for iuv in drawn]
    shown = [max(i for i in range(FRAMES) if times[i] / 1000 <= (k + 0.5) / fps) for k in range(len(poses))]
    assert shown.count(2) > 1, "the frame that stays longest is repeated"
    np.testing.assert_array_equal(poses, [whole[i] for i in shown])
    assert sound_of(tmp_path / "a.mp4")[1].shape[1] == pytest.approx(len(poses) / fps * SAMPLE_RATE, abs=1)


def test_a_video_without_sound_is_refused_for_sound(inputs, tmp_path, seen, monkeypatch):
    monkeypatch.setattr("training.hub.repositories.load_pipeline", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match="`sound` must be given with a `driving` that has sound, got .*dance.mkv"):
        run(inputs, "--sound", output=tmp_path / "a.mp4")
    (tmp_path / "frames").mkdir()
    get_dummy_image().save(tmp_path / "frames" / "0.png")
    with pytest.raises(ValueError, match="`sound` must be given with a video as `driving`, got the folder"):
        run(inputs, "--sound", output=tmp_path / "a.mp4", driving=tmp_path / "frames")
    assert not (tmp_path / ".dreampose_poses").exists() and not seen


def test_the_strip_shows_the_driver_s_frames_above_the_poses(inputs, drawn, tmp_path):
    run(inputs, output=tmp_path / "a.mp4", strip_frames=3)
    strip = np.asarray(Image.open(tmp_path / "a.png")).astype(int)
    assert strip.shape == (3 * HEIGHT + 2 * 4, 4 * WIDTH + 3 * 4, 3)
    for column, index in enumerate((0, 2, 5), start=1):
        left = column * (WIDTH + 4)
        rows = [strip[row * (HEIGHT + 4) :, left : left + WIDTH][:HEIGHT] for row in (0, 1)]
        shown, pose = (np.asarray(ImageOps.pad(iuv, (WIDTH, HEIGHT), color=color, method=how)).astype(int)
                       for iuv, color, how in ((drawn[index], "white", Image.Resampling.BICUBIC),
                                               (inside(drawn[index]), None, Image.Resampling.NEAREST)))  # fmt: skip
        assert np.abs(rows[0] - shown).mean() < 8, "a JPEG of the driver's frame"
        np.testing.assert_array_equal(rows[1], pose)


@pytest.fixture
def aligned(monkeypatch):
    """The arguments of `align_poses`, which is replaced by one that mirrors the poses."""
    calls = []

    def mirror(poses, photo_iuv, mode):
        calls.append((list(poses), photo_iuv, mode))
        return [ImageOps.mirror(pose) for pose in poses]

    monkeypatch.setattr(alignment, "align_poses", mirror, raising=False)
    return calls


@pytest.fixture(scope="module")
def photo(tmp_path_factory, drawn):
    """A photo that the fake DensePose takes for its own IUV, and that IUV as a file."""
    folder = tmp_path_factory.mktemp("photo")
    drawn[3].save(folder / "photo.png")
    inside(drawn[3]).save(folder / "photo_iuv.png")
    return folder


def test_poses_are_placed_onto_the_photo_s_body_by_default(inputs, drawn, photo, tmp_path, aligned, capsys):
    arguments = {**inputs, "--image": photo / "photo.png", "--align": None}
    frames = run(arguments, output=tmp_path / "a.mp4", save_poses=tmp_path / "saved")
    ((poses, iuv, mode),) = aligned
    assert mode == "place" and "--align place: the poses are moved and scaled" in capsys.readouterr().out
    assert [pose.tobytes() for pose in poses] == [inside(pose).tobytes() for pose in drawn]
    assert iuv.tobytes() == inside(drawn[3]).tobytes()
    mirrored = [ImageOps.mirror(inside(pose)) for pose in drawn]
    pipe = DreamPosePipeline.from_pretrained(inputs["--model"])
    expected = pipe(drawn[3], mirrored, generator=torch.Generator().manual_seed(0)).frames[0]
    assert [f.tobytes() for f in frames] == [f.tobytes() for f in expected]
    saved = [Image.open(tmp_path / "saved" / f"{i:05d}.png").tobytes() for i in range(FRAMES)]
    assert saved == [pose.tobytes() for pose in mirrored], "the saved poses are those that the frames follow"
    strip = Image.open(tmp_path / "a.png")
    shown = strip.crop((WIDTH + 4, HEIGHT + 4, 2 * WIDTH + 4, 2 * HEIGHT + 4))
    assert shown.tobytes() == ImageOps.pad(mirrored[0], (WIDTH, HEIGHT), Image.Resampling.NEAREST).tobytes()


def test_a_driver_who_stands_elsewhere_is_placed_where_the_photo_s_person_stands(inputs, drawn, photo, tmp_path):
    shifted = [ImageChops.offset(iuv, -9, 0) for iuv in drawn]
    write_lossless(tmp_path / "dance.mkv", shifted)
    for mode in ("none", "place", "body"):
        words = {"align": mode, "save_poses": tmp_path / mode, "driving": tmp_path / "dance.mkv"}
        run(inputs, output=tmp_path / "a.mp4", image=photo / "photo.png", **words)
    own = np.stack([np.asarray(iuv)[..., 2] > 0 for iuv in drawn])
    overlap = {}
    for mode in ("none", "place", "body"):
        saved = [np.asarray(Image.open(tmp_path / mode / f"{i:05d}.png"))[..., 2] > 0 for i in range(FRAMES)]
        overlap[mode] = (own & saved).sum() / (own | saved).sum()
    assert overlap["none"] < 0.6 and min(overlap["place"], overlap["body"]) > 0.9, overlap


def test_a_notice_about_the_alignment_is_one_line(inputs, photo, tmp_path, caplog):
    """Maps have no part codes, so the silhouettes decide, and the limbs cannot be told apart."""
    np.save(tmp_path / "maps.npy", np.stack([iuv_to_pose_map(Image.open(photo / "photo_iuv.png")).numpy()] * 2))
    poses = {"poses": tmp_path / "maps.npy", "driving": None, "densepose": None}
    arguments = {**inputs, **{"--" + name: value for name, value in poses.items()}, "--image": photo / "photo.png"}
    frames = run(arguments, output=tmp_path / "a.mp4", image_iuv=photo / "photo_iuv.png", align="place")
    assert len(frames) == 2 and any("silhouette" in record.message for record in caplog.records)
    with pytest.raises(ValueError, match="`align` must be place or none for pose maps without part codes"):
        run(arguments, output=tmp_path / "a.mp4", image_iuv=photo / "photo_iuv.png", align="body")


def test_a_notice_about_several_people_names_the_picture_as_the_user_did(inputs, photo, drawn, tmp_path, caplog):
    pair = Image.fromarray(np.concatenate([np.asarray(drawn[3])] * 2, axis=1))
    pair.resize(drawn[3].size, Image.Resampling.NEAREST).save(tmp_path / "pair.png")
    run({**inputs, "--image": photo / "photo.png", "--align": None}, output=tmp_path / "a.mp4",
        image_iuv=tmp_path / "pair.png", end=1)  # fmt: skip
    assert any(record.message.startswith("`image_iuv` shows several people") for record in caplog.records)


def test_the_photo_s_iuv_may_be_given(inputs, photo, tmp_path, aligned, seen, capsys):
    arguments = {**inputs, "--image": photo / "photo.png", "--align": None}
    run(arguments, output=tmp_path / "a.mp4", image_iuv=photo / "photo_iuv.png", align="body")
    assert len(seen) == FRAMES, "DensePose does not see the photo"
    run(arguments, output=tmp_path / "b.mp4", save_poses=tmp_path / "saved", align="none")
    assert "--align none: the figure stands where the person of the poses stands" in capsys.readouterr().out
    poses = {"poses": tmp_path / "saved", "driving": None}
    run(arguments, output=tmp_path / "c.mp4", **poses, image_iuv=photo / "photo_iuv.png", densepose=None)
    run(arguments, output=tmp_path / "d.mp4", **poses)
    assert len(seen) == FRAMES + 1
    (_, iuv, mode), *others = aligned
    assert mode == "body" and [other[2] for other in others] == ["place", "place"]
    assert {other[1].tobytes() for other in others} == {iuv.tobytes()}
    capsys.readouterr()
    run(arguments, output=tmp_path / "e.mp4", **poses, densepose=None)
    assert len(aligned) == 3 and "align" not in capsys.readouterr().out, "without the photo's IUV all is as before"


def test_a_photo_of_nobody_cannot_be_aligned_with(inputs, tmp_path, aligned):
    Image.new("RGB", (64, 80)).save(tmp_path / "black.png")
    with pytest.raises(ValueError, match="`image` must show a person that `densepose` finds, .* or `--align none`"):
        run(inputs, output=tmp_path / "a.mp4", image=tmp_path / "black.png", align="place")


def test_a_video_of_nobody_is_refused(inputs, drawn, tmp_path):
    nobody = Image.new("RGB", (64, 80))
    write_lossless(tmp_path / "dance.mkv", [nobody] * 3)
    with pytest.raises(ValueError, match="`driving` must show a person, got none in any of 3"):
        run(inputs, output=tmp_path / "a.mp4", driving=tmp_path / "dance.mkv")
    write_lossless(tmp_path / "dance.mkv", [drawn[0], nobody, nobody, drawn[1]])
    with pytest.raises(ValueError, match="`max_gap` must be at least 2 for the gap at frame 1, got 1"):
        run(inputs, output=tmp_path / "a.mp4", driving=tmp_path / "dance.mkv", max_gap=1)
    frames = run(inputs, output=tmp_path / "a.mp4", driving=tmp_path / "dance.mkv")
    assert len(frames) == 4


@pytest.mark.parametrize(
    ("enlarged", "height", "size"), [(40, 32, (1024, 1280)), (2, 32, (128, 160)), (1, 160, (128, 160))]
)
def test_aligned_poses_are_neither_huge_nor_coarser_than_the_frames(
    inputs, drawn, photo, tmp_path, aligned, enlarged, height, size
):
    for name in ("photo.png", "photo_iuv.png"):
        with Image.open(photo / name) as picture:
            picture.resize((64 * enlarged, 80 * enlarged), Image.Resampling.NEAREST).save(tmp_path / name)
    words = {"image": tmp_path / "photo.png", "image_iuv": tmp_path / "photo_iuv.png", "align": "place"}
    run(inputs, output=tmp_path / "a.mp4", height=height, width=height * 3 // 4, num_inference_steps=1, **words)
    ((_, iuv, _),) = aligned
    assert iuv.size == size
    assert set(np.unique(np.asarray(iuv)[..., 2])) == set(np.unique(np.asarray(inside(drawn[3]))[..., 2]))


def test_poses_of_a_huge_video_are_shrunk_before_they_are_aligned(inputs, drawn, photo, tmp_path, aligned):
    large = [np.asarray(inside(iuv).resize((1280, 1600), Image.Resampling.NEAREST)) for iuv in drawn[:2]]
    np.save(tmp_path / "poses.npy", np.stack(large))
    words = {"poses": tmp_path / "poses.npy", "driving": None, "densepose": None, "align": "place"}
    run(inputs, output=tmp_path / "a.mp4", image=photo / "photo.png", image_iuv=photo / "photo_iuv.png", **words)
    ((poses, _, _),) = aligned
    assert [pose.size for pose in poses] == [(1024, 1280)] * 2
    for pose, iuv in zip(poses, drawn, strict=False):
        small = np.asarray(pose.resize((64, 80), Image.Resampling.NEAREST))
        np.testing.assert_array_equal(small, np.asarray(inside(iuv)))
