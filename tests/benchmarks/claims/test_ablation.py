"""The ablation: differences clip by clip, the rule of the verdicts, training and measurement of the arms."""

import json

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.claims import ablation
from benchmarks.claims.ablation_arms import ARMS, SCALES, start_from
from benchmarks.claims.ablation_report import CLAIMS, compare, format_table, judge, values_of_subjects, verdict
from benchmarks.kept_jobs import run_missing
from tests.tiny_components import get_dummy_image, get_dummy_iuv, get_dummy_pipeline
from training.metrics.baselines import sample_frames, to_tensor


def test_differences_are_taken_clip_by_clip_and_averaged_over_seeds():
    better = [{"ssim": [0.5, 0.75]}, {"ssim": [0.75, 0.75]}]
    worse = [{"ssim": [0.25, 0.25], "l1": [1.0, 1.0]}, {"ssim": [0.5, 0.5]}]
    # The differences are (.25, .5) and (.25, .25) by seed, so .25 and .375 by clip; their standard error is .125 / 2.
    table = compare(better, worse)
    assert table.keys() == {"ssim"} and table["ssim"].pop("seeds") == [0.375, 0.25]
    assert table["ssim"] == pytest.approx({"mean": 0.3125, "standard_error": 0.0625, "n": 2})


@pytest.mark.parametrize(
    "metric, mean, seeds, expected",
    [
        ("ssim", 0.3, [0.2, 0.4], "confirmed"),
        ("ssim", 0.3, [-0.1, 0.7], "not decided at this size"),
        ("ssim", 0.15, [0.1, 0.2], "not decided at this size"),
        ("ssim", -0.3, [-0.2, -0.4], "not confirmed: the opposite"),
        ("l1", -0.3, [-0.2, -0.4], "confirmed"),
        ("flicker", 0.3, [0.3], "not confirmed: the opposite"),
    ],
)
def test_a_verdict_needs_two_standard_errors_and_the_same_sign_in_each_seed(metric, mean, seeds, expected):
    assert verdict(metric, {"mean": mean, "standard_error": 0.1, "n": 9, "seeds": seeds}) == expected
    without_error = {"mean": mean, "standard_error": None, "n": 1, "seeds": seeds}
    assert verdict(metric, without_error) == "not decided at this size"


def test_only_what_was_measured_is_judged():
    by_subject = [{"all": {"ssim": values, "l1": [0.0, 0.0]}} for values in ([0.0, 0.0], [0.25, 0.5], [0.5, 0.5])]
    phases = ("before", "denoiser", "decoder")
    report = {"num_photos": {"1": [{"phase": p, "gain_by_subject": g} for p, g in zip(phases, by_subject)]}}
    rows = judge(values_of_subjects(report))
    assert [row["better"][0] for row in rows] == ["photos 1", "photos 1"], "four photos and the arms were not measured"
    own, decoder = (row["differences"]["ssim"] for row in rows)
    assert (own["mean"], decoder["mean"]) == (0.5, 0.125)
    assert rows[0]["verdict"] == "confirmed" and rows[1]["verdict"] == "not decided at this size"
    *_, line, _, caption = format_table(rows).strip().splitlines()
    assert caption.startswith("Difference of the two sides")
    assert line.startswith("| the VAE's decoder trained too") and "| **+0.1250 ± 0.1250** | +0.0000 ± 0.0000 |" in line


def test_every_claim_names_sides_that_are_measured():
    sides = {(arm, scale) for arm in ARMS for scale in SCALES}
    sides |= {("noise", f"{kind}_noise") for kind in ("shared", "independent")}
    sides |= {(f"photos {n}", point) for n in (1, 4) for point in ("before", "denoiser", "end")}
    assert all({claim.better, claim.worse} <= sides for claim in CLAIMS)


def test_given_noise_starts_where_the_pipeline_starts():
    pipe = get_dummy_pipeline()
    photo, iuv = get_dummy_image(), [get_dummy_iuv(i) for i in range(3)]
    _, image_latents = pipe.encode_image(to_tensor([photo]) * 2 - 1)
    noise = torch.randn(image_latents.shape, generator=torch.Generator().manual_seed(7))
    latents = start_from(pipe, image_latents, noise, 2)
    own = sample_frames(pipe, photo, iuv, [0, 2], photo.size, 7, num_inference_steps=2)
    given = sample_frames(pipe, photo, iuv, [0, 2], photo.size, 0, num_inference_steps=2, latents=latents)
    torch.testing.assert_close(given, own, atol=1e-5, rtol=0)


def test_independent_noise_gives_each_frame_its_own_start():
    pipe, noise = get_dummy_pipeline(), torch.randn(3, 4, 8, 8)
    assert start_from(pipe, torch.zeros(1, 4, 8, 8), noise, 2).flatten(1).unique(dim=0).shape[0] == 3


@pytest.mark.slow
def test_arms_are_trained_measured_and_kept(tmp_path):
    words = ["--model", "model_card/tiny", "--arms", "clip_only", "one_pose", "--seeds", "3", "--num_train", "4"]
    words += ["--max_train_steps", "2", "--num_clips", "2", "--frames_per_clip", "1", "--num_consecutive", "3"]
    words += ["--num_inference_steps", "1", "--num_processes", "2", "--work_dir", str(tmp_path / "work")]
    words += ["--subjects", str(tmp_path / "none.json"), "--output", str(tmp_path / "report.json")]
    report = ablation.main(ablation.parse_args(words))
    assert json.loads((tmp_path / "report.json").read_text())["settings"]["max_train_steps"] == 2
    assert [row["metric"] for row in report["claims"]] == ["flicker"], "all other claims need the full arm"
    assert (tmp_path / "report.md").read_text().count("\n") == 5
    adapters = {
        arm: load_file(tmp_path / "work" / f"{arm}-3" / "adapter" / "diffusion_pytorch_model.safetensors")
        for arm in ("clip_only", "one_pose")
    }
    num_tokens = adapters["one_pose"]["token_mixer.weight"].shape[0]
    weights = {arm: adapter["token_mixer.weight"][:, num_tokens:] for arm, adapter in adapters.items()}
    assert not weights["clip_only"].any() and weights["one_pose"].any(), "the CLIP-only arm mixes in no VAE token"
    unet = json.loads((tmp_path / "work" / "one_pose-3" / "unet" / "config.json").read_text())
    assert unet["in_channels"] - unet["out_channels"] == 2, "one pose map of two channels"
    kept = tmp_path / "work" / "clip_only-3.json"
    value = json.loads(kept.read_text())
    value["guided"][0]["psnr"] += 1000
    kept.write_text(json.dumps(value))
    again = ablation.main(ablation.parse_args(words))
    assert again["figures"]["clip_only, guided"][0]["psnr"][0] > 900, "a kept result is read, not computed again"
    with pytest.raises(ValueError, match=r"`work_dir` must keep .*num_clips 2, now 3"):
        ablation.main(ablation.parse_args([*words, "--num_clips", "3"]))


def fail(number):
    if number == 1:
        raise ValueError("one")
    return number


@pytest.mark.slow
def test_a_failed_job_ends_the_run_and_other_results_stay(tmp_path):
    jobs = {tmp_path / f"{number}.json": (number,) for number in (0, 1)}
    with pytest.raises(ValueError, match="one"):
        run_missing(fail, jobs, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["0.json"]
