"""`finetune.py` on a tiny pipeline and two photos of a drawn figure."""

import json
import math
import signal
from contextlib import nullcontext

import huggingface_hub
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline_dreampose import DreamPosePipeline
from tests.conftest import reset_accelerate
from tests.densepose_exports import TupleExport
from tests.launch import launch_two_processes
from tests.tiny_components import get_dummy_inputs, get_dummy_pipeline, save_drawn_photos
from training.data.procedural_fashion import ProceduralFashionConfig
from training.engine import devices
from training.engine.checkpoints import find_latest_checkpoint
from training.engine.interruption import TrainingInterrupted
from training.finetune import main, parse_args
from training.models import base_pipeline
from training.subject import phases as subject


FILE = "pytorch_lora_weights.safetensors"
COMPONENTS = ("unet", "adapter", "vae", "image_encoder")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    get_dummy_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    save_drawn_photos(folder, 0, [0, 8])
    return folder


def arguments(base, photos, output_dir, *more):
    """Return a command line. The LoRA's and the decoder's options are left out where they have no effect."""
    skips_decoder = ("--decoder_max_train_steps", "0") in zip(more, more[1:])
    return [
        "--pretrained_model_name_or_path", str(base), "--instance_data_dir", str(photos), "--output_dir",
        str(output_dir), "--max_train_steps", "4", "--decoder_max_train_steps", "4", "--train_batch_size", "2",
        "--gradient_accumulation_steps", "1", "--num_cached_crops", "0",
        "--learning_rate", "1e-2", "--logging_steps", "1", "--checkpointing_steps", "2",
        "--sample_inference_steps", "0",
        *(() if skips_decoder else ("--decoder_learning_rate", "1e-2")), *(() if "full" in more else ("--rank", "2")),
        *more,
    ]  # fmt: skip


@pytest.fixture
def loaded(monkeypatch):
    """The pipelines that runs load."""
    pipelines, load = [], base_pipeline.load_subject_base
    monkeypatch.setattr(
        base_pipeline, "load_subject_base", lambda *names, **_: pipelines.append(load(*names)) or pipelines[-1]
    )
    return pipelines


def weights(pipeline):
    return {
        f"{name}.{key}": value for name in COMPONENTS for key, value in getattr(pipeline, name).state_dict().items()
    }


def parameters(pipeline):
    return {f"{name}.{key}": value for name in COMPONENTS for key, value in getattr(pipeline, name).named_parameters()}


def records(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses(folder):
    return [record["loss"] for record in records(folder)]


def metadata(folder):
    with safe_open(folder / FILE, "pt") as file:
        return json.loads(file.metadata()["lora_adapter_metadata"])


def load(base, **subject):
    pipeline = DreamPosePipeline.from_pretrained(base, **subject)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def render_latents(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(**get_dummy_inputs() | {"output_type": "latent"}).frames


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [[], ["--use_dora", "--lora_convolutions", "--lora_conv_in", "--channels_last"], ["--mixed_precision", "bf16"]],
    ids=["plain", "dora", "bf16"],
)
def test_only_the_lora_trains_and_its_file_reproduces_the_trained_model(
    base, photos, tmp_path, loaded, monkeypatch, flags
):
    latents = torch.randn(2, 4, 16, 12, generator=torch.Generator().manual_seed(0))
    trained, collect = {}, subject.collect_lora
    untrained = weights(load(base))

    def render_and_collect(parts):
        with torch.no_grad():
            if "unet" in parts:
                trained["latents"] = render_latents(loaded[0])
            else:
                trained["pixels"] = loaded[0].vae.decode(latents.to(loaded[0].vae.dtype)).sample
        dtype = torch.bfloat16 if "bf16" in flags else torch.float32
        for key, parameter in parameters(loaded[0]).items():
            assert parameter.requires_grad == (".lora_" in key), key
            if parameter.requires_grad:
                assert parameter.dtype == torch.float32 and key.split(".")[0] in parts, key
            else:  # bit for bit, during training
                assert parameter.dtype == dtype, key
                assert torch.equal(parameter, untrained[key.replace(".base_layer", "")].to(dtype)), key
        return collect(parts)

    monkeypatch.setattr(subject, "collect_lora", render_and_collect)
    main(parse_args(arguments(base, photos, tmp_path, *flags)))
    after = weights(loaded[0])
    assert untrained.keys() == after.keys() and all(torch.equal(untrained[key], after[key]) for key in untrained)
    layers = load_file(tmp_path / FILE)
    assert all(layer.abs().max() > 0 for layer in layers.values()), "every layer is trained"
    assert {key.split(".")[0] for key in layers} == {"unet", "adapter", "vae"}
    fresh = load(base)
    plain = render_latents(fresh)
    fresh.load_lora_weights(tmp_path)
    with torch.no_grad():
        pixels = fresh.vae.decode(latents).sample
    assert (render_latents(fresh) - plain).abs().max() > 1e-2
    if "bf16" not in flags:  # trained with rounded weights
        torch.testing.assert_close(render_latents(fresh), trained["latents"], atol=1e-5, rtol=0)
        torch.testing.assert_close(pixels, trained["pixels"], atol=1e-5, rtol=0)
    facts = {key.removeprefix("dreampose."): value for key, value in metadata(tmp_path).items() if "dreampose" in key}
    assert facts == {"rank": 2, "lora_alpha": 2, "num_photos": 2, "num_denoiser_steps": 4, "num_decoder_steps": 4}
    for phase in ("denoiser", "decoder"):
        assert len(losses(tmp_path / phase)) == 4 and all(0 < loss < 20 for loss in losses(tmp_path / phase))
    assert losses(tmp_path / "decoder")[-1] < losses(tmp_path / "decoder")[0]
    checkpoint = load_file(find_latest_checkpoint(tmp_path / "denoiser") / "model.safetensors")
    assert all(".lora_" in key for key in checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_full_training_changes_unet_adapter_and_decoder(base, photos, tmp_path, precision):
    main(parse_args(arguments(base, photos, tmp_path, "--train_mode", "full", "--mixed_precision", precision)))
    before, after = weights(load(base)), weights(load(tmp_path))
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {key for key in before if key.startswith(("unet.", "adapter.", "vae.decoder."))}
    assert not (tmp_path / FILE).exists()


@pytest.mark.slow
def test_a_run_stopped_in_either_phase_equals_an_undisturbed_one(base, photos, tmp_path, monkeypatch):
    """A resumed run encodes its crops again, unless the denoiser's training is finished."""
    crops, encoded = ["--num_cached_crops", "3"], []
    encode = subject.CachedSubjectPairs
    monkeypatch.setattr(subject, "CachedSubjectPairs", lambda *given: encoded.append(given) or encode(*given))
    main(parse_args(arguments(base, photos, tmp_path / "whole", *crops)))
    words = [*arguments(base, photos, tmp_path / "parts", *crops), "--resume_from_checkpoint", "latest"]
    seen = []

    def interrupted(phase, at):
        """Return a `train` whose loss function raises SIGTERM in one step."""

        def train(accelerator, module, loss_fn, samples, **keywords):
            def count(module, batch):
                seen.append(keywords["output_dir"].name)
                if seen.count(phase) == at and seen[-1] == phase:
                    signal.raise_signal(signal.SIGTERM)
                return loss_fn(module, batch)

            return original(accelerator, module, count, samples, **keywords)

        return train

    original = subject.train
    for phase, at in (("denoiser", 3), ("decoder", 1)):
        monkeypatch.setattr(subject, "train", interrupted(phase, at))
        with pytest.raises(TrainingInterrupted):
            main(parse_args(words))
        assert not (tmp_path / "parts" / FILE).exists()
    monkeypatch.setattr(subject, "train", interrupted("none", 1))
    main(parse_args(words))
    assert seen == ["denoiser"] * 4 + ["decoder"] * 4, "no step runs twice"
    assert len(encoded) == 3, "by the whole run, the first part and the second part"
    whole, parts = (load_file(tmp_path / name / FILE) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[key], parts[key]) for key in whole)
    assert metadata(tmp_path / "whole") == metadata(tmp_path / "parts")
    with pytest.raises(
        ValueError, match="`output_dir` must not hold a checkpoint that the run would overwrite, .* give `--resume"
    ):
        main(parse_args(arguments(base, photos, tmp_path / "parts", *crops)))


@pytest.mark.slow
def test_a_step_without_a_finite_loss_is_skipped_in_either_phase(base, photos, tmp_path, monkeypatch):
    original = subject.train

    def train(accelerator, module, loss_fn, samples, **keywords):
        calls = []

        def spoiled(module, batch):
            loss, logs = loss_fn(module, batch)
            calls.append(loss)
            return (loss * math.nan if len(calls) == 2 else loss), logs

        return original(accelerator, module, spoiled, samples, **keywords)

    monkeypatch.setattr(subject, "train", train)
    main(parse_args(arguments(base, photos, tmp_path, "--logging_steps", "1")))
    for phase in ("denoiser", "decoder"):
        assert [record["num_skipped_steps"] for record in records(tmp_path / phase)] == [0, 1, 1, 1]
    assert all(value.isfinite().all() for value in load_file(tmp_path / FILE).values())


@pytest.mark.slow
def test_either_phase_is_skipped_and_can_follow_later(base, photos, tmp_path):
    main(parse_args(arguments(base, photos, tmp_path / "both")))
    parts = {"denoiser": ("unet", "adapter"), "decoder": ("vae",)}
    both = load_file(tmp_path / "both" / FILE)
    for phase, skipped in (("denoiser", "--decoder_max_train_steps"), ("decoder", "--max_train_steps")):
        main(parse_args(arguments(base, photos, tmp_path / phase, skipped, "0")))
        alone = load_file(tmp_path / phase / FILE)
        assert alone.keys() == {key for key in both if key.startswith(parts[phase])}
        assert all(torch.equal(alone[key], both[key]) for key in alone)
        assert f"dreampose.num_{phase}_steps" in metadata(tmp_path / phase)
    main(parse_args(arguments(base, photos, tmp_path / "denoiser", "--resume_from_checkpoint", "latest")))
    later = load_file(tmp_path / "denoiser" / FILE)
    assert all(torch.equal(later[key], both[key]) for key in both)


@pytest.mark.slow
def test_a_prior_gradient_checkpointing_and_another_size(base, photos, tmp_path, loaded, monkeypatch):
    recomputed, checkpoint = [], torch.utils.checkpoint.checkpoint
    monkeypatch.setattr(
        "torch.utils.checkpoint.checkpoint",
        lambda *args, **kwargs: recomputed.append(1) or checkpoint(*args, **kwargs),
    )
    more = ["--prior_dataset", "procedural/smoke", "--prior_prob", "0.5", "--height", "80", "--width", "64"]
    more += ["--num_cached_crops", "2"]
    main(parse_args(arguments(base, photos, tmp_path / "plain", *more, "--no_gradient_checkpointing")))
    assert (loaded[0].config.default_height, loaded[0].config.default_width) == (80, 64) and not recomputed
    main(parse_args(arguments(base, photos, tmp_path / "other", *more)))
    assert recomputed, "the default"
    for phase in ("denoiser", "decoder"):
        assert losses(tmp_path / "plain" / phase) == pytest.approx(losses(tmp_path / "other" / phase), rel=1e-5)
    main(parse_args(arguments(base, photos, tmp_path / "alone", *more[4:])))
    assert losses(tmp_path / "alone" / "denoiser") != losses(tmp_path / "plain" / "denoiser")
    textured = ["--num_textured_clips", "1"]
    main(parse_args(arguments(base, photos, tmp_path / "textured", *more, *textured)))
    assert losses(tmp_path / "textured" / "denoiser") != losses(tmp_path / "plain" / "denoiser")
    assert losses(tmp_path / "textured" / "decoder") == pytest.approx(losses(tmp_path / "plain" / "decoder"), rel=1e-5)


@pytest.mark.slow
def test_two_processes_train_as_one(base, photos, tmp_path):
    """`accelerate launch` with two CPU processes equals one process with the same global batch."""
    crops = ["--num_cached_crops", "3"]
    words = arguments(base, photos, tmp_path / "two", "--train_batch_size", "1", *crops)
    launch_two_processes("training/finetune.py", words)
    reset_accelerate()
    main(parse_args(arguments(base, photos, tmp_path / "one", *crops)))
    for phase in ("denoiser", "decoder"):
        state = json.loads((tmp_path / "two" / phase / "checkpoint-000004" / "state.json").read_text())
        assert state["world"]["num_processes"] == 2
    one, two = (load_file(tmp_path / name / FILE) for name in ("one", "two"))
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-3, atol=2e-4, msg=key)


@pytest.mark.slow
def test_two_subjects_on_one_base_are_switched(base, photos, tmp_path):
    """One of them has no LoRA of the decoder; the other's must not stay active."""
    short = ["--max_train_steps", "2", "--decoder_max_train_steps"]
    main(parse_args(arguments(base, photos, tmp_path / "anna", *short, "2")))
    main(parse_args(arguments(base, photos, tmp_path / "bert", *short, "0", "--seed", "1", "--rank", "3")))
    alone = {}
    for name in ("anna", "bert"):
        pipeline = load(base)
        pipeline.load_lora_weights(tmp_path / name, adapter_name=name)
        alone[name] = pipeline(**get_dummy_inputs()).frames
    assert (alone["anna"] - alone["bert"]).abs().max() > 1e-2
    both = load(base)
    plain = both(**get_dummy_inputs()).frames
    for name in ("anna", "bert"):
        both.load_lora_weights(tmp_path / name, adapter_name=name)
    for name in ("anna", "bert", "anna"):
        both.set_adapters(name)
        assert torch.equal(both(**get_dummy_inputs()).frames, alone[name]), name
    both.unload_lora_weights()
    assert torch.equal(both(**get_dummy_inputs()).frames, plain)


@pytest.mark.slow
def test_densepose_makes_the_poses_and_trackers_separate_the_phases(base, tmp_path):
    """In TensorBoard's files, the two phases have different names and steps."""
    for number, frame in enumerate(ProceduralFashionConfig(height=80, width=64).clip("test", 0, 0, [0, 8])):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(frame.iuv).save(tmp_path / "photos" / f"view_{number}.png")  # the fake DensePose returns it
    torch.jit.script(TupleExport()).save(tmp_path / "model.pt")
    more = ["--densepose", str(tmp_path / "model.pt"), "--report_to", "tensorboard"]
    more += ["--max_train_steps", "2", "--decoder_max_train_steps", "2"]
    main(parse_args(arguments(base, tmp_path / "photos", tmp_path / "out", *more)))
    assert len(list((tmp_path / "photos").glob("*_iuv.png"))) == 2 and (tmp_path / "out" / FILE).exists()
    events = EventAccumulator(str(tmp_path / "out" / "logs" / "dreampose")).Reload()
    for phase, prefix, steps in (("denoiser", "", [1, 2]), ("decoder", "decoder/", [3, 4])):
        scalars = events.Scalars(f"{prefix}loss")
        assert [scalar.step for scalar in scalars] == steps
        assert [scalar.value for scalar in scalars] == pytest.approx(losses(tmp_path / "out" / phase))
    names = {name for name in events.Tags()["scalars"] if not name.startswith("decoder/")}
    assert {scalar.step for name in names for scalar in events.Scalars(name)} == {1, 2}
    assert "decoder/psnr" in events.Tags()["scalars"] and "psnr" not in names


@pytest.mark.slow
def test_a_quantized_base_stays_as_loaded(base, photos, tmp_path, monkeypatch):
    """Uses a bfloat16 UNet that is marked as quantized, because real 4-bit weights need a GPU."""
    asked, placed, pipelines, load_base = [], [], [], base_pipeline.load_subject_base

    def load_marked(*names, **loading):
        asked.append(loading)
        pipelines.append(load_base(*names, **loading))
        pipelines[0].unet.is_quantized = True
        return pipelines[0]

    arguments_of = {"dtype": {"unet": torch.bfloat16, "default": torch.float32}}
    monkeypatch.setattr("training.engine.session.check_bitsandbytes", lambda *_: None)
    four_bit = {torch.bfloat16: arguments_of}
    monkeypatch.setattr(base_pipeline, "four_bit_arguments", four_bit.get)
    monkeypatch.setattr(base_pipeline, "load_subject_base", load_marked)
    monkeypatch.setattr(subject, "held_on_cpu", lambda modules: nullcontext(placed.append(modules)))
    more = ["--quantize_base", "--mixed_precision", "bf16", "--num_cached_crops", "2"]
    more += ["--max_train_steps", "1", "--decoder_max_train_steps", "1"]
    main(parse_args(arguments(base, photos, tmp_path, *more)))
    (pipeline,) = pipelines
    assert asked == [arguments_of]
    unet, adapter, vae, image_encoder = (getattr(pipeline, name) for name in COMPONENTS)
    assert placed == [[vae, image_encoder], [unet, adapter, image_encoder]]
    expected = load(base, dtype=arguments_of["dtype"])
    assert all(torch.equal(value, weights(pipeline)[key]) for key, value in weights(expected).items())
    assert pipeline.unet.dtype == torch.bfloat16
    fresh = load(base)
    fresh.load_lora_weights(tmp_path)
    assert fresh.get_list_adapters().keys() == {"unet", "adapter", "vae"}


@pytest.mark.slow
def test_pushed_files(base, photos, tmp_path, monkeypatch):
    pushed = {}
    monkeypatch.setattr("training.hub.repositories.try_make_repo", lambda name, private: f"you/{name}")
    monkeypatch.setattr(
        "training.hub.repositories.try_push", lambda folder, name, **how: pushed.update(how, name=name)
    )
    more = ["--push_to_hub", "--hub_model_id", "anna", "--decoder_max_train_steps", "0", "--max_train_steps", "1"]
    main(parse_args(arguments(base, photos, tmp_path / "lora", *more)))
    assert (pushed["name"], pushed["private"]) == ("you/anna", True)
    assert pushed["allow_patterns"] == ["README.md", FILE]
    main(parse_args(arguments(base, photos, tmp_path / "full", *more, "--train_mode", "full")))
    assert pushed["allow_patterns"] is None
    text = (tmp_path / "full" / "README.md").read_text()
    assert "It is a model of stage 2" in text and "for 1 step of UNet and adapter, of 2 samples each." in text


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--instance_data_dir", "no/such"], "`instance_data_dir` must be a folder of photos, got 'no/such'"),
        (["--pretrained_model_name_or_path", "none"], "`pretrained_model_name_or_path` is missing: give the folder"),
        (["--pretrained_model_name_or_path", "no/such"], "`pretrained_model_name_or_path` must be a pipeline's fol"),
        (["--max_train_steps", "0", "--decoder_max_train_steps", "0"], "must not both be 0"),
        (["--hub_sample"], "`hub_sample` must go with `sample_inference_steps` above 0, got True with 0"),
        (["--sample_inference_steps", "-1"], "`sample_inference_steps` must be a finite number, at least 0, got -1"),
        (["--mixed_precision", "fp16"], "`mixed_precision` must be no or bf16 on a CPU, .*, got fp16"),
        (["--height", "36"], "`height` must be a positive multiple of 8, got 36"),
        (["--rank", "0"], "`rank` must be at least 1, got 0"),
        (["--prior_prob", "1"], r"`prior_prob` must be within \[0, 1\), got 1"),
        (["--prior_dataset", "procedural/huge"], "^`prior_dataset` must be one of"),
        (["--quantize_base"], "`quantize_base` must go with CUDA and bitsandbytes"),
    ],
)
def test_bad_options_end_in_one_clear_error(base, photos, tmp_path, flags, message, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(devices, "is_bnb_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        main(parse_args(arguments(base, photos, tmp_path, *flags)))


def test_neither_base_nor_photos_are_overwritten(base, photos, tmp_path):
    for folder in (base, photos):
        before = sorted(path.name for path in folder.iterdir())
        with pytest.raises(ValueError, match="`output_dir` must spare what is read, but .* writes over"):
            main(parse_args(arguments(base, photos, tmp_path, "--output_dir", str(folder))))
        assert sorted(path.name for path in folder.iterdir()) == before


def test_stable_diffusion_is_sent_to_stage_one(photos, tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(ValueError, match="must be a DreamPose pipeline, such as train.py writes, got .*StableDiff"):
        main(parse_args(arguments(tmp_path, photos, tmp_path / "out")))
