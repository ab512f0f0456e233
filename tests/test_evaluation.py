import json
import math
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny_components import NUM_FRAMES, get_dummy_image, get_dummy_iuv, get_dummy_pipeline
from training import baselines, evaluation
from training.clips import Clip, load_clips
from training.data.prepared import load_prepared
from training.data.procedural_fashion import ProceduralFashion, load_procedural_fashion


@pytest.fixture(scope="module", autouse=True)
def fresh_cache(tmp_path_factory):
    """Draw anew, so that no data set of an older version is measured."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


@pytest.fixture(scope="module")
def clips(fresh_cache):
    return load_clips("procedural/smoke", "test", num_clips=2, frames_per_clip=2)


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


def test_the_default_data_set_is_one(monkeypatch):
    asked = []
    monkeypatch.setattr("training.data.prepared.load_procedural_fashion", lambda *args: asked.append(args))
    load_prepared(evaluation.parse_args(["--model", "m"]).dataset, "test")
    assert asked == [("tiny", "test")]


def test_bad_requests_are_refused(tmp_path, clips):
    with pytest.raises(ValueError, match="must be one of .*smoke.* got 'missing'"):
        load_clips("procedural/missing", "test", 2, 2)
    with pytest.raises(ValueError, match=r"`num_clips` must lie within \[2, 3\] for this split, got 9"):
        load_clips("procedural/smoke", "test", 9, 2)
    with pytest.raises(ValueError, match=r"`frames_per_clip` must lie within \[1, 5\] for test-000000, got 6"):
        load_clips("procedural/smoke", "test", 2, 6)


def test_conditions_are_what_their_names_say(dummy_clip):
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
    names = ["own", "center_pose", "pose_dropped", "other_photo", "copy", "vae_round_trip"]
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


def test_figures_are_means_over_clips_and_differences_are_paired(dummy_clip):
    errors = {"own": (0.02, 0.1), "copy": (0.04, 0.2)}
    plain = [Image.new("RGB", (24, 32), (100, 100, 100))] * 2
    clips = [replace(dummy_clip, targets=plain, layers=None, other_reference=None) for _ in range(2)]

    def predict(clip, index):
        return {name: baselines.to_tensor(clip.targets) + error[index] for name, error in errors.items()}

    figures, kept = baselines.evaluate(clips, predict, keep=1)
    model = [-20 * math.log10(error) for error in errors["own"]]
    found = figures["rows"]["model"]["psnr"]
    assert found["mean"] == pytest.approx(sum(model) / 2, abs=1e-3) and found["n"] == 2
    assert found["standard_error"] == pytest.approx(abs(model[0] - model[1]) / 2, abs=1e-3)
    assert figures["rows"]["model"]["cloth_psnr"] == {"mean": None, "standard_error": None, "n": 0}
    difference = figures["model_minus_row"]["copy of the reference"]["psnr"]
    assert difference["mean"] == pytest.approx(20 * math.log10(2), abs=1e-3)
    assert difference["standard_error"] == pytest.approx(0, abs=1e-3)
    assert set(figures["rows"]) == {"model", "copy of the reference"} and len(kept) == 1
    table = baselines.markdown_table(figures["rows"])
    assert f"| model | {found['mean']:.2f} ± {found['standard_error']:.2f} |" in table
    assert {line.count("|") for line in table.splitlines()} == {8}


@pytest.mark.slow
def test_the_script_writes_figures_table_and_pictures(tmp_path, capsys):
    get_dummy_pipeline().save_pretrained(tmp_path / "model")
    words = {
        "--model": tmp_path / "model",
        "--dataset": "procedural/smoke",
        "--output": tmp_path / "results",
        "--num_clips": 2,
        "--frames_per_clip": 2,
        "--num_inference_steps": 1,
        "--num_pictures": 1,
        "--scale": 1,
    }
    results = evaluation.main(evaluation.parse_args([str(word) for pair in words.items() for word in pair]))

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    written = json.loads((tmp_path / "results" / "evaluation.json").read_text(), parse_constant=refuse)
    assert written == json.loads(json.dumps(results))
    assert list(written["rows"]) == list(baselines.ROWS)
    assert written["versions"]["torch"] == torch.__version__ and written["machine"]["cores"] >= 1
    assert written["settings"]["num_inference_steps"] == 1 and written["scheduler"] == "DDIMScheduler"
    assert written["model_defaults"]["num_inference_steps"] == 2
    assert 0 <= written["share_moved"] <= 1 and written["seconds"] > 0
    assert (tmp_path / "results" / "evaluation.md").read_text() in capsys.readouterr().out
    with Image.open(tmp_path / "results" / "evaluation.png") as pictures:
        assert pictures.width == 6 * (64 + 4) - 4 and pictures.height > 80
