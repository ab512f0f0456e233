"""`export_tiny.py`: float16 weights, stored defaults, no path of the run, and a sample of the test split."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pipeline_dreampose import DreamPosePipeline
from tests.tiny_components import (
    HEIGHT,
    WIDTH,
    get_dummy_components,
    get_dummy_image,
    get_dummy_iuv,
    get_dummy_pipeline,
    save_subject,
)
from training.data.procedural_fashion import ProceduralFashionConfig
from training.engine.run_log import append_log
from training.export_tiny import main, parse_args
from training.media.charts import line_chart
from training.models import small_model_files
from training.models.distillation import few_step_settings
from training.models.doubled_autoencoder import double_vae
from training.models.small_model import build_vae


LORA = "pytorch_lora_weights.safetensors"


def assert_half_precision(folder):
    files = list(folder.rglob("*.safetensors"))
    assert {file.parent.name for file in files} == {"adapter", "image_encoder", "unet", "vae"}
    for file in files:
        assert all(tensor.dtype == torch.float16 for tensor in load_file(file).values()), file


def test_export(tmp_path):
    size = {"default_height": HEIGHT, "default_width": WIDTH}
    DreamPosePipeline(**get_dummy_components(), **size).save_pretrained(tmp_path / "run")
    folders = ["--model_dir", str(tmp_path / "tiny"), "--sample_dir", str(tmp_path / "sample")]
    flags = ["--pipeline", str(tmp_path / "run"), "--pose_guidance_scale", "1.75", "--subject", "2", "--motion", "5"]
    main(parse_args([*folders, *flags, "--num_frames", "7"]))
    assert_half_precision(tmp_path / "tiny")
    for file in (tmp_path / "tiny").rglob("*.json"):
        assert "_name_or_path" not in json.loads(file.read_text()), file
    pipeline = DreamPosePipeline.from_pretrained(tmp_path / "tiny")
    models = (pipeline.unet, pipeline.vae, pipeline.adapter, pipeline.image_encoder)
    assert all(model.dtype == torch.float32 for model in models)
    assert pipeline.config.default_pose_guidance_scale == 1.75
    assert pipeline.config.default_image_guidance_scale == 8.0, "an option that is not given changes nothing"

    config = ProceduralFashionConfig(name="sample", num_frames=7, height=HEIGHT, width=WIDTH)  # of the model's frames
    files = sorted((tmp_path / "sample" / "poses").iterdir())
    assert [file.name for file in files] == [f"{index:04d}.png" for index in range(7)]
    photo, pose = np.asarray(Image.open(tmp_path / "sample" / "photo.png")), np.asarray(Image.open(files[6]))
    assert np.array_equal(photo, config.clip("test", 2, 2, [0])[0].image)
    iuv = np.asarray(Image.open(tmp_path / "sample" / "photo_iuv.png"))
    assert np.array_equal(iuv, config.clip("test", 2, 2, [0])[0].iuv), "for stage 2"
    assert np.array_equal(pose, config.clip("test", 2, 5, [6])[0].iuv), "another subject's motion on this body"


def test_a_doubled_vae_doubles_the_frames_of_the_same_latents(tmp_path):
    pipeline = get_dummy_pipeline()
    pipeline.save_pretrained(tmp_path / "run")
    double_vae(pipeline.vae).save_pretrained(tmp_path / "vae")
    (tmp_path / "vae" / "options.yaml").write_text("component: doubled_vae\n")
    append_log(tmp_path / "vae", 5, {"loss": 1.0})
    folders = ["--model_dir", str(tmp_path / "tiny"), "--sample_dir", str(tmp_path / "sample")]
    main(parse_args([*folders, "--pipeline", str(tmp_path / "run"), "--vae", str(tmp_path / "vae")]))
    assert_half_precision(tmp_path / "tiny")
    doubled = DreamPosePipeline.from_pretrained(tmp_path / "tiny")
    assert (doubled.config.default_height, doubled.config.default_width) == (2 * HEIGHT, 2 * WIDTH)
    assert Image.open(tmp_path / "sample" / "photo.png").size == (2 * WIDTH, 2 * HEIGHT)
    assert (tmp_path / "tiny" / "training" / "doubled_vae.yaml").read_text() == "component: doubled_vae\n"
    (frame,) = doubled(get_dummy_image(), [get_dummy_iuv(0)]).frames[0]
    assert frame.size == (2 * WIDTH, 2 * HEIGHT)
    build_vae(3, (8, 16), 32).save_pretrained(tmp_path / "vae")
    with pytest.raises(ValueError, match="`vae` must have the 4 latent channels of the pipeline's, got 3"):
        main(parse_args([*folders, "--pipeline", str(tmp_path / "run"), "--vae", str(tmp_path / "vae")]))


def test_the_default_sample_turns_around_in_a_skirt_or_dress():
    options = parse_args([])
    config = ProceduralFashionConfig(name="sample", num_frames=options.num_frames)
    motion = config.motion("test", options.motion)
    assert np.ptp(motion.yaw) > np.pi and options.subject != options.motion
    assert config.subject("test", options.subject).bottom in ("skirt", "dress")


def test_settings_and_logs_are_kept_and_curves_are_drawn(tmp_path, monkeypatch):
    runs = tmp_path / "runs"
    for number, name in enumerate(small_model_files.RUNS):
        (runs / name).mkdir(parents=True)
        (runs / name / "options.yaml").write_text(f"output_dir: runs/{name}\n")
        append_log(runs / name, 5, {"loss": 1.0 + number})
        append_log(runs / name, 10, {"loss": 0.5, "validation/psnr": 20.0 + number, "validation/ssim": 0.9})
    drawn = []
    monkeypatch.setattr(small_model_files, "line_chart", lambda *given: drawn.append(given[0]) or line_chart(*given))
    main(parse_args(["--runs", str(runs), "--model_dir", str(tmp_path / "tiny"), "--sample_dir", str(tmp_path)]))
    kept = tmp_path / "tiny" / "training"
    assert (kept / "vae.yaml").read_text() == "output_dir: runs/vae\n"
    assert (kept / "stage1.jsonl").read_text() == (runs / "stage1" / "log.jsonl").read_text()
    loss, psnr = drawn[0]["stage 1"], drawn[1]["stage 1"]
    assert loss == [(5, 3.0), (10, 0.5)] and psnr == [(10, 22.0)]
    assert Image.open(kept / "curves.png").width > 3 * 500


@pytest.fixture
def few_step_run(tmp_path):
    """The folder of a run that has written a few-step LoRA."""
    settings = few_step_settings(get_dummy_pipeline(), 20, 1)
    run = save_subject(tmp_path / "run", 0, ("unet", "adapter"), few_steps=json.dumps(settings))
    (run / "options.yaml").write_text("rank: 2\n")
    append_log(run, 5, {"loss": 1.0})
    return run


def test_a_few_step_lora_is_kept_in_half_precision_and_loads(tmp_path, few_step_run):
    pipeline, run = get_dummy_pipeline(), few_step_run
    main(parse_args(["--few_steps", str(run), "--model_dir", str(tmp_path / "tiny"), "--sample_dir", str(tmp_path)]))
    files = {path.relative_to(tmp_path / "tiny").as_posix() for path in (tmp_path / "tiny").rglob("*.*")}
    assert files == {"fast/pytorch_lora_weights.safetensors", "training/few_steps.yaml", "training/few_steps.jsonl"}
    before, after = (load_file(folder / LORA) for folder in (run, tmp_path / "tiny" / "fast"))
    assert before.keys() == after.keys()
    for name, weight in after.items():
        assert weight.dtype == torch.float16
        torch.testing.assert_close(weight.float(), before[name], atol=1e-3, rtol=1e-3)
    pipeline.load_lora_weights(tmp_path / "tiny", subfolder="fast", adapter_name="fast")
    pipeline.use_few_steps("fast")
    assert pipeline.config.default_num_inference_steps == 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / LORA).unlink(), f"be the folder of a finished run, got '.*run' without {LORA}"),
        (lambda run: (run / "options.yaml").unlink(), "be the folder of a finished run, .* without options.yaml"),
        (lambda run: (run / "log.jsonl").unlink(), "be the folder of a finished run, got '.*run' without log.jsonl"),
        (lambda run: (run / LORA).write_bytes(b"no safetensors"), "be safetensors, .*, got '.*run/pytorch_lora"),
        (lambda run: save_subject(run, 0), "be the folder of a few-step LoRA, got '.*run', whose LoRA has no"),
    ],
)
def test_a_run_without_a_few_step_lora_is_refused_before_anything_is_written(tmp_path, few_step_run, spoil, message):
    get_dummy_pipeline().save_pretrained(tmp_path / "model")
    spoil(few_step_run)
    folders = ["--model_dir", str(tmp_path / "tiny"), "--sample_dir", str(tmp_path / "sample")]
    with pytest.raises(ValueError, match=f"`few_steps` must {message}"):
        main(parse_args([*folders, "--pipeline", str(tmp_path / "model"), "--few_steps", str(few_step_run)]))
    assert not (tmp_path / "tiny").exists() and not (tmp_path / "sample").exists()
    with pytest.raises(ValueError, match=f"`few_steps` must {message}"):
        small_model_files.save_small_lora(few_step_run, tmp_path / "fast")


def test_training_runs_without_a_log_are_refused_before_anything_is_written(tmp_path):
    folders = ["--model_dir", str(tmp_path / "tiny"), "--sample_dir", str(tmp_path / "sample")]
    with pytest.raises(ValueError, match="`runs` must be the folder of a finished run, got '.*vae' without options"):
        main(parse_args([*folders, "--runs", str(tmp_path)]))
    assert list(tmp_path.iterdir()) == []
