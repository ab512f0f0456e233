"""The guidance benchmark measures, draws and reports every pair of scales on the given model and clips."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.claims import guidance
from pipeline_dreampose import fit_image
from tests.tiny_components import get_dummy_pipeline
from training.metrics import frames as metrics
from training.metrics.baselines import measure
from training.metrics.clips import load_clips


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    get_dummy_pipeline(default_height=80, default_width=64).save_pretrained(folder)
    return folder


def run(model, output, *more):
    words = ["--model", model, "--dataset", "procedural/smoke", "--num_clips", "2", "--frames_per_clip", "1"]
    words += ["--image_scales", "0", "2", "--pose_scales", "1", "0.5", "--num_inference_steps", "1"]
    words += ["--output", output / "report.json", *more]
    return guidance.main(guidance.parse_args([str(word) for word in words]))


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(model, folder)


@pytest.mark.slow
def test_every_pair_is_measured_and_drawn(whole):
    folder, report = whole
    assert json.loads((folder / "report.json").read_text()) == report
    assert sorted(path.name for path in folder.iterdir()) == ["report.json", "report_frames.png", "report_heat.png"]
    clips = load_clips("procedural/smoke", "validation", 2, 1)
    pipe, psnr = get_dummy_pipeline(), {}  # has another default size, so the call names that of the clips
    for r, image_scale in enumerate((0, 2)):
        for c, pose_scale in enumerate((1, 0.5)):
            figures = []
            for index, clip in enumerate(clips):
                frames = pipe(
                    clip.reference, list(clip.iuv), 80, 64, 1, image_scale, pose_scale,
                    frame_indices=clip.frame_indices, generator=torch.Generator().manual_seed(index), output_type="pt",
                ).frames[0]  # fmt: skip
                figures.append(measure(frames, clip.targets, clip.layers))
                if index == 0:
                    grid = np.asarray(Image.open(folder / "report_frames.png"))
                    # A third row below shows photo, pose and truth, in three columns.
                    bottom, right = grid.shape[0] - (2 - r) * 84, grid.shape[1] - (2 - c) * 68
                    cell = grid[bottom - 80 : bottom, right - 64 : right].astype(int)
                    assert np.abs(cell - frames[0].permute(1, 2, 0).mul(255).numpy()).max() <= 1
            found = report["pairs"][f"{image_scale:g}, {pose_scale:g}"]
            psnr[image_scale, pose_scale] = sum(f["psnr"] for f in figures) / 2
            assert found["psnr"]["mean"] == pytest.approx(psnr[image_scale, pose_scale], abs=1e-3)
            assert found["silhouette_iou"]["mean"] == pytest.approx(sum(f["silhouette_iou"] for f in figures) / 2)
            assert found["psnr"]["n"] == 2 and found["psnr"]["standard_error"] > 0
    assert tuple(report["best_psnr"]) == max(psnr, key=psnr.get)
    best = ", ".join(f"{scale:g}" for scale in report["best_psnr"])
    assert report["pairs"][best]["psnr_minus_best"]["mean"] == 0
    assert all(figures["psnr_minus_best"]["mean"] <= 0 for figures in report["pairs"].values())


@pytest.mark.slow
def test_a_stopped_sweep_resumes(model, whole, tmp_path, monkeypatch):
    measure_pair, measured = guidance.measure_pair, []

    def stop_after_two(pipe, clips, pair, *args):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(pair)
        return measure_pair(pipe, clips, pair, *args)

    monkeypatch.setattr(guidance, "measure_pair", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path)
    with pytest.raises(ValueError, match="`resume` must keep .*num_inference_steps 1, now 3"):
        run(model, tmp_path, "--resume", "--num_inference_steps", "3")
    measured.clear()
    assert run(model, tmp_path, "--resume")["pairs"] == whole[1]["pairs"]
    assert measured == [(2, 1), (2, 0.5)]


@pytest.mark.slow
def test_frames_of_any_size_and_one_clip_at_a_time(odd_frames, tmp_path, clips_held):
    pipe = get_dummy_pipeline()
    pipe.save_pretrained(tmp_path / "model")
    report = run(tmp_path / "model", tmp_path, "--dataset", odd_frames, "--num_clips", "3")
    assert len(clips_held) == 4 * 3 + 1 and max(clips_held) <= 2, "4 pairs read all clips, the pictures the first"
    psnr = []
    for seed, clip in enumerate(load_clips(str(odd_frames), "validation", 3, 1)):
        frames = pipe(
            clip.reference, list(clip.iuv), num_inference_steps=1, image_guidance_scale=2, pose_guidance_scale=0.5,
            frame_indices=clip.frame_indices, generator=torch.Generator().manual_seed(seed), output_type="pt",
        ).frames[0]  # fmt: skip
        truth = fit_image(clip.targets[0], 32, 24)[None] / 2 + 0.5
        psnr.append(metrics.psnr(frames, truth).item())
    assert report["pairs"]["2, 0.5"]["psnr"]["mean"] == pytest.approx(np.mean(psnr), abs=1e-4)
    with Image.open(tmp_path / "report_frames.png") as pictures:
        assert pictures.height < 3 * 77
