"""Stage 2 through its entry point, on a tiny pipeline and the photos of a drawn figure."""

import json
import signal

import huggingface_hub
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from pipeline_dreampose import DreamPosePipeline
from tests.conftest import reset_accelerate
from tests.launch import launch_two_processes
from tests.tiny_components import get_dummy_inputs, get_dummy_pipeline, save_photo
from training import finetune, subject
from training.checkpoints import find_latest_checkpoint
from training.data.procedural_fashion import ProceduralFashionConfig
from training.finetune import main, parse_args
from training.interruption import TrainingInterrupted
from training.subject import resume_points


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
    for number, frame in enumerate(ProceduralFashionConfig().clip("test", 0, 0, [0, 8])):
        save_photo(folder, f"view_{number}", Image.fromarray(frame.image), Image.fromarray(frame.iuv))
    return folder


def arguments(base, photos, output_dir, *more):
    return [
        "--pretrained_model_name_or_path", str(base), "--instance_data_dir", str(photos), "--output_dir",
        str(output_dir), "--max_train_steps", "4", "--decoder_max_train_steps", "4", "--train_batch_size", "2",
        "--learning_rate", "1e-2", "--decoder_learning_rate", "1e-2", "--rank", "2", "--logging_steps", "1",
        "--checkpointing_steps", "2", "--sample_inference_steps", "0", *more,
    ]  # fmt: skip


@pytest.fixture
def loaded(monkeypatch):
    """The pipelines that runs have loaded."""
    pipelines, load = [], finetune.load_subject_base
    monkeypatch.setattr(finetune, "load_subject_base", lambda *names: pipelines.append(load(*names)) or pipelines[-1])
    return pipelines


def weights(pipeline):
    return {
        f"{name}.{key}": value for name in COMPONENTS for key, value in getattr(pipeline, name).state_dict().items()
    }


def losses(folder):
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records]


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
def test_trains_nothing_but_a_lora_whose_file_gives_what_was_trained(
    base, photos, tmp_path, loaded, monkeypatch, flags
):
    latents = torch.randn(2, 4, 16, 12, generator=torch.Generator().manual_seed(0))
    trained, collect = {}, subject.collect_lora

    def render_and_collect(parts):
        with torch.no_grad():
            if "unet" in parts:
                trained["latents"] = render_latents(loaded[0])
            else:
                trained["pixels"] = loaded[0].vae.decode(latents.to(loaded[0].vae.dtype)).sample
        dtype = torch.bfloat16 if "bf16" in flags else torch.float32
        for name, part in parts.items():
            for key, parameter in part.named_parameters():
                assert parameter.requires_grad == (".lora_" in key), f"{name}.{key}"
                assert parameter.dtype == (torch.float32 if parameter.requires_grad else dtype), f"{name}.{key}"
        return collect(parts)

    monkeypatch.setattr(subject, "collect_lora", render_and_collect)
    main(parse_args(arguments(base, photos, tmp_path, *flags)))
    before, after = weights(load(base)), weights(loaded[0])
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    layers = load_file(tmp_path / FILE)
    assert all(layer.abs().max() > 0 for layer in layers.values()), "every layer has been trained"
    assert {key.split(".")[0] for key in layers} == {"unet", "adapter", "vae"}
    anew = load(base)
    plain = render_latents(anew)
    anew.load_lora_weights(tmp_path)
    with torch.no_grad():
        pixels = anew.vae.decode(latents).sample
    assert (render_latents(anew) - plain).abs().max() > 1e-2
    if "bf16" not in flags:  # whose training saw rounded weights
        torch.testing.assert_close(render_latents(anew), trained["latents"], atol=1e-5, rtol=0)
        torch.testing.assert_close(pixels, trained["pixels"], atol=1e-5, rtol=0)
    facts = {key.removeprefix("dreampose."): value for key, value in metadata(tmp_path).items() if "dreampose" in key}
    assert facts == {
        "rank": 2, "lora_alpha": 2, "num_photos": 2, "num_denoiser_steps": 4, "num_decoder_steps": 4
    }  # fmt: skip
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
    main(parse_args(arguments(base, photos, tmp_path / "whole")))
    words = [*arguments(base, photos, tmp_path / "parts"), "--resume_from_checkpoint", "latest"]
    seen = []

    def interrupted(phase, at):
        """A training whose loss function raises SIGTERM in one of its steps."""

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
    assert seen == ["denoiser"] * 4 + ["decoder"] * 4, "no step was made twice"
    whole, parts = (load_file(tmp_path / name / FILE) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[key], parts[key]) for key in whole)
    assert metadata(tmp_path / "whole") == metadata(tmp_path / "parts")
    with pytest.raises(ValueError, match="`output_dir` must hold no checkpoint beyond the starting step"):
        main(parse_args(arguments(base, photos, tmp_path / "parts")))


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
    later = arguments(base, photos, tmp_path / "denoiser", "--resume_from_checkpoint", "latest")
    main(parse_args(later))
    later = load_file(tmp_path / "denoiser" / FILE)
    assert all(torch.equal(later[key], both[key]) for key in both)


@pytest.mark.slow
def test_a_prior_gradient_checkpointing_and_another_size(base, photos, tmp_path, loaded):
    more = ["--prior_dataset", "procedural/smoke", "--prior_prob", "0.5", "--height", "80", "--width", "64"]
    main(parse_args(arguments(base, photos, tmp_path / "plain", *more)))
    assert (loaded[0].config.default_height, loaded[0].config.default_width) == (80, 64)
    main(parse_args(arguments(base, photos, tmp_path / "other", *more, "--gradient_checkpointing")))
    for phase in ("denoiser", "decoder"):
        assert losses(tmp_path / "plain" / phase) == pytest.approx(losses(tmp_path / "other" / phase), rel=1e-5)
    main(parse_args(arguments(base, photos, tmp_path / "alone", *more[4:])))
    assert losses(tmp_path / "alone" / "denoiser") != losses(tmp_path / "plain" / "denoiser")


@pytest.mark.slow
def test_two_processes_train_as_one(base, photos, tmp_path):
    """`accelerate launch` with two real CPU processes, gradients through UNet, adapter and decoder."""
    launch_two_processes("training/finetune.py", arguments(base, photos, tmp_path / "two", "--train_batch_size", "1"))
    reset_accelerate()
    main(parse_args(arguments(base, photos, tmp_path / "one")))
    for phase in ("denoiser", "decoder"):
        state = json.loads((tmp_path / "two" / phase / "checkpoint-000004" / "state.json").read_text())
        assert state["world"]["num_processes"] == 2
    one, two = (load_file(tmp_path / name / FILE) for name in ("one", "two"))
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-3, atol=2e-4, msg=key)


@pytest.mark.slow
def test_what_is_pushed(base, photos, tmp_path, monkeypatch):
    pushed = {}
    monkeypatch.setattr(finetune, "try_make_repo", lambda name, private: f"you/{name}")
    monkeypatch.setattr(finetune, "try_push", lambda folder, name, **how: pushed.update(how, name=name))
    more = ["--push_to_hub", "--hub_model_id", "anna", "--decoder_max_train_steps", "0", "--max_train_steps", "1"]
    main(parse_args(arguments(base, photos, tmp_path / "lora", *more)))
    assert (pushed["name"], pushed["private"]) == ("you/anna", True)
    assert pushed["allow_patterns"] == ["README.md", FILE]
    main(parse_args(arguments(base, photos, tmp_path / "full", *more, "--train_mode", "full")))
    assert pushed["allow_patterns"] is None
    text = (tmp_path / "full" / "README.md").read_text()
    assert "It is a model of stage 2" in text and "for 1 step of UNet and adapter, of 2 samples each." in text


def test_where_a_run_goes_on(tmp_path):
    checkpoints = {phase: tmp_path / phase / "checkpoint-000002" for phase in ("denoiser", "decoder")}
    assert resume_points(tmp_path, None) == {"denoiser": None, "decoder": None}
    assert resume_points(tmp_path, "latest", ["decoder"]) == {"decoder": "latest"}
    for path in checkpoints.values():
        path.mkdir(parents=True)
        (path / "state.json").write_text(json.dumps({"global_step": 2, "files": {}}))
    assert resume_points(tmp_path, checkpoints["decoder"]) == {
        "denoiser": "latest",
        "decoder": checkpoints["decoder"],
    }
    with pytest.raises(ValueError, match="`output_dir` must hold no checkpoint beyond .*decoder/checkpoint-000002"):
        resume_points(tmp_path, checkpoints["denoiser"])
    assert resume_points(tmp_path, checkpoints["denoiser"], ["denoiser"]) == {"denoiser": checkpoints["denoiser"]}
    with pytest.raises(ValueError, match="`resume_from_checkpoint` must be 'latest' or a checkpoint in a folder"):
        resume_points(tmp_path, tmp_path / "checkpoint-000002")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--instance_data_dir", "no/such"], "`instance_data_dir` must be a folder of photos, got 'no/such'"),
        (["--pretrained_model_name_or_path", "none"], "`pretrained_model_name_or_path` must be .*, got None"),
        (
            ["--pretrained_model_name_or_path", "no/such"],
            "`pretrained_model_name_or_path` must be a pipeline's folder",
        ),
        (["--max_train_steps", "0", "--decoder_max_train_steps", "0"], "must not both be 0"),
        (["--validation_steps", "2"], "`validation_steps` must be none for a subject, got 2"),
        (["--hub_sample", "--train_mode", "full", "--sample_inference_steps", "1"], "`hub_sample` must .*full"),
        (["--hub_sample"], "`hub_sample` must go with `sample_inference_steps` above 0, got True with 0"),
        (["--sample_inference_steps", "-1"], "`sample_inference_steps` must be at least 0, got -1"),
        (["--height", "36"], "`height` must be a positive multiple of 8, got 36"),
        (["--rank", "0"], "`rank` must be at least 1, got 0"),
        (["--prior_prob", "1"], r"`prior_prob` must be within \[0, 1\), got 1"),
        (["--prior_dataset", "procedural/huge"], "The data set must be one of"),
    ],
)
def test_bad_options_end_in_one_clear_error(base, photos, tmp_path, flags, message, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=message):
        main(parse_args(arguments(base, photos, tmp_path, *flags)))


def test_stable_diffusion_is_sent_to_stage_one(photos, tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(
        ValueError, match="must be a DreamPose pipeline, such as stage 1 writes, got .*StableDiffusion"
    ):
        main(parse_args(arguments(tmp_path, photos, tmp_path / "out")))
