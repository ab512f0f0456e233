"""The few-step benchmark measures teacher and student on the same clips, with the settings that the rows name."""

import json

import pytest
import torch

from benchmarks.claims.few_step_rows import TEACHER, open_row, rows_of, sharpness
from benchmarks.claims.few_steps import main, parse_args
from tests.tiny_components import get_dummy_pipeline, save_subject
from training.models.distillation import few_step_settings


@pytest.fixture
def folders(tmp_path):
    pipeline = get_dummy_pipeline()
    pipeline.save_pretrained(tmp_path / "model")
    settings = json.dumps(few_step_settings(pipeline, 20, 1))
    return tmp_path / "model", save_subject(tmp_path / "fast", 0, ("unet", "adapter"), few_steps=settings)


def test_sharpness_is_the_share_of_the_energy_of_the_differences():
    truth = torch.rand(2, 3, 4, 4)
    assert sharpness(truth, truth) == 1
    assert sharpness(truth / 2 + 0.3, truth) == pytest.approx(0.25, rel=1e-5)


def test_rows_are_sampled_as_their_names_say(folders):
    model, lora = map(str, folders)
    options = parse_args(["--model", model, "--lora", lora, "--full", model, "--steps", "1", "2"])
    rows = rows_of(options)
    assert list(rows)[-4:] == ["LoRA, 1 step", "LoRA, 2 steps", "full, 1 step", "full, 2 steps"]
    teacher, student = (open_row(*rows[name], "cpu") for name in (TEACHER, "LoRA, 2 steps"))
    assert teacher.scheduler.config.timestep_spacing == "leading" and rows[TEACHER][2]["num_inference_steps"] == 15
    assert teacher.config.default_image_guidance_scale == 2.0
    assert type(student.scheduler).__name__ == "LCMScheduler" and student.config.default_image_guidance_scale == 1.0


def test_the_report_compares_with_the_teacher_clip_by_clip(folders, odd_frames, tmp_path, capsys):
    model, lora = map(str, folders)
    words = ["--model", model, "--lora", lora, "--dataset", str(odd_frames), "--split", "validation", "--steps", "1"]
    words += ["--num_clips", "2", "--frames_per_clip", "1", "--num_consecutive", "3"]
    report = main(parse_args([*words, "--output", str(tmp_path / "report.json")]))
    assert json.loads((tmp_path / "report.json").read_text()) == report and (tmp_path / "report.png").exists()
    assert report["rows"][TEACHER]["psnr_minus_teacher"]["mean"] == 0
    row, teacher = report["rows"]["LoRA, 1 step"], report["rows"][TEACHER]
    for metric in ("psnr", "temporal_error", "sharpness"):
        difference = row[f"{metric}_minus_teacher"]["mean"]
        assert difference == pytest.approx(row[metric]["mean"] - teacher[metric]["mean"], abs=1e-5) and difference != 0
    assert report["digests"][TEACHER] != report["digests"]["LoRA, 1 step"]
    assert "LoRA, 1 step" in capsys.readouterr().out


def test_a_missing_student_is_named():
    with pytest.raises(ValueError, match="`lora` or `full` is missing"):
        main(parse_args([]))
