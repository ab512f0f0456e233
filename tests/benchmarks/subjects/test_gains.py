"""Figures of stage 2: the drawn subjects, their photos and footage, and the summaries."""

import json
import os
import re

import numpy as np
import pytest

from benchmarks.subjects import bound, gains, loading, sweep, trials
from benchmarks.subjects.gains import main, parse_args
from benchmarks.subjects.many_trials import (
    GROUPS,
    METRICS,
    compare_with_first,
    format_sweep,
    plan_trials,
    summarize,
    taken_options,
    trial_path,
)
from benchmarks.subjects.trials import draw_clips, draw_footage, draw_photos
from tests.launch import ROOT
from tests.tiny_components import get_dummy_pipeline, save_drawn_photos
from training.data.procedural_fashion import ProceduralFashionConfig
from training.media.charts import line_chart
from training.subject.photos import load_photos


STORED = ROOT / "benchmarks" / "subjects" / "gains.json"
CONFIG = ProceduralFashionConfig(name="small", height=80, width=64)
TORSO_BACK, TORSO_FRONT = 1, 2  # DensePose's parts


def share_of_torso(iuv, part):
    parts = np.asarray(iuv)[..., 2]
    return (parts == part).sum() / np.isin(parts, (TORSO_BACK, TORSO_FRONT)).sum()


def test_the_photos_show_the_front_the_back_and_the_sides():
    front, back, left, right = draw_photos(CONFIG, "validation", 3, 4)
    assert share_of_torso(front.iuv, TORSO_FRONT) > 0.8
    assert share_of_torso(back.iuv, TORSO_BACK) > 0.8
    for side in (left, right):
        assert 0.05 < share_of_torso(side.iuv, TORSO_BACK) < 0.95
    (alone,) = draw_photos(CONFIG, "validation", 3, 1)
    assert np.array_equal(alone.image, front.image), "the number of photos does not change the reference"


def test_the_footage_turns_once_around_and_marks_frames_of_the_back():
    own, turn = draw_footage(CONFIG, "validation", 3)
    clip = CONFIG.clip("validation", 3, 3)
    assert all(np.array_equal(target, clip[i].image) for target, i in zip(own.targets, own.frame_indices))
    assert len(turn.iuv) == 16 and turn.shows_back == [False, True, True, False]
    backs = [share_of_torso(turn.iuv[i], TORSO_BACK) for i in turn.frame_indices]
    assert min(backs[1:3]) > max(backs[0], backs[3])


def test_the_bound_is_a_gain_over_the_model_s_own_frames(tmp_path):
    """The model is untrained. An oracle takes only better pixels, so it cannot lose."""
    get_dummy_pipeline().save_pretrained(tmp_path / "model")
    words = ["--model", str(tmp_path / "model"), "--split", "validation", "--num_subjects", "2"]
    words += ["--num_processes", "1"]
    words += ["--num_inference_steps", "2", "--work_dir", str(tmp_path / "work"), "--output", str(tmp_path / "o.json")]
    report = bound.main(bound.parse_args(words))
    assert json.loads((tmp_path / "o.json").read_text()) == report
    gains = {name: by["psnr"]["mean"] for name, by in report["gains"].items()}
    assert 0 < gains["oracle_1"] < gains["oracle_4"] and gains["read_4"] < gains["oracle_4"]
    assert len(list((tmp_path / "work").iterdir())) == 2


def test_true_clips_of_a_subject_take_the_place_of_textured_clips(tmp_path, monkeypatch):
    get_dummy_pipeline().save_pretrained(tmp_path / "model")
    save_drawn_photos(tmp_path, 1, [0])
    load_photos(tmp_path).to_parquet(tmp_path / "prior" / "train.parquet")
    words = ["--model", str(tmp_path / "model"), "--split", "validation", "--num_subjects", "1", "--num_clips", "2"]
    finetune = ["--prior_dataset", str(tmp_path / "prior"), "--num_textured_clips", "5"]
    options = parse_args([*words, "--", *finetune])
    trained = []
    monkeypatch.setattr(trials.Examination, "denoise", lambda self: {})
    monkeypatch.setattr(trials, "train_subject", lambda *arguments, **numbers: trained.append((arguments[2], numbers)))
    for num_clips in (0, options.num_clips):
        (trial,) = plan_trials(options, options.finetune, [1], num_clips)
        trials.run_trial(trial)
    (photos_alone, asked), (samples, replaced) = trained
    assert photos_alone.textured is None and asked["num_textured_clips"] == 5
    assert replaced["num_textured_clips"] == 0, "or `train_subject` would sample clips over the true ones"
    config, textured = trials.drawing_of(trial.model), samples.textured
    photo, clips = draw_photos(config, "validation", 0, 1)[0], draw_clips(config, "validation", 0, 2)
    expected = [photo.image, *(np.asarray(image) for image, _ in clips[1])]
    shown = [textured.dataset[row] for row in textured.videos["1"]]
    assert len(shown) == 17
    assert all(np.array_equal(row["image"], image) for row, image in zip(shown, expected, strict=True))
    measured = [iuv for part in draw_footage(config, "validation", 0) for iuv in part.iuv]
    assert not any(np.array_equal(row["iuv"], iuv) for row in shown for iuv in measured)


def record(phase, step, psnr, l1):
    metrics = dict.fromkeys(("ssim", "foreground_psnr", "silhouette_iou", "cloth_psnr"), float("nan"))
    groups = ("all", "back", "still_window", "photos", "vae_round_trip")
    return {"phase": phase, "step": step, "figures": dict.fromkeys(groups, metrics | {"psnr": psnr, "l1": l1})}


def test_gains_are_taken_subject_by_subject():
    first = [record("before", 0, 20.0, 0.1), record("denoiser", 5, 21.0, 0.08)]
    second = [record("before", 0, 30.0, 0.1), record("denoiser", 5, 33.0, 0.12)]
    before, after = summarize([first, second])
    assert (after["phase"], after["step"]) == ("denoiser", 5)
    assert before["gains"]["all"]["psnr"]["mean"] == 0 and before["figures"]["all"]["psnr"]["mean"] == 25
    # Gains 1 and 3: mean 2, standard deviation sqrt(2), so standard error 1. A lower L1 is better.
    assert after["gains"]["back"]["psnr"] == pytest.approx({"mean": 2.0, "standard_error": 1.0, "n": 2})
    assert after["improved"]["all"]["psnr"] == 2 and after["improved"]["all"]["l1"] == 1
    assert after["gain_by_subject"]["all"]["psnr"] == [1.0, 3.0]
    assert after["gains"]["all"]["cloth_psnr"]["n"] == 0


def test_a_sweep_compares_subject_by_subject_with_its_first_variation(monkeypatch):
    """Gains of (1, 3) and (2, 6) dB differ by 1 and 3. Numeric options that were varied alone have curves."""
    seen = []
    monkeypatch.setattr(sweep, "line_chart", lambda *chart: seen.append(chart) or line_chart(*chart))

    def row(*gains):
        results = [[record("before", 0, 20.0, 0.1), record("denoiser", 5, 20.0, 0.1)] for _ in gains]
        for (before, after), gain in zip(results, gains):
            before["figures"] = {group: dict.fromkeys(METRICS, 20.0) for group in GROUPS}
            after["figures"] = {group: dict.fromkeys(METRICS, 20 + gain) for group in before["figures"]}
            after["figures"]["photos"]["foreground_psnr"] += 1
        return summarize(results)[-1]

    differing = {
        "as it is": {},
        "more": {"rank": 8},
        "less": {"rank": 2},
        "with": {"lora_conv_in": True},
        "any": {"reference_frames": "any"},
    }
    rows = dict(zip(differing, (row(1.0, 3.0), row(2.0, 6.0), row(0.0, 1.0), row(1.0, -1.0), row(0.0, 0.0))))
    report = {
        name: {"differs_in": options} | compare_with_first(rows[name], rows["as it is"])
        for name, options in differing.items()
    }
    assert report["more"]["beyond_the_first"]["psnr"] == pytest.approx({"mean": 2.0, "standard_error": 1.0, "n": 2})
    assert report["with"]["num_improved_ssim"] == 1
    sweep.draw_sweep(report, {"rank": 4, "lora_conv_in": False, "reference_frames": "first"})
    ((curves, title),) = seen
    assert curves == {"other poses": [(2, 0.5), (4, 2), (8, 4)], "the photos' own poses": [(2, 1.5), (4, 3), (8, 5)]}
    assert title == "rank: gain in foreground PSNR, dB"
    table = format_sweep(report).splitlines()
    assert table[3].startswith("| more | +4.00 ± 2.00 | +4.000 ± 2.000 |") and table[3].endswith("| +2.00 ± 1.00 |")
    assert len({line.count("|") for line in table}) == 1


def test_a_curve_continues_from_phase_to_phase(monkeypatch):
    seen = []
    monkeypatch.setattr(gains, "line_chart", lambda *chart: seen.append(chart) or line_chart(*chart))
    steps = [("before", 0, 10.0), ("denoiser", 5, 12.0), ("denoiser", 9, 11.0), ("decoder", 3, 19.0)]
    results = [[record(phase, step, 0.0, 0.0) for phase, step, _ in steps]]
    for step, (_, _, value) in zip(results[0], steps):
        step["figures"] = {group: dict.fromkeys(METRICS, value) for group in GROUPS}
        step["figures"]["photos"] = dict.fromkeys(METRICS, 2 * value)
    gains.draw_curves({"num_photos": {"4": summarize(results)}})
    (first, title), (second, _) = seen
    assert title == "4 photos, UNet and adapter: gain, dB"
    assert first == {"other poses": [(0, 0), (5, 2), (9, 1)], "the photos' own poses": [(0, 0), (5, 4), (9, 2)]}
    assert second == {"other poses": [(0, 1), (3, 9)], "VAE round trip, all pixels": [(0, 1), (3, 9)]}


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            ["--mixed_precision", "bf16"],
            "`mixed_precision` must be left as it is.*, got 'bf16'",
        ),
        (["--max_train_steps", "0", "--decoder_max_train_steps", "0"], "must not both be 0, which trains nothing"),
    ],
)
def test_options_that_trials_ignore_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        parse_args(["--", *flags])


def test_true_clips_need_other_subjects_as_textured_clips_do():
    with pytest.raises(ValueError, match="`num_clips` must be 0 without a `prior_dataset`, got 2"):
        parse_args(["--num_clips", "2"])
    assert parse_args(["--num_clips", "2", "--", "--prior_dataset", "runs/prior"]).num_clips == 2


def words_of_make_reproduce(script):
    """Return the command line of each call of a script in the Makefile."""
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    values = dict(re.findall(r"^reproduce: (\w+) = (.*)$", text, re.MULTILINE))
    lines = re.findall(rf"-m benchmarks\.subjects\.{script} (.*)$", text, re.MULTILINE)
    return [re.sub(r"\$\((\w+)\)", lambda match: values[match[1]], line).split() for line in lines]


def test_the_stored_figures_belong_to_the_settings_of_make_reproduce():
    stored = {path.stem: json.loads(path.read_text()) for path in STORED.parent.glob("*.json")}
    calls = [parse_args(words) for words in words_of_make_reproduce("gains")]
    assert {options.output.stem for options in calls} == {
        name for name in stored if name.startswith(("gains", "curve"))
    }
    for options in calls:
        settings = stored[options.output.stem]["settings"]
        assert settings["finetune"] == taken_options(options.finetune), options.output
        for name in ("split", "num_subjects", "first_subject", "num_photos", "num_clips", "curve_steps"):
            assert settings[name] == str(getattr(options, name)), (options.output, name)
    sweeps = [sweep.parse_args(words) for words in words_of_make_reproduce("sweep")]
    for options in (*sweeps, bound.parse_args(*words_of_make_reproduce("bound"))):
        for name in ("split", "num_subjects", "first_subject"):
            assert stored[options.output.stem]["settings"][name] == getattr(options, name)
    for options in sweeps:
        report = stored[options.output.stem]
        assert report["settings"]["num_photos"] == options.num_photos
        chosen = taken_options(next(iter(options.finetune.values()))[1])
        assert report["settings"]["finetune"] == chosen | {"decoder_max_train_steps": 0}
        differing = {name: variation["differs_in"] for name, variation in report["variations"].items()}
        assert differing == {name: values for name, (values, _) in options.finetune.items()}


def test_a_sweep_begins_with_its_base_variation(tmp_path):
    (tmp_path / "variations.yaml").write_text("2 steps: {max_train_steps: 2}\n")
    with pytest.raises(ValueError, match="`variations` must begin with one that differs in nothing, got '2 steps'"):
        sweep.parse_args(["--variations", str(tmp_path / "variations.yaml")])
    with pytest.raises(ValueError, match="`num_subjects` must be 2 or more, for a standard error, got 1"):
        sweep.parse_args(["--num_subjects", "1"])
    with pytest.raises(ValueError, match=r"`num_photos` must be numbers that differ, got \[1, 1\]"):
        parse_args(["--num_photos", "1", "1"])


@pytest.mark.slow
def test_trials_are_kept_and_measured_before_and_after(tmp_path):
    get_dummy_pipeline().save_pretrained(tmp_path / "model")
    words = ["--model", str(tmp_path / "model"), "--split", "validation", "--num_subjects", "2", "--num_photos", "1"]
    words += ["--num_inference_steps", "1", "--num_processes", "1", "--work_dir", str(tmp_path / "work")]
    words += ["--output", str(tmp_path / "report.json")]
    flags = ["--", "--max_train_steps", "2", "--decoder_max_train_steps", "3", "--train_batch_size", "2"]
    options = parse_args([*words, *flags, "--learning_rate", "1e-2", "--decoder_learning_rate", "1e-2"])
    environment = dict(os.environ)
    report = main(options)
    assert dict(os.environ) == environment, "the environment stays as it was"
    rows = report["num_photos"][1]
    assert [(row["phase"], row["step"]) for row in rows] == [("before", 0), ("denoiser", 2), ("decoder", 3)]
    for group, changes in {"all": [True, True], "vae_round_trip": [False, True]}.items():
        figures = [[row["gain_by_subject"][group]["psnr"][0] for row in rows[i : i + 2]] for i in (0, 1)]
        assert [a != b for a, b in figures] == changes, f"{group}: only the decoder's phase changes the decoder"
    assert json.loads((tmp_path / "report.json").read_text())["settings"]["finetune"]["max_train_steps"] == 2
    paths = [trial_path(trial, options.work_dir) for trial in plan_trials(options, options.finetune, [1])]
    assert sorted(paths) == sorted(options.work_dir.iterdir())
    kept = json.loads(paths[0].read_text())
    kept["records"][0]["figures"]["all"]["psnr"] += 1000
    paths[0].write_text(json.dumps(kept))
    again = main(options)["num_photos"][1]
    assert again[1]["gain_by_subject"]["all"]["psnr"][0] < -900, "a kept trial is read, not run again"


@pytest.mark.slow
def test_variations_are_trained_by_their_own_settings(tmp_path):
    get_dummy_pipeline().save_pretrained(tmp_path / "model")
    (tmp_path / "variations.yaml").write_text("as it stands: {}\n2 steps: {max_train_steps: 2}\n")
    words = ["--model", str(tmp_path / "model"), "--num_subjects", "2", "--num_inference_steps", "1"]
    words += ["--num_processes", "1", "--work_dir", str(tmp_path / "work"), "--output", str(tmp_path / "sweep.json")]
    words += ["--variations", str(tmp_path / "variations.yaml")]
    words += ["--", "--max_train_steps", "1", "--train_batch_size", "2", "--learning_rate", "1e-2"]
    report = sweep.main(sweep.parse_args(words))
    assert json.loads((tmp_path / "sweep.json").read_text())["variations"] == report
    gains = [variation["gains"]["psnr"]["mean"] for variation in report.values()]
    assert 0 not in gains and gains[0] != gains[1] and report["as it stands"]["beyond_the_first"]["psnr"]["mean"] == 0
    assert {path.suffix for path in tmp_path.glob("sweep.*")} == {".json", ".md", ".png"}


def test_loading_is_timed_for_each_subject(tmp_path):
    words = ["--size", "tiny", "--num_subjects", "3", "--output", str(tmp_path / "loading.json")]
    report = loading.main(loading.parse_args(words))
    assert json.loads((tmp_path / "loading.json").read_text()) == report
    assert [len(report["seconds"][kind]) for kind in ("load", "set_adapters")] == [3, 3] and report["file_bytes"] > 0
    with pytest.raises(ValueError, match="`num_subjects` must be 2 or more, got 1"):
        loading.parse_args(["--num_subjects", "1"])
