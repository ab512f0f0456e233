"""Frames shrunk to half are measured with the clips of half the size."""

import pytest
import torch
from PIL import Image

from benchmarks.claims import half_size
from tests.launch import ROOT


class Learned:
    """Stands for [`LearnedMetrics`]."""

    def __init__(self, pipe):
        pass

    def measure(self, prediction, truth):
        return {"identity_distance": (prediction - truth).abs().max().item()}


def test_frames_are_shrunk_by_means_and_compared_with_the_smaller_truth(monkeypatch):
    class Half:
        targets, layers = [Image.new("RGB", (2, 2), (51, 51, 51))], None

    frames = torch.zeros(1, 3, 4, 4)
    frames[..., ::2, ::2] = 0.8  # the mean of each 2x2 pixels is .2, which is 51 of 255
    monkeypatch.setattr(half_size, "sample_clips", lambda pipe, clips: [(None, frames, frames[:0])] * len(clips))
    monkeypatch.setattr(half_size, "LearnedMetrics", Learned)
    monkeypatch.setattr(
        half_size, "measure", lambda shrunk, *truth: {name: shrunk.sum().item() for name in half_size.METRICS}
    )
    (values,) = half_size.measure_halves(None, [None], [Half()])
    assert values["psnr"] == pytest.approx(0.2 * 12) and values["identity_distance"] < 1e-6


@pytest.mark.slow
def test_it_measures_model_and_lora(tmp_path):
    words = ["--lora", str(ROOT / "model_card" / "tiny" / "fast"), "--num_clips", "1", "--frames_per_clip", "1"]
    words += ["--model", str(ROOT / "model_card" / "tiny"), "--output", str(tmp_path / "half.json")]
    report = half_size.main(half_size.parse_args(words))
    assert list(report["rows"]) == ["stored steps", "few-step LoRA"]
    assert all(row["psnr"]["mean"] > 20 for row in report["rows"].values()), report["rows"]
