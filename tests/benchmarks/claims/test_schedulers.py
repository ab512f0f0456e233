"""The scheduler benchmark measures and reports schedulers and steps on the given model and clips."""

import json

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from benchmarks.claims import schedulers
from benchmarks.claims.schedulers import main, parse_args
from pipeline_dreampose import fit_image
from tests.tiny_components import get_dummy_pipeline
from training.metrics import frames as metrics
from training.metrics.baselines import to_tensor
from training.metrics.clips import load_clips


@pytest.mark.slow
def test_the_report(tmp_path):
    words = ["--dataset", "procedural/smoke", "--num_clips", "2", "--frames_per_clip", "1", "--steps", "1", "4"]
    words += ["--reference_steps", "4", "--schedulers", "DDIM", "UniPC", "--output", str(tmp_path / "report.json")]
    report = main(parse_args(words))
    assert report["rows"]["DDIM"][4]["psnr_minus_reference"]["mean"] == 0  # the reference itself
    # With one step both make one prediction; with more steps they differ.
    one, four = ([report["rows"][name][steps]["psnr"]["mean"] for name in ("DDIM", "UniPC")] for steps in (1, 4))
    assert four[0] > one[0] and four[1] > one[1] and four[0] != four[1]
    assert json.loads((tmp_path / "report.json").read_text())["reference"] == report["reference"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "report.png"]


@pytest.mark.slow
def test_differences_to_a_chosen_reference_and_figures_of_consecutive_frames(odd_frames, tmp_path):
    pipe = get_dummy_pipeline()
    pipe.save_pretrained(tmp_path / "model")
    words = ["--model", str(tmp_path / "model"), "--dataset", str(odd_frames), "--num_clips", "2", "--steps", "1"]
    words += ["--frames_per_clip", "1", "--num_consecutive", "3", "--schedulers", "DPM-Solver++ trailing"]
    words += ["--reference", "UniPC", "--reference_steps", "2", "--output", str(tmp_path / "report.json")]
    report = main(parse_args(words))
    figures = report["rows"]["DPM-Solver++ trailing"][1]
    for metric, reference in report["reference"].items():
        difference = figures[f"{metric}_minus_reference"]["mean"]
        assert difference == pytest.approx(figures[metric]["mean"] - reference["mean"], abs=1e-5)
    errors = []
    for seed, clip in enumerate(load_clips(str(odd_frames), "validation", 2, 1, 0, 3, (24, 32))):
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
        frames = pipe(
            clip.reference, list(clip.iuv), num_inference_steps=1, frame_indices=clip.run_indices,
            generator=torch.Generator().manual_seed(seed), output_type="pt",
        ).frames[0]  # fmt: skip
        errors.append(metrics.temporal_error(frames, to_tensor(clip.run_targets)).item())
    assert figures["temporal_error"]["mean"] == pytest.approx(np.mean(errors), abs=1e-5)


@pytest.mark.parametrize("stored", ["leading", "trailing"])
def test_a_name_stands_for_one_spacing_whatever_the_model_stores(stored):
    for name, (kind, changes) in schedulers.SCHEDULERS.items():
        model = DDIMScheduler(steps_offset=1, timestep_spacing=stored)
        scheduler = getattr(diffusers, kind).from_config(model.config, **changes)
        scheduler.set_timesteps(4)
        assert (scheduler.timesteps[0] == 999) == name.endswith("trailing"), name


def test_one_clip_has_no_standard_error(capsys):
    figure = {"mean": 1.0, "standard_error": None, "n": 1}
    report = {"settings": {"reference": "UniPC", "reference_steps": 4}, "reference": {"psnr": figure}}
    report["rows"] = {"DDIM": {1: {"psnr_minus_reference": figure}}}
    schedulers.print_report(report, ["DDIM"], [1])
    printed = capsys.readouterr().out
    assert "DDIM" in printed and "+1.00" in printed and "±" not in printed


@pytest.mark.slow
def test_a_stopped_run_resumes(tmp_path, monkeypatch):
    get_dummy_pipeline().save_pretrained(tmp_path / "model")
    words = ["--model", str(tmp_path / "model"), "--dataset", "procedural/smoke", "--num_clips", "2"]
    words += ["--frames_per_clip", "1", "--steps", "1", "2", "--reference_steps", "2"]
    words += ["--schedulers", "DDIM", "UniPC", "--output"]
    whole = main(parse_args([*words, str(tmp_path / "whole.json")]))
    measure, measured = schedulers.measure_clips, []

    def stop_after_three(pipe, clips, name, steps):
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append((name, steps))
        return measure(pipe, clips, name, steps)

    monkeypatch.setattr(schedulers, "measure_clips", stop_after_three)
    words.append(str(tmp_path / "report.json"))
    with pytest.raises(KeyboardInterrupt):
        main(parse_args(words))
    assert measured == [("DDIM", 2), ("DDIM", 1), ("UniPC", 1)]
    monkeypatch.setattr(schedulers, "measure_clips", lambda *args: measured.append(args[2:]) or measure(*args))
    assert main(parse_args([*words, "--resume"]))["rows"] == whole["rows"]
    assert sorted(measured) == sorted((name, steps) for name in whole["rows"] for steps in (1, 2)), "each cell once"


def test_by_default_both_spacings_take_3_to_15_steps_against_100_of_ddim():
    options = parse_args([])
    assert {"DDIM", "DPM-Solver++", "DDIM trailing", "DPM-Solver++ trailing"} <= set(options.schedulers)
    assert (min(options.steps), max(options.steps)) == (3, 15)
    assert (options.reference, options.reference_steps) == ("DDIM", 100)


@pytest.mark.slow
def test_frames_of_any_size_and_one_clip_at_a_time(odd_frames, tmp_path, clips_held):
    pipe = get_dummy_pipeline()
    pipe.save_pretrained(tmp_path / "model")
    words = ["--model", str(tmp_path / "model"), "--dataset", str(odd_frames), "--num_clips", "3", "--steps", "1"]
    words += ["--frames_per_clip", "1", "--reference_steps", "2", "--schedulers", "DDIM", "UniPC"]
    report = main(parse_args([*words, "--output", str(tmp_path / "report.json")]))
    assert len(clips_held) == 3 * 3 and max(clips_held) <= 2, "each scheduler at each number of steps reads all clips"
    psnr = []
    for seed, clip in enumerate(load_clips(str(odd_frames), "validation", 3, 1)):
        frames = pipe(
            clip.reference, list(clip.iuv), num_inference_steps=2, frame_indices=clip.frame_indices,
            generator=torch.Generator().manual_seed(seed), output_type="pt",
        ).frames[0]  # fmt: skip
        truth = fit_image(clip.targets[0], 32, 24)[None] / 2 + 0.5
        psnr.append(metrics.psnr(frames, truth).item())
    assert report["reference"]["psnr"]["mean"] == pytest.approx(np.mean(psnr), abs=1e-4)
