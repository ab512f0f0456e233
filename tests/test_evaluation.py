import contextlib
import io
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler
from PIL import Image

from pipeline_dreampose import DreamPosePipeline, fit_image
from tests.judge_exports import save_inception
from tests.launch import launch_two_processes
from tests.tiny_components import NUM_FRAMES, get_dummy_image, get_dummy_iuv, get_dummy_pipeline
from training import evaluation
from training.data.frame_pairs import group_videos
from training.data.procedural_fashion import ProceduralFashion, load_procedural_fashion
from training.data.samples import load_prepared
from training.hub.repositories import default_size, load_pipeline
from training.metrics import baselines, clip_records
from training.metrics import clips as clips_module
from training.metrics import frames as metrics
from training.metrics.clip_records import ClipRecord
from training.metrics.clips import Clip, draw_run, load_clips
from training.metrics.counts import UpTo, reduce_counts
from training.metrics.warping import match_surface, warp_photo


@pytest.fixture(scope="module", autouse=True)
def fresh_cache(tmp_path_factory):
    """Use an empty cache, so that no data set of an older version is measured."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


@pytest.fixture(scope="module")
def clips(fresh_cache):
    return load_clips("procedural/smoke", "test", num_clips=2, frames_per_clip=2, num_consecutive=3)


@pytest.fixture
def dummy_clip():
    layers = np.zeros((32, 24), np.uint8)
    layers[4:20, 6:18], layers[20:28, 6:18] = 1, 2
    return Clip(
        name="dummy",
        reference=get_dummy_image(0),
        iuv=[get_dummy_iuv(i) for i in range(NUM_FRAMES)],
        frame_indices=[1, 3],
        targets=[get_dummy_image(1), get_dummy_image(2)],
        layers=[Image.fromarray(layers)] * 2,
        other_reference=get_dummy_image(3),
    )


def test_clips_are_a_photo_the_whole_motion_and_its_true_frames(clips):
    config = ProceduralFashion(config_name="smoke").config
    for index, clip in enumerate(clips):
        drawn = config.clip("test", index, index)
        assert len(clip.iuv) == len(drawn) and all(0 < i < len(drawn) for i in clip.frame_indices)
        np.testing.assert_array_equal(clip.reference, drawn[0].image)
        for frame, iuv in zip(drawn, clip.iuv, strict=True):
            np.testing.assert_array_equal(iuv, frame.iuv)
        for i, target, layers in zip(clip.frame_indices, clip.targets, clip.layers, strict=True):
            np.testing.assert_array_equal(target, drawn[i].image)
            np.testing.assert_array_equal(layers, drawn[i].layers)
        first = clip.run_indices[0]
        assert list(clip.run_indices) == [first, first + 1, first + 2] and first > 0
        for i, target, layers in zip(clip.run_indices, clip.run_targets, clip.run_layers, strict=True):
            np.testing.assert_array_equal(target, drawn[i].image)
            np.testing.assert_array_equal(layers, drawn[i].layers)


def test_consecutive_frames_do_not_alter_the_targets(clips):
    without = load_clips("procedural/smoke", "test", num_clips=2, frames_per_clip=2)
    assert [clip.frame_indices for clip in clips] == [clip.frame_indices for clip in without]
    assert all(len(clip.run_targets) == len(clip.run_indices) == 0 for clip in without)


def test_consecutive_frames_come_from_the_later_part_of_a_clip():
    drawn = {tuple(draw_run(16, 6, np.random.default_rng(seed))) for seed in range(50)}
    assert {run[0] for run in drawn} == {5, 6, 7, 8} and all(np.diff(run).tolist() == [1] * 5 for run in drawn)
    assert draw_run(16, 15, np.random.default_rng(0)) == list(range(1, 16))


def test_the_counterpart_has_the_next_subjects_looks_in_this_motion(clips):
    config = ProceduralFashion(config_name="smoke").config
    for index, clip in enumerate(clips):
        np.testing.assert_array_equal(clip.other_reference, config.clip("test", index + 1, index + 1, [0])[0].image)
        drawn = config.counterpart("test", index + 1, index)
        for i, target in zip(clip.frame_indices, clip.other_targets, strict=True):
            np.testing.assert_array_equal(target, drawn[i].image)
        assert clip.other_targets[0].tobytes() != clip.targets[0].tobytes()


def test_the_choice_of_targets_follows_the_seed():
    first, again, *others = (load_clips("procedural/smoke", "test", 2, 1, seed=seed) for seed in (0, 0, 1, 2, 3, 4))
    assert [clip.frame_indices for clip in again] == [clip.frame_indices for clip in first]
    assert any(clip.frame_indices != same.frame_indices for other in others for clip, same in zip(other, first))


@pytest.mark.parametrize(
    ("frames_per_clip", "allowed"), [(1, {2, 3}), (2, {2, 3}), (3, {1, 2, 3}), (4, {1, 2, 3, 4}), (5, {1, 2, 3, 4, 5})]
)
def test_targets_have_whole_windows_where_the_clip_is_long_enough(frames_per_clip, allowed):
    clips = [c for seed in range(4) for c in load_clips("procedural/smoke", "test", 2, frames_per_clip, seed)]
    assert all(len(set(clip.frame_indices)) == frames_per_clip for clip in clips)
    assert {index for clip in clips for index in clip.frame_indices} == allowed


def test_moved_marks_turns_and_arms(monkeypatch):
    sample_motion = ProceduralFashion.BUILDER_CONFIG_CLASS.motion

    def still(self, split, index):
        motion = sample_motion(self, split, index)
        arms = np.zeros_like(motion.arm_raise)
        arms[-1, 1] = 0.7
        return replace(motion, yaw=np.linspace(0, 1.4, len(motion.yaw)), arm_raise=arms)

    monkeypatch.setattr(ProceduralFashion.BUILDER_CONFIG_CLASS, "motion", still)
    clip = load_clips("procedural/smoke", "test", num_clips=2, frames_per_clip=5)[0]
    assert clip.moved == [False] * 4 + [True]


def test_a_prepared_folder_has_no_counterpart_in_this_motion(clips, tmp_path):
    rows = load_procedural_fashion("smoke", "test").remove_columns("layers")
    (tmp_path / "data").mkdir()
    rows.to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    clip = load_clips(str(tmp_path), "test", num_clips=2, frames_per_clip=2)[0]
    assert clip.frame_indices == clips[0].frame_indices
    assert clip.targets[0].tobytes() == clips[0].targets[0].tobytes()
    assert clip.other_reference is not None
    assert clip.layers is clip.other_targets is clip.moved is None


def test_frames_that_have_the_size_are_left_as_they_are(clips):
    fitted = load_clips("procedural/smoke", "test", 2, 2, num_consecutive=3, size=(64, 80))
    for same, clip in zip(fitted, clips, strict=True):
        for name in ("iuv", "targets", "layers", "other_targets", "other_layers", "run_targets", "run_layers"):
            pairs = zip(getattr(same, name), getattr(clip, name), strict=True)
            assert all(a.mode == b.mode and a.tobytes() == b.tobytes() for a, b in pairs), name
        assert same.reference.tobytes() == clip.reference.tobytes()
        assert same.other_reference.tobytes() == clip.other_reference.tobytes()
        assert same.frame_indices == clip.frame_indices and same.moved == clip.moved


def write_frames(folder, frames, videos=("a", "b")):
    """Write a prepared folder with split `test`; each frame of all videos is a dict of pictures by column."""
    (folder / "data").mkdir(parents=True)
    rows = [{"video_id": v, "frame_index": i, **frame} for v in videos for i, frame in enumerate(frames)]
    features = {"video_id": datasets.Value("string"), "frame_index": datasets.Value("int32")}
    features |= {name: datasets.Image() for name in frames[0]}
    rows = datasets.Dataset.from_list(rows, features=datasets.Features(features))
    rows.to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    return str(folder)


@pytest.mark.parametrize("scale", [1, 4])
def test_picture_poses_and_layers_stay_aligned_on_another_canvas(tmp_path, scale):
    """A rectangle of 20 x 40 units is fitted into 80 x 80 pixels: a unit is two pixels, with 20 free on each side."""
    image = Image.new("RGB", (20 * scale, 40 * scale), (20, 240, 60))
    iuv, layers = Image.new("RGB", image.size), Image.new("L", image.size)
    box = tuple(side * scale for side in (5, 10, 15, 30))
    for picture, value in ((image, (200, 80, 120)), (iuv, (70, 90, 2)), (layers, 3)):
        picture.paste(value, box)
    folder = write_frames(tmp_path, [{"image": image, "iuv": iuv, "layers": layers}] * 5)
    clip = load_clips(folder, "test", 2, 1, num_consecutive=3, size=(80, 80))[0]
    expected = np.zeros((80, 80), bool)
    expected[20:60, 30:50] = True
    for picture in (clip.reference, clip.other_reference, *clip.targets, *clip.run_targets):
        assert picture.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(picture)[..., 0] > 110, expected)
        assert (np.asarray(picture)[:, :20] == (20, 240, 60)).all(), "borders are continued"
    assert len(clip.iuv) == 5 and len(clip.run_layers) == 3
    for picture in clip.iuv:
        np.testing.assert_array_equal(picture, expected[..., None] * np.uint8([70, 90, 2]))
    for picture in (*clip.layers, *clip.run_layers):
        np.testing.assert_array_equal(picture, expected * np.uint8(3))


def test_drawn_counterparts_are_fitted_as_the_clips_are():
    clip = load_clips("procedural/smoke", "test", 2, 2, size=(128, 128))[0]
    config = ProceduralFashion(config_name="smoke").config
    for i, picture, layers in zip(clip.frame_indices, clip.other_targets, clip.other_layers, strict=True):
        drawn = config.counterpart("test", 1, 0)[i]
        expected = fit_image(Image.fromarray(drawn.image), 128, 128)
        torch.testing.assert_close(baselines.to_tensor([picture])[0] * 2 - 1, expected, atol=1e-6, rtol=0)
        # 64 x 80 becomes 102 x 128, with 13 free on each side.
        assert set(np.unique(layers)) == set(np.unique(drawn.layers))
        assert not np.asarray(layers)[:, :13].any() and not np.asarray(layers)[:, 115:].any()


@pytest.mark.parametrize(("column", "size"), [("iuv", (24, 30)), ("layers", (12, 16))])
def test_a_frame_of_two_sizes_is_refused(tmp_path, column, size):
    frame = {"image": get_dummy_image(), "iuv": get_dummy_iuv(), "layers": Image.new("L", (24, 32))}
    odd = frame | {column: frame[column].resize(size)}
    clips = load_clips(write_frames(tmp_path, [frame, odd, odd, odd]), "test", 2, 1, size=(24, 32))
    message = r"`dataset` must hold pictures of one size for each frame, got {'image': \(24, 32\), .* of video 'a'"
    with pytest.raises(ValueError, match=message):
        clips[0]


def as_png(picture):
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("column", ["image", "iuv"])
def test_a_picture_that_cannot_be_read_is_named(tmp_path, column):
    frames = [{"image": get_dummy_image(), "iuv": get_dummy_iuv()} for _ in range(4)]
    for frame in frames:
        half = as_png(frame[column])[:60]
        frame[column] = {"bytes": half, "path": None}
    clips = load_clips(write_frames(tmp_path, frames), "test", 2, 1)
    with pytest.raises(ValueError, match="`dataset` must hold readable pictures, got frame 1 of video 'a': "):
        clips[0]


def test_the_photo_may_come_from_the_split_that_holds_the_beginning_of_the_clip(tmp_path):
    frames = [{"image": get_dummy_image(k), "iuv": get_dummy_iuv(k)} for k in range(8)]
    folder = write_frames(tmp_path / "held out", frames[4:])
    other = write_frames(tmp_path / "other", frames[:4])
    (shard,) = Path(other).rglob("*.parquet")
    shard.rename(next(Path(folder).rglob("*.parquet")).with_name("train-00000-of-00001.parquet"))
    usual, held_out = (load_clips(folder, "test", 1, 2, photo_split=name)[0] for name in (None, "train"))
    assert usual.reference.tobytes() == frames[4]["image"].tobytes()
    assert usual.photo_iuv.tobytes() == usual.iuv[0].tobytes() == frames[4]["iuv"].tobytes()
    assert held_out.reference.tobytes() == frames[0]["image"].tobytes()
    assert held_out.photo_iuv.tobytes() == frames[0]["iuv"].tobytes()
    assert held_out.targets[0].tobytes() == usual.targets[0].tobytes()
    with pytest.raises(ValueError, match="`photo_split` must have the clips of the split train, but .* lacks"):
        load_clips("procedural/smoke", "train", 1, 2, photo_split="test")


def test_an_output_that_is_a_file_is_refused_at_once(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="`output` must be a folder .*, got '.*/file', which is a file"):
        evaluation.main(evaluation.parse_args(["--model", "no/such", "--output", str(tmp_path / "file")]))


def test_poses_are_read_when_they_are_asked_for(tmp_path, monkeypatch):
    iuv = [get_dummy_iuv(i) for i in range(20)]
    folder = write_frames(tmp_path, [{"image": get_dummy_image(i), "iuv": iuv[i]} for i in range(20)])
    fit, fitted = clips_module.fit_labels, []
    monkeypatch.setattr(clips_module, "fit_labels", lambda *args: fitted.append(args) or fit(*args))
    clip = load_clips(folder, "test", 2, 1)[0]
    assert not fitted
    pipe = get_dummy_pipeline(scheduler=EulerAncestralDiscreteScheduler())  # its steps draw noise for each frame
    sampled = baselines.sample_frames(pipe, clip.reference, clip.iuv, [19, 7], (24, 32), seed=3)
    assert len(fitted) == 8, "frames 5 to 9, and 17 to 19 at the end of the clip"
    whole = pipe(
        clip.reference, iuv, generator=torch.Generator().manual_seed(3), frame_indices=[19, 7], output_type="pt"
    )
    assert torch.equal(sampled, whole.frames[0])
    assert clip.iuv[7].tobytes() == iuv[7].tobytes() and len(fitted) == 8, "what was read is kept"
    with pytest.raises(IndexError):
        clip.iuv[20]


def test_the_default_data_set_is_one(monkeypatch):
    asked = []
    monkeypatch.setattr("training.data.samples.load_procedural_fashion", lambda *args: asked.append(args))
    load_prepared(evaluation.parse_args(["--model", "m"]).dataset, "test")
    assert asked == [("tiny", "test")]


def test_bad_requests_are_refused(tmp_path, clips):
    with pytest.raises(ValueError, match="must be one of .*smoke.* got 'missing'"):
        load_clips("procedural/missing", "test", 2, 2)
    with pytest.raises(ValueError, match=r"`num_clips` must lie within \[1, 3\] for this split, got 9"):
        load_clips("procedural/smoke", "test", 9, 2)
    with pytest.raises(ValueError, match=r"`frames_per_clip` must lie within \[1, 5\] for test-000000, got 6"):
        load_clips("procedural/smoke", "test", 2, 6)
    with pytest.raises(ValueError, match=r"`num_consecutive` must be 0 or lie within \[3, 5\] for test-000000, got 2"):
        load_clips("procedural/smoke", "test", 2, 2, num_consecutive=2)
    with pytest.raises(IndexError):
        clips[2]


def test_predictions_match_their_names(dummy_clip):
    pipe = get_dummy_pipeline()
    predictions = baselines.predict_clip(pipe, dummy_clip, seed=4)

    def sample(photo, poses, **options):
        return pipe(photo, poses, generator=torch.Generator().manual_seed(4), output_type="pt", **options).frames[0]

    whole = sample(dummy_clip.reference, dummy_clip.iuv)
    torch.testing.assert_close(predictions["own"], whole[[1, 3]], atol=1e-4, rtol=0)
    centres = [sample(dummy_clip.reference, [dummy_clip.iuv[i]])[0] for i in (1, 3)]
    torch.testing.assert_close(predictions["center_pose"], torch.stack(centres), atol=1e-4, rtol=0)
    nobody = sample(dummy_clip.reference, torch.zeros(NUM_FRAMES, 2, 32, 24))
    torch.testing.assert_close(predictions["pose_dropped"], nobody[[1, 3]], atol=1e-4, rtol=0)
    other = sample(dummy_clip.other_reference, dummy_clip.iuv)
    torch.testing.assert_close(predictions["other_photo"], other[[1, 3]], atol=1e-4, rtol=0)
    copies = baselines.to_tensor([dummy_clip.reference] * 2)
    torch.testing.assert_close(predictions["copy"], copies, atol=0, rtol=0)
    names = ["own", "center_pose", "pose_dropped", "other_photo", "copy", "warp", "vae_round_trip"]
    assert set(predictions) == set(names)
    for i, name in enumerate(names):
        assert predictions[name].shape == (2, 3, 32, 24)
        assert all((predictions[name] - predictions[after]).abs().max() > 1e-3 for after in names[i + 1 :]), name


def test_the_round_trip_encodes_to_the_mean_and_decodes(dummy_clip):
    pipe = get_dummy_pipeline()
    images = baselines.to_tensor(dummy_clip.targets)
    with torch.no_grad():
        expected = pipe.vae.decode(pipe.vae.encode(images * 2 - 1).latent_dist.mean).sample
    torch.testing.assert_close(baselines.vae_round_trip(pipe, images), (expected / 2 + 0.5).clamp(0, 1))


def test_measuring_by_hand(dummy_clip):
    targets = [Image.new("RGB", (24, 32), (230, 230, 230))] * 2
    truth = baselines.to_tensor(targets)
    prediction = truth.clone()
    prediction[:, :, 20:28, 6:18] -= 0.5  # on cloth alone: half of the foreground, 96 of 768 pixels
    values = baselines.measure(prediction, targets, dummy_clip.layers)
    assert values["cloth_psnr"] == pytest.approx(-20 * math.log10(0.5), abs=1e-4)
    assert values["foreground_psnr"] == pytest.approx(-10 * math.log10(0.25 * 96 / 288), abs=1e-4)
    assert values["psnr"] == pytest.approx(-10 * math.log10(0.25 * 96 / 768), abs=1e-4)
    assert values["l1"] == pytest.approx(0.5 * 96 / 768, abs=1e-6)
    assert values["silhouette_iou"] == 0 and values["ssim"] < 1
    assert math.isnan(baselines.measure(prediction, targets, None)["cloth_psnr"])


def test_parts_by_hand(dummy_clip):
    targets = [Image.new("RGB", (24, 32), (230, 230, 230))] * 2
    iuv = np.zeros((32, 24, 3), np.uint8)
    iuv[4:24, 6:18] = (100, 100, 2)  # the body ends within the cloth, which reaches down to row 28
    photo_iuv = iuv.copy()
    photo_iuv[14:, :, :] = 0
    photo_iuv[4:14, 6:18, :2] = 100
    frame = iuv.copy()
    frame[14:24, 6:18, :2] = 250
    prediction = baselines.to_tensor(targets)
    prediction[:, :, 20:24, 6:18] -= 0.2
    prediction[1, :, 24:28, 6:18] -= 0.4
    matches = [match_surface(Image.fromarray(frame), Image.fromarray(photo_iuv))] * 2
    pictures = [Image.fromarray(frame)] * 2
    found = baselines.measure_regions(prediction, targets, dummy_clip.layers, pictures, matches)
    # Cloth has 8 rows in each frame: 4 over the body, off by .2, and 4 beyond it, off by .4 in one of two frames.
    expected = {"seen_l1": 0, "unseen_l1": 0.2 * 4 / 10, "cloth_l1": (0.2 + 0.2) / 2, "hem_l1": 0.2}
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert math.isnan(found["hair_l1"])
    few = photo_iuv.copy()
    few[14:24, 6:18] = frame[14:24, 6:18]
    few[14, 6, 1] = 20  # this point of the photo is a little off, but another shows the body there
    frame[14, 7, :2] = 10  # and the photo does not show this point
    matches = [match_surface(Image.fromarray(frame), Image.fromarray(few))] * 2
    assert matches[0].is_unseen.sum() == 1
    found = baselines.measure_regions(prediction, targets, dummy_clip.layers, pictures, matches)
    assert math.isnan(found["unseen_l1"]) and found["seen_l1"] > 0, "borders of limbs are nothing hidden"
    assert baselines.measure_regions(prediction, targets, None, pictures) == {}


def test_consecutive_frames_by_hand(dummy_clip):
    targets = [Image.new("RGB", (24, 32), (230, 230, 230))] * 3
    prediction = baselines.to_tensor(targets)
    prediction[1] -= 0.3
    layers = [dummy_clip.layers[0]] * 3
    found = baselines.measure_run(prediction, targets, layers)
    assert found == pytest.approx({"temporal_error": 0.3, "flicker": 0.6}, abs=1e-6)
    prediction[1] += 0.3
    prediction[1, :, 4:28, 6:18] -= 0.3  # on the figure alone
    found = baselines.measure_run(prediction, targets, layers)
    assert found == pytest.approx({"temporal_error": 0.3 * 288 / 768, "flicker": 0}, abs=1e-6)
    assert baselines.measure_run(prediction, targets, None)["flicker"] > 0.1  # no layers, and the truth is empty


def test_the_run_is_the_video_of_the_pipeline(dummy_clip, monkeypatch):
    pipe, asked = get_dummy_pipeline(), []
    clip = replace(dummy_clip, run_indices=[1, 2, 3], run_targets=[get_dummy_image(i) for i in (1, 5, 2)])
    own = baselines.predict_clip(pipe, clip, seed=4)["own"]
    sample = baselines.sample_frames
    monkeypatch.setattr(baselines, "sample_frames", lambda *args, **kw: asked.append(args[3]) or sample(*args, **kw))
    run = baselines.predict_run(pipe, clip, 4, own)
    assert asked == [[2]], "targets are not sampled again"
    whole = pipe(clip.reference, clip.iuv, generator=torch.Generator().manual_seed(4), output_type="pt").frames[0]
    torch.testing.assert_close(run["own"], whole[1:4], atol=1e-4, rtol=0)
    torch.testing.assert_close(
        run["vae_round_trip"], baselines.vae_round_trip(pipe, baselines.to_tensor(clip.run_targets))
    )
    assert {name: frames.shape for name, frames in run.items()} == dict.fromkeys(
        ("own", "vae_round_trip", "copy", "warp"), (3, 3, 32, 24)
    )
    assert baselines.predict_run(pipe, dummy_clip, 4, own) == {}


def test_the_warp_knows_each_frame_s_uv(dummy_clip):
    warped = baselines.warp_clip(dummy_clip, [3, 1])
    for frame, index in zip(warped, (3, 1), strict=True):
        match = match_surface(dummy_clip.iuv[index], dummy_clip.iuv[0])
        torch.testing.assert_close(frame, warp_photo(dummy_clip.reference, dummy_clip.iuv[0], match))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    get_dummy_pipeline(default_height=80, default_width=64).save_pretrained(folder)
    return folder


def words_for(model, output, **changes):
    words = {
        "--model": model,
        "--dataset": "procedural/smoke",
        "--output": output,
        "--num_clips": 2,
        "--frames_per_clip": 2,
        "--num_consecutive": 3,
        "--num_inference_steps": 1,
        "--num_pictures": 1,
        "--scale": 1,
        "--device": "cpu",
    }
    words |= {f"--{name}": value for name, value in changes.items()}
    return [str(word) for pair in words.items() for word in pair]


def run(model, output, *more, **changes):
    return evaluation.main(evaluation.parse_args([*words_for(model, output, **changes), *more]))


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """Run an undisturbed evaluation; return its folder, its figures and its printed text."""
    folder, printed = tmp_path_factory.mktemp("whole"), io.StringIO()
    with contextlib.redirect_stdout(printed):
        results = run(model, folder)
    return folder, results, printed.getvalue()


@pytest.mark.slow
def test_the_script_writes_figures_tables_and_pictures(whole):
    folder, results, printed = whole

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    written = json.loads((folder / "evaluation.json").read_text(), parse_constant=refuse)
    assert written == json.loads(json.dumps(results))
    assert list(written["rows"]) == list(baselines.ROWS)
    assert written["versions"]["torch"] == torch.__version__ and written["machine"]["cores"] >= 1
    assert written["settings"]["num_inference_steps"] == 1 and written["scheduler"] == "DDIMScheduler"
    assert written["model_defaults"]["num_inference_steps"] == 2
    assert written["model_defaults"]["width"] == 64 and written["model_defaults"]["height"] == 80
    assert 0 <= written["share_moved"] <= 1 and written["seconds"] > 0
    assert written["num_processes"] == 1 and written["num_measured"] == 2
    assert (folder / "evaluation.md").read_text() in printed
    with Image.open(folder / "evaluation.png") as pictures:
        assert pictures.width == 6 * (64 + 4) - 4 and pictures.height > 80
    page = (folder / "evaluation.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 7 and "test-000000" in page and "test-000001" not in page
    rows = written["rows"]
    copy, warp = rows["copy of the reference"], rows["warp of the reference"]
    assert copy["flicker"]["mean"] == 0 < copy["temporal_error"]["mean"], "a copied photo stands still"
    assert warp["seen_l1"]["mean"] < copy["seen_l1"]["mean"]
    assert "fid" not in rows["model"] and written["notes"]["fid"].startswith("left out")
    assert "temporal_error" not in rows["pose dropped"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "evaluation.html", "evaluation.json", "evaluation.md", "evaluation.png",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_stopped_evaluation_resumes(model, whole, tmp_path, monkeypatch):
    record, measured = clip_records.record_clip, []

    def stop_after_one(pipe, clip, *args, **options):
        if measured:
            raise KeyboardInterrupt
        measured.append(clip.name)
        return record(pipe, clip, *args, **options)

    monkeypatch.setattr(clip_records, "record_clip", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path)
    with pytest.raises(ValueError, match="`resume` must keep the settings of .*seed 0, now 7"):
        run(model, tmp_path, "--resume", seed=7)
    measured.clear()
    results = run(model, tmp_path, "--resume")
    assert measured == ["test-000001"] and results["num_measured"] == 1
    for name in ("rows", "model_minus_row"):
        assert results[name] == whole[1][name]
    assert (tmp_path / "evaluation.png").read_bytes() == (whole[0] / "evaluation.png").read_bytes()
    (tmp_path / ".clips").mkdir()
    (tmp_path / ".clips" / "settings.json").write_text("{}")
    ClipRecord({}).save(clip_file := tmp_path / ".clips" / "00000.safetensors")
    with pytest.raises(ValueError, match=r"clips' holds clips of a stopped run \(1\). Give `--resume`.*`--overwrite`"):
        run(model, tmp_path)
    assert clip_file.exists()
    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path, "--overwrite")
    assert not clip_file.exists()


@pytest.mark.slow
def test_two_processes_share_the_clips(model, whole, tmp_path):
    result = launch_two_processes("training/evaluation.py", words_for(model, tmp_path))
    two = json.loads((tmp_path / "evaluation.json").read_text())
    assert two["num_processes"] == 2 and two["num_measured"] == 2
    assert result.stdout.count("model minus row, clip by clip") == 1, "one process writes"
    for row, by_metric in whole[1]["rows"].items():
        for name, figure in by_metric.items():
            assert two["rows"][row][name] == pytest.approx(figure, abs=1e-4), (row, name)


@pytest.mark.slow
def test_networks_from_files_add_their_metrics(model, tmp_path):
    save_inception(tmp_path / "inception.pt")
    rows = run(model, tmp_path / "results", inception=tmp_path / "inception.pt", num_consecutive=0)["rows"]
    fid = {row: figures["fid"] for row, figures in rows.items()}
    assert list(fid) == list(baselines.ROWS)
    assert fid["model"]["n"] == 4 and fid["model"]["standard_error"] is None
    assert fid["warp of the reference"]["mean"] < fid["model"]["mean"], "the model is untrained"
    assert "temporal_error" not in rows["model"]


@pytest.mark.slow
def test_frames_of_any_size_are_measured_at_the_models_own(odd_frames, tmp_path):
    pipe = get_dummy_pipeline()
    pipe.save_pretrained(tmp_path / "model")
    rows = run(tmp_path / "model", tmp_path / "results", dataset=odd_frames, split="validation")["rows"]
    stored, copies, predictions = load_prepared(str(odd_frames), "validation"), [], []
    chosen = load_clips(str(odd_frames), "validation", 2, 2)
    for seed, (clip, frames) in enumerate(zip(chosen, itertools.islice(group_videos(stored).values(), 2))):
        assert clip.reference.size == (61, 77)
        poses = [stored[row]["iuv"] for row in frames]
        photo, *truth = (
            fit_image(stored[frames[i]]["image"], 32, 24)[None] / 2 + 0.5 for i in (0, *clip.frame_indices)
        )
        copies += [metrics.psnr(photo, target).item() for target in truth]
        sampled = pipe(
            stored[frames[0]]["image"], poses, num_inference_steps=1, frame_indices=clip.frame_indices,
            generator=torch.Generator().manual_seed(seed), output_type="pt",
        ).frames[0]  # fmt: skip
        predictions.append(metrics.psnr(sampled, torch.cat(truth)).mean().item())
    assert rows["copy of the reference"]["psnr"]["mean"] == pytest.approx(np.mean(copies), abs=1e-4)
    assert rows["model"]["psnr"]["mean"] == pytest.approx(np.mean(predictions), abs=1e-4)
    assert rows["warp of the reference"]["seen_l1"]["mean"] < rows["copy of the reference"]["seen_l1"]["mean"]
    with Image.open(tmp_path / "results" / "evaluation.png") as pictures:
        assert pictures.width == 6 * (24 + 4) - 4


def test_one_clip_gives_every_figure_that_needs_no_other(model, tmp_path, capsys):
    frames = [{"image": get_dummy_image(i), "iuv": get_dummy_iuv(i)} for i in range(5)]
    folder = write_frames(tmp_path / "clip", frames, videos=["alone"])
    save_inception(tmp_path / "inception.pt")
    judge = {"inception": tmp_path / "inception.pt", "frames_per_clip": 1}
    results = run(model, tmp_path / "one", dataset=folder, num_clips=1, **judge)
    rows, notes = results["rows"], results["notes"]
    needs_another = {name for name, (prediction, _) in baselines.ROWS.items() if prediction == "other_photo"}
    assert set(rows) == set(baselines.ROWS) - needs_another
    measured = {"psnr", "ssim", "l1", "silhouette_iou", "seen_l1", "temporal_error", "identity_distance"}
    assert measured <= {name for name, figure in rows["model"].items() if figure["mean"] is not None}
    assert all(figure["standard_error"] is None for figures in rows.values() for figure in figures.values())
    missing = {*needs_another, "fid", "standard error"}
    assert all(notes[name].startswith("left out: needs ") for name in missing)
    written = [(tmp_path / "one" / f"evaluation.{suffix}").read_text() for suffix in ("md", "html")]
    assert all("left out: needs a second clip" in text for text in [*written, capsys.readouterr().out])
    with Image.open(tmp_path / "one" / "evaluation.png") as pictures:
        assert pictures.width == 4 * (64 + 4) - 4
    clip = load_clips(write_frames(tmp_path / "clips", frames), "test", 1, 1)[0]
    assert clip.other_reference is not None, "a split of two clips has a counterpart, even if one clip is measured"


def frames_of(num_frames):
    return [{"image": get_dummy_image(i), "iuv": get_dummy_iuv(i)} for i in range(num_frames)]


def test_defaults_are_reduced_to_a_small_split_and_typed_numbers_refused(model, tmp_path, caplog):
    folder = write_frames(tmp_path / "clip", frames_of(4), videos=["alone"])
    words = words_for(model, tmp_path / "results", dataset=folder)
    given = dict(zip(words[::2], words[1::2]))
    counts = {"--num_clips": "40", "--frames_per_clip": "4", "--num_consecutive": "6"}
    untyped = [word for name, value in given.items() if name not in counts for word in (name, value)]
    settings = evaluation.main(evaluation.parse_args(untyped))["settings"]
    assert (settings["num_clips"], settings["frames_per_clip"], settings["num_consecutive"]) == (1, 3, 3)
    (notice,) = (record.getMessage() for record in caplog.records if "defaults" in record.getMessage())
    assert notice == (
        "The split has fewer than the defaults: `num_clips` 1, not 40; `frames_per_clip` 3, not 4; `num_consecutive`"
        " 3, not 6."
    )
    for name, value in counts.items():
        with pytest.raises(ValueError, match=f"`{name[2:]}` must .* got {value}"):
            evaluation.main(evaluation.parse_args([*untyped, name, value, "--overwrite"]))


@pytest.mark.parametrize(
    ("num_frames", "counts", "expected"),
    [
        ([9, 9], (UpTo(40), UpTo(4), UpTo(6)), [2, 4, 6]),
        ([9, 3], (UpTo(40), UpTo(4), UpTo(6)), [2, 2, 0]),  # two consecutive frames show no flicker
        ([9, 3], (1, UpTo(4), UpTo(6)), [1, 4, 6]),  # a clip that is not measured does not count
        ([9, 3], (40, 4, 6), [40, 4, 6]),
        ([1], (UpTo(40), UpTo(4), UpTo(6)), [1, 1, 0]),
    ],
)
def test_only_defaults_are_reduced(num_frames, counts, expected):
    reduced, notice = reduce_counts(num_frames, counts)
    assert reduced == expected and (notice is None) == (reduced == list(counts))


def test_a_missing_split_is_named_with_the_option_that_chooses_another(tmp_path):
    folder = write_frames(tmp_path, [{"image": get_dummy_image(), "iuv": get_dummy_iuv()}])
    match = "^`dataset` must have the split 'train', got '.*' with {'test': 'data/test-.*`--split NAME`"
    with pytest.raises(ValueError, match=match):
        load_clips(folder, "train", 1, 1)


def test_the_size_is_the_models_own(model, tmp_path, monkeypatch):
    assert default_size(str(model)) == (64, 80)
    with pytest.raises(ValueError, match="`model` must be the folder of a DreamPosePipeline, .* no model_index.json"):
        default_size(str(tmp_path))
    index = {"_class_name": "StableDiffusionPipeline"}
    monkeypatch.setattr("training.hub.repositories.check_reachable", lambda *_: None)
    monkeypatch.setattr(DreamPosePipeline, "load_config", lambda name, revision: index)
    with pytest.raises(ValueError, match="`model` must be a DreamPosePipeline, whose .*, got 'some/one', a StableD"):
        default_size("some/one")

    def fail(name, revision):
        raise OSError(f"no such repository at {revision}")

    monkeypatch.setattr(DreamPosePipeline, "load_config", fail)
    with pytest.raises(
        ValueError, match="`model` must be a pipeline's folder or a Hub id, got 'some/one': no .* at v1"
    ):
        default_size("some/one", "v1")
    monkeypatch.setattr(DreamPosePipeline, "from_pretrained", lambda name, revision, dtype: fail(name, revision))
    with pytest.raises(ValueError, match="`model` must be a pipeline's folder or a Hub id, got 'some/one': no .* v1"):
        load_pipeline("some/one", revision="v1")
    with pytest.raises(ValueError, match="`model` must be a pipeline's folder or a Hub id, got 'some/one': no .* v1"):
        evaluation.main(evaluation.parse_args(["--model", "some/one", "--revision", "v1", "--output", str(tmp_path)]))


def test_an_error_is_one_line_and_comes_before_the_model(model, tmp_path, monkeypatch):
    monkeypatch.setattr("training.hub.repositories.load_pipeline", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match=r"`num_consecutive` must be 0 or lie within \[3, 5\] for test-000000, got 6"):
        run(model, tmp_path, num_consecutive=6)
