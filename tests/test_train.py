"""`train.py` on a tiny pipeline and drawn clips."""

import inspect
import json
import os
import signal
import subprocess
import sys
import time

import huggingface_hub
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline_dreampose import DreamPosePipeline
from tests.conftest import reset_accelerate
from tests.hub_server import TOKEN, Hub
from tests.launch import ROOT, launch_two_processes, start_two_processes
from tests.tiny_components import get_dummy_components, get_unet
from training.data import samples
from training.data.frame_stream import EndlessFrameStream
from training.data.pair_settings import PairSettings
from training.engine import loop
from training.engine.checkpoints import checkpoint_step, list_checkpoints
from training.metrics import validation
from training.models import denoiser
from training.models.denoiser import vae_token_weight
from training.train import main, parse_args


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    DreamPosePipeline(**get_dummy_components()).save_pretrained(folder)
    return folder


def arguments(base, output_dir, *more):
    return [
        "--pretrained_model_name_or_path", str(base), "--train_data", "procedural/smoke", "--height", "80",
        "--width", "64", "--output_dir", str(output_dir), "--max_train_steps", "4", "--train_batch_size", "2",
        "--learning_rate", "1e-3", "--ema_decay", "0.9", "--logging_steps", "1", "--checkpointing_steps", "2", *more,
    ]  # fmt: skip


def records(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses(folder):
    return [record["loss"] for record in records(folder) if "loss" in record]


def weights(folder):
    return {
        f"{name}.{key}": value
        for name in ("unet", "adapter", "vae", "image_encoder")
        for file in (folder / name).glob("*.safetensors")
        for key, value in load_file(file).items()
    }


@pytest.mark.slow
def test_trains_validates_and_writes_a_pipeline(base, tmp_path):
    main(parse_args(arguments(base, tmp_path, "--validation_steps", "4")))
    before, after = weights(base), weights(tmp_path)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed and {key.split(".")[0] for key in changed} == {"unet", "adapter"}
    pipeline = DreamPosePipeline.from_pretrained(tmp_path)
    assert (pipeline.config.default_height, pipeline.config.default_width) == (80, 64)
    log = records(tmp_path)
    assert all(0 < loss < 10 for loss in losses(tmp_path))
    validated = [record for record in log if "validation/ssim" in record]
    assert [record["step"] for record in validated] == [4] and validated[0]["validation/psnr"] > 3
    assert 0 < validated[0]["validation/temporal_error"] < 1
    strip, video = (Image.open(tmp_path / "validation" / f"step-000004.{suffix}") for suffix in ("png", "gif"))
    assert video.size == (64, 80) and video.n_frames == 6 and strip.width > 7 * 64 and strip.height > 3 * 80
    assert (tmp_path / "validation" / "step-000004.mp4").exists()
    adapter = DreamPosePipeline.from_pretrained(base).adapter
    assert log[0]["vae_token_weight"] == pytest.approx(vae_token_weight(adapter).item(), rel=1e-4)
    assert log[0]["peak_memory_gib"] > 0.1
    assert "learning_rate: 0.001" in (tmp_path / "options.yaml").read_text()


@pytest.mark.slow
def test_the_noise_offset_reaches_the_samples(base, tmp_path, monkeypatch):
    calls = record_calls(monkeypatch, samples, "open_samples")
    main(parse_args(arguments(base, tmp_path, "--noise_offset", "0.25", "--max_train_steps", "1")))
    assert [found["settings"].noise_offset for _, found in calls] == [0.25]


def record_calls(monkeypatch, module, *names):
    """Record the calls of a module's functions as `(name, arguments)`; the functions still run."""
    calls = []

    def record(name, function):
        def call(*args, **kwargs):
            calls.append((name, inspect.signature(function).bind(*args, **kwargs).arguments))
            return function(*args, **kwargs)

        monkeypatch.setattr(module, name, call)

    for name in names:
        record(name, getattr(module, name))
    return calls


@pytest.mark.slow
@pytest.mark.parametrize(
    "trains_image_encoder, said", [("False", "The UNet was"), ("True", "The UNet and image encoder were")]
)
def test_options_and_splits_reach_their_functions(tmp_path, monkeypatch, capsys, trains_image_encoder, said):
    """One step with options of the loss, and with the base model's prediction type."""
    scheduler = {"scheduler": DDIMScheduler(prediction_type="v_prediction")}
    DreamPosePipeline(**get_dummy_components() | scheduler).save_pretrained(tmp_path / "base")
    objective = ("drop_conditions", "min_snr_weights", "diffusion_target", "draw_timesteps")
    calls = record_calls(monkeypatch, denoiser, *objective)
    precisions = []
    encode = denoiser.encode_pixels
    monkeypatch.setattr(denoiser, "encode_pixels", lambda x, vae: precisions.append(vae.dtype) or encode(x, vae))
    validations = record_calls(monkeypatch, validation, "build_validation")
    trainings = record_calls(monkeypatch, loop, "train")
    more = ["--max_train_steps", "1", "--validation_steps", "1", "--mixed_precision", "bf16"]
    more += ["--train_adapter", "False", "--train_image_encoder", trains_image_encoder]
    more += ["--num_validation_pairs", "1", "--num_validation_frames", "1", "--validation_inference_steps", "1"]
    more += ["--image_dropout_prob", "0.1", "--pose_dropout_prob", "0.2", "--joint_dropout_prob", "0.3"]
    more += ["--snr_gamma", "4", "--high_noise_fraction", "0.6", "--high_noise_start", "300"]
    main(parse_args(arguments(tmp_path / "base", tmp_path / "out", *more)))

    (dropped,) = (found for name, found in calls if name == "drop_conditions")
    assert (dropped["image_prob"], dropped["pose_prob"], dropped["joint_prob"]) == (0.1, 0.2, 0.3)
    (drawn,) = (found for name, found in calls if name == "draw_timesteps")
    assert (drawn["high_noise_fraction"], drawn["high_noise_start"]) == (0.6, 300)
    (weighted,) = (found for name, found in calls if name == "min_snr_weights")
    (target,) = (found for name, found in calls if name == "diffusion_target")
    assert weighted["snr_gamma"] == 4
    for found in (weighted, target):
        assert found["noise_scheduler"].config.prediction_type == "v_prediction"
    assert set(precisions) == {torch.bfloat16} and len(precisions) == 3, "black picture, target and reference"

    validated, trained = dict(validations)["build_validation"], dict(trainings)["train"]
    for samples_of, split in ((validated["samples"], "validation"), (trained["dataset"], "train")):
        assert {video_id.partition("-")[0] for video_id in samples_of.videos} == {split}
    out = tmp_path / "out"
    assert capsys.readouterr().out == f"{(out / 'options.yaml').read_text()}\nWrote the pipeline to {out}.\n"
    assert f"{said} trained on\nprocedurally drawn figures" in (out / "README.md").read_text()


@pytest.mark.slow
def test_resumed_run_equals_an_undisturbed_one(base, tmp_path):
    main(parse_args(arguments(base, tmp_path / "whole", "--lr_scheduler", "constant")))
    first = arguments(base, tmp_path / "parts", "--lr_scheduler", "constant")
    main(parse_args([*first, "--max_train_steps", "2"]))
    main(parse_args([*first, "--resume_from_checkpoint", "latest"]))
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


@pytest.mark.slow
def test_the_latent_cache_gives_the_same_losses(base, tmp_path):
    main(parse_args(arguments(base, tmp_path / "direct")))
    main(parse_args(arguments(base, tmp_path / "cached", "--latent_cache_dir", str(tmp_path / "cache"))))
    assert losses(tmp_path / "direct") == pytest.approx(losses(tmp_path / "cached"), rel=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags", [["--gradient_checkpointing"], ["--torch_compile_backend", "eager"]], ids=["checkpointed", "compiled"]
)
def test_saving_memory_or_time_changes_only_rounding(base, tmp_path, flags, monkeypatch):
    recomputed, checkpoint = [], torch.utils.checkpoint.checkpoint
    monkeypatch.setattr(
        "torch.utils.checkpoint.checkpoint",
        lambda *args, **kwargs: recomputed.append(1) or checkpoint(*args, **kwargs),
    )
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    main(parse_args(arguments(base, tmp_path / "plain")))
    assert not recomputed and not torch._dynamo.utils.counters["frames"]["ok"]
    main(parse_args(arguments(base, tmp_path / "other", *flags)))
    assert bool(recomputed) != bool(torch._dynamo.utils.counters["frames"]["ok"])
    assert bool(recomputed) == ("--gradient_checkpointing" in flags)
    assert losses(tmp_path / "plain") == pytest.approx(losses(tmp_path / "other"), rel=1e-5)
    plain, other = weights(tmp_path / "plain"), weights(tmp_path / "other")
    assert plain.keys() == other.keys()
    for key in plain:
        torch.testing.assert_close(plain[key], other[key], rtol=0, atol=1e-4, msg=key)


@pytest.mark.slow
def test_mixed_precision_trains_in_float32_and_does_not_round_frozen_weights(base, tmp_path):
    main(parse_args(arguments(base, tmp_path / "plain")))
    reset_accelerate()
    more = ["--mixed_precision", "bf16", "--validation_steps", "4", "--report_to", "tensorboard"]
    main(parse_args(arguments(base, tmp_path / "half", *more)))
    assert losses(tmp_path / "plain") == pytest.approx(losses(tmp_path / "half"), rel=0.05)
    assert losses(tmp_path / "plain") != losses(tmp_path / "half")
    before, after = weights(base), weights(tmp_path / "half")
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    assert all(torch.equal(before[key], after[key]) for key in before if key.startswith(("vae", "image_encoder")))
    saved = load_file(tmp_path / "half" / "checkpoint-000004" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    events = EventAccumulator(str(tmp_path / "half" / "logs" / "dreampose")).Reload().Tags()
    logged = {"loss", "lr", "grad_norm", "samples_per_second", "peak_memory_gib", "vae_token_weight"}
    assert logged | {"validation/l1", "validation/psnr", "validation/ssim"} <= set(events["scalars"])
    assert set(events["images"]) == {"validation/clip", "validation/clip_strip"}


@pytest.mark.slow
def test_a_streaming_run_restarts_at_the_current_video(base, tmp_path, monkeypatch):
    """Six clips of six frames, one per shard; the resumed run starts where the first one's workers stopped."""
    begun, load_positions = [], EndlessFrameStream.load_positions

    def record(stream, positions):
        if positions:
            begun.append([list(position) for position in positions])
        return load_positions(stream, positions)

    monkeypatch.setattr(EndlessFrameStream, "load_positions", record)
    more = ["--streaming", "--dataloader_num_workers", "2", "--validation_steps", "6", "--max_train_steps", "6"]
    main(parse_args(arguments(base, tmp_path, *more, "--max_train_steps", "3")))
    state = json.loads((tmp_path / "checkpoint-000003" / "state.json").read_text())
    (positions,) = state["stream_positions"]  # one process with two workers
    assert len(positions) == 2 and all(len(position) == 3 for position in positions)
    main(parse_args(arguments(base, tmp_path, *more, "--resume_from_checkpoint", "latest")))
    assert len(losses(tmp_path)) == 6 and all(0 < loss < 10 for loss in losses(tmp_path))
    assert begun == [[[0, 0, 0]] * 2, positions]


@pytest.mark.slow
def test_crops_and_skipped_rows_train(base, tmp_path):
    more = ["--fit", "crop", "--min_crop_scale", "0.6", "--bad_rows", "skip", "--max_reference_distance", "2"]
    main(parse_args(arguments(base, tmp_path, "--width", "80", *more)))
    log = records(tmp_path)
    assert len(log) == 4 and all(0 < record["loss"] < 10 and record["bad_rows"] == 0 for record in log)


@pytest.mark.slow
def test_validation_uses_the_pose_radius_and_bad_rows_of_training(base, tmp_path, monkeypatch):
    settings = []

    def held_out(pipeline, samples, *others):
        settings.append(samples.settings)
        return lambda module, global_step: {"ssim": 1.0}

    monkeypatch.setattr("training.metrics.validation.HeldOutPairs", held_out)
    monkeypatch.setattr("training.metrics.validation.HeldOutClip", held_out)
    more = ["--validation_steps", "4", "--fit", "crop", "--bad_rows", "skip"]
    main(parse_args(arguments(base, tmp_path, *more)))
    assert settings == [PairSettings(pose_radius=2, fit="whole", bad_rows="skip")] * 2


def test_zero_steps_widen_stable_diffusion(tmp_path, monkeypatch):
    """The new pipeline passes the image encoder's tokens to its UNet, whose output does not change."""
    parts = get_dummy_components()
    unet = get_unet(in_channels=4)
    StableDiffusionPipeline(
        vae=parts["vae"], text_encoder=None, tokenizer=None, unet=unet, scheduler=parts["scheduler"],
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(tmp_path / "sd")  # fmt: skip
    parts["image_encoder"].save_pretrained(tmp_path / "clip")
    out = tmp_path / "out"
    flags = ["--image_encoder_name_or_path", str(tmp_path / "clip"), "--max_train_steps", "0"]
    monkeypatch.setattr("training.data.samples.load_prepared", lambda *names: pytest.fail("no data set is needed"))
    main(parse_args(arguments(tmp_path / "sd", out, *flags)))
    widened = UNet2DConditionModel.from_pretrained(out, subfolder="unet")
    latents, states, window = torch.randn(1, 4, 16, 12), torch.randn(1, 5, 16), torch.rand(1, 10, 16, 12)
    with torch.no_grad():
        old, new = unet(latents, 10, states).sample, widened(torch.cat([latents, window], 1), 10, states).sample
    torch.testing.assert_close(old, new, rtol=0, atol=1e-6)
    pipeline = DreamPosePipeline.from_pretrained(out)
    assert torch.equal(pipeline.adapter(states, latents), states)
    assert "Nothing is trained yet" in (out / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["0", "1"])
def test_a_shorter_run_does_not_overwrite_a_trained_pipeline(base, tmp_path, limit):
    more = ["--resume_from_checkpoint", "latest", "--max_train_steps"]
    main(parse_args(arguments(base, tmp_path, *more, "2")))
    trained, kept = weights(tmp_path), (tmp_path / "options.yaml").read_bytes()
    with pytest.raises(ValueError, match=f"`max_train_steps` must be at least the checkpoint's step, 2, got {limit}"):
        main(parse_args(arguments(base, tmp_path, *more, limit)))
    assert all(torch.equal(trained[name], value) for name, value in weights(tmp_path).items())
    assert (tmp_path / "options.yaml").read_bytes() == kept


def test_the_base_is_not_overwritten(base, tmp_path):
    with pytest.raises(ValueError, match="`output_dir` must spare what is read, but .* writes over"):
        main(parse_args(arguments(base, base, "--max_train_steps", "0")))


def test_a_failed_push_does_not_fail_the_run(base, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    out = tmp_path / "out"
    main(parse_args(arguments(base, out, "--max_train_steps", "0", "--push_to_hub", "--hub_model_id", "someone/new")))
    assert DreamPosePipeline.from_pretrained(out).config.default_height == 80 and (out / "README.md").exists()
    start = "Nothing was pushed to 'someone/new' (`hub_model_id`), the connection to the Hub broke: Offline"
    first, last = (record.message for record in caplog.records if record.message.startswith(start))
    assert first.endswith("a later push tries again.")
    assert f"Everything is in '{out}'; this pushes it later: hf upload someone/new {out} --private" in last


@pytest.mark.slow
def test_a_run_pushes_its_pipeline_and_card(base, tmp_path):
    """In a process of its own, to a fake Hub; `--hub_model_id` has no owner."""
    words = arguments(base, tmp_path / "out", "--max_train_steps", "2", "--validation_steps", "2", "--push_to_hub")
    command = [sys.executable, str(ROOT / "training" / "train.py"), *words, "--hub_model_id", "pushed"]
    with Hub() as hub:
        environment = os.environ | hub.environment | {"HF_HUB_CACHE": str(tmp_path / "hub"), "PYTHONPATH": str(ROOT)}
        process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert process.returncode == 0, process.stderr[-3000:]
        files = hub.files("models/someone/pushed")
        assert len(hub.commits["models/someone/pushed"]) == 2 and "models/someone/pushed" in hub.private
    assert f"Pushed {tmp_path / 'out'} to {hub.endpoint}/someone/pushed." in process.stdout
    names = {"model_index.json", "pipeline.py", "pipeline_dreampose.py", "README.md", "sample.png"}
    assert names <= files.keys() and not any(name.startswith(("checkpoint", "logs", "options")) for name in files)
    card = files["README.md"].decode()
    assert 'DiffusionPipeline.from_pretrained("someone/pushed"' in card and "for 2 steps of 2 samples" in card
    assert f"{records(tmp_path / 'out')[-1]['validation/psnr']:.4g}" in card and str(tmp_path) not in card
    assert not any(str(tmp_path).encode() in content for content in files.values()), "no path of this machine"
    said = (process.stdout.encode(), process.stderr.encode())
    written = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in content for content in [*written, *files.values(), *said])


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--pretrained_model_name_or_path", "no/such"], "`pretrained_model_name_or_path` must be a pipeline's fol"),
        (["--mixed_precision", "fp16"], "`mixed_precision` must be no or bf16 on a CPU, .*, got fp16"),
        (["--height", "88", "--width", "60"], "`width` must be a positive multiple of 8"),
        (["--pose_radius", "1"], "`pose_radius` must be the model's own, 2, got 1"),
        (["--train_data", "procedural/huge"], "^`train_data` must be one of"),
        (["--train_data", "a/b/c"], "^`train_data` must be a folder of parquet files .*, got 'a/b/c'"),
        (["--min_crop_scale", "0.5", "--latent_cache_dir", "x"], "`min_crop_scale` must be 1 with `latent_cache_dir`"),
        (["--learning_rate", "0"], "`learning_rate` must be a finite number above 0"),
        (["--lr_warmup_steps", "9"], "`lr_warmup_steps` must be 0 with `lr_scheduler` constant.*, got 9"),
        (["--streaming", "--max_train_steps", "none"], "`max_train_steps` is missing: with `streaming`"),
        (
            ["--torch_compile_backend", "inducter"],
            "`torch_compile_backend` must be a backend of .*inductor or eager, got 'inducter'",
        ),
        (["--hub_model_id", "a/b/c"], "`hub_model_id` must be a repository's id on the Hub, got 'a/b/c'"),
        (["--latent_cache_dir", "not/made", "--use_8bit_adam"], "`use_8bit_adam` must go with CUDA and bitsandbytes"),
    ],
)
def test_bad_options_end_in_one_clear_error(base, tmp_path, flags, message, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=message):
        main(parse_args(arguments(base, tmp_path, *flags)))


@pytest.mark.slow
def test_two_processes_train_as_one(base, tmp_path):
    """`accelerate launch` with two CPU processes equals one process with the same global batch."""
    more = ["--validation_steps", "2", "--num_validation_pairs", "2", "--num_validation_frames", "3"]
    launch_two_processes("training/train.py", arguments(base, tmp_path / "two", "--train_batch_size", "1", *more))
    main(parse_args(arguments(base, tmp_path / "one", *more)))
    state = json.loads((tmp_path / "two" / "checkpoint-000004" / "state.json").read_text())
    assert state["world"]["num_processes"] == 2
    logs = [records(tmp_path / name) for name in ("one", "two")]
    figures = [[record for record in log if "validation/psnr" in record] for log in logs]
    assert [record["step"] for record in figures[1]] == [2, 4], "only the main process validates"
    for one, two in zip(*figures, strict=True):
        assert one == pytest.approx(two, rel=1e-2)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-3, atol=2e-4, msg=key)


@pytest.mark.slow
def test_two_processes_share_a_stream_in_half_precision(base, tmp_path):
    more = ["--streaming", "--mixed_precision", "bf16", "--train_batch_size", "1", "--max_train_steps", "2"]
    launch_two_processes("training/train.py", arguments(base, tmp_path, *more))
    assert len(losses(tmp_path)) == 2 and all(0 < loss < 10 for loss in losses(tmp_path))
    state = json.loads((tmp_path / "checkpoint-000002" / "state.json").read_text())
    assert state["world"]["num_processes"] == 2 and len(state["stream_positions"]) == 2
    before, after = weights(base), weights(tmp_path)
    assert {value.dtype for value in after.values()} == {torch.float32}
    changed = {key.partition(".")[0] for key in after if key not in before or not torch.equal(before[key], after[key])}
    assert changed == {"unet", "adapter"}, "bfloat16 does not change frozen weights"


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_launched_run_is_stopped_by_its_process_group_and_resumes(base, tmp_path, signum):
    """The signal goes to the process group, as with Ctrl-C; the launcher alone would leave its children running."""
    words = arguments(base, tmp_path / "run", "--train_batch_size", "1", "--resume_from_checkpoint", "latest")
    words += ["--max_train_steps", "200", "--checkpointing_steps", "1000"]
    launched = start_two_processes("training/train.py", words)
    log, deadline = tmp_path / "run" / "log.jsonl", time.monotonic() + 120
    while not (log.exists() and log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(launched.pid, signum)
    errors = launched.communicate(timeout=120)[1]
    assert launched.returncode != 0 and f"Stopped by {signum.name} after step" in errors, errors
    (checkpoint,) = list_checkpoints(tmp_path / "run")
    steps = checkpoint_step(checkpoint)
    assert 0 < steps < 200
    # One process with twice the batch size resumes the run of two processes.
    more = ["--train_batch_size", "2", "--max_train_steps", str(steps + 2), "--resume_from_checkpoint", "latest"]
    main(parse_args(arguments(base, tmp_path / "run", *more)))
    main(parse_args(arguments(base, tmp_path / "whole", *more)))
    assert losses(tmp_path / "run")[-2:] == pytest.approx(losses(tmp_path / "whole")[-2:], rel=1e-3)
