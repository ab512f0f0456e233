"""The choice of a stored scheduler is measured on the model and clips that are named, and reported."""

import json

import pytest

from benchmarks.schedulers import main, parse_args


@pytest.mark.slow
def test_the_report(tmp_path):
    words = ["--dataset", "procedural/smoke", "--num_clips", "2", "--frames_per_clip", "1", "--steps", "1", "4"]
    words += ["--reference_steps", "4", "--schedulers", "DDIM", "UniPC", "--output", str(tmp_path / "report.json")]
    report = main(parse_args(words))
    assert report["rows"]["DDIM"][4]["minus_reference"]["mean"] == 0  # the reference itself
    # One step is one prediction for both; later they part.
    one, four = ([report["rows"][name][steps]["psnr"]["mean"] for name in ("DDIM", "UniPC")] for steps in (1, 4))
    assert four[0] > one[0] and four[1] > one[1] and four[0] != four[1]
    assert json.loads((tmp_path / "report.json").read_text())["reference"] == report["reference"]
