"""The benchmark of guidance intervals counts forward passes and compares each interval with guidance in all steps."""

import json

import pytest

from benchmarks.claims.guidance_interval import main, parse_args
from tests.tiny_components import get_dummy_pipeline


@pytest.mark.slow
def test_intervals_between_none_and_all_steps(tmp_path):
    pipe = get_dummy_pipeline(default_height=80, default_width=64)
    assert pipe.config.default_image_guidance_scale != 1, "else guidance would change nothing"
    pipe.save_pretrained(tmp_path / "model")
    words = ["--model", str(tmp_path / "model"), "--dataset", "procedural/smoke", "--num_clips", "2"]
    words += ["--frames_per_clip", "1", "--num_consecutive", "3", "--num_inference_steps", "4"]
    words += ["--intervals", "0,1", "0,0.5", "0,0", "--output", str(tmp_path / "report.json")]
    report = main(parse_args(words))
    assert json.loads((tmp_path / "report.json").read_text())["rows"] == report["rows"]
    whole, half, none = (report["rows"][name] for name in ("0 to 1", "0 to 0.5", "0 to 0"))
    assert none["passes_per_frame"] == 4, "one forward pass in each step"
    assert none["passes_per_frame"] < half["passes_per_frame"] < whole["passes_per_frame"]
    assert whole["psnr_minus_reference"]["mean"] == whole["flicker_minus_reference"]["mean"] == 0
    assert none["psnr"]["mean"] != whole["psnr"]["mean"] != half["psnr"]["mean"]


@pytest.mark.parametrize("text", ["0.5", "0.5,0.25", "1,0", "0,1.5", "a,b", "nan,1", "0,0.5,1"])
def test_an_interval_lies_within_the_steps(text, capsys):
    with pytest.raises(SystemExit):
        parse_args(["--intervals", text])
    assert "must be START,STOP with 0 <= START <= STOP <= 1, got" in capsys.readouterr().err
