"""Conversion of the authors' checkpoints to a pipeline that samples like the release, and of a subject's to a LoRA."""

import copy
import json
import math
import os
import struct
import zipfile

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline
from huggingface_hub import ModelCard
from PIL import Image
from safetensors import safe_open
from torch import nn
from transformers import CLIPImageProcessor

from pipeline_dreampose import DreamPosePipeline
from tests.tiny_components import (
    IMAGE_EMBED_DIM,
    IMAGE_SIZE,
    NUM_IMAGE_TOKENS,
    get_dummy_components,
    get_dummy_image,
    get_unet,
)
from training import convert_original_checkpoint
from training.models import conversion
from training.models.conversion import convert_checkpoints, find_pose_radius, read_checkpoint


HEIGHT, WIDTH = 48, 32  # CLIP's processor resizes it to 24 x 16 and crops the rows from 4 to 20
ADAPTER_NAMES = {"vae2clip": "vae_projection", "linear1": "token_mixer"}
OLD_NAMES = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
FILE = "pytorch_lora_weights.safetensors"


class ReleaseAdapter(nn.Module):
    """The release's adapter: 2x2 max-pooling, a projection of each channel, a mixture of tokens."""

    def __init__(self):
        super().__init__()
        self.vae2clip = nn.Linear(HEIGHT // 4 * WIDTH // 4, IMAGE_EMBED_DIM)
        self.linear1 = nn.Linear(NUM_IMAGE_TOKENS + 4, NUM_IMAGE_TOKENS)

    def forward(self, clip, vae):
        tokens = torch.cat([clip, self.vae2clip(F.max_pool2d(vae, 2).flatten(2))], dim=1)
        return self.linear1(tokens.mT).mT


def build_vae(seed):
    """Build a VAE with attention in the middle block, like Stable Diffusion's."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=(4, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=2,
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A folder with a Stable Diffusion pipeline, `sd`, and a CLIP vision model, `clip`."""
    folder, parts = tmp_path_factory.mktemp("bases"), get_dummy_components()
    StableDiffusionPipeline(
        vae=build_vae(0), text_encoder=None, tokenizer=None, unet=get_unet(4), safety_checker=None,
        scheduler=PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True,
            set_alpha_to_one=False, steps_offset=1,
        ),
        feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder / "sd")  # fmt: skip
    parts["image_encoder"].save_pretrained(folder / "clip")
    return folder


@pytest.fixture(scope="module")
def release():
    """Models with the release's layout."""
    torch.manual_seed(3)
    return {"unet": get_unet(14).eval(), "adapter": ReleaseAdapter().eval(), "vae": build_vae(4)}


def save_release(folder, models, prefix="module.", attention_is_convolution=True):
    """Write checkpoints like the release and return the options that name them."""
    folder.mkdir(parents=True, exist_ok=True)
    words = []
    for part, model in models.items():
        weights = {}
        for name, tensor in model.state_dict().items():
            if part == "vae" and ".attentions." in name:
                for new, old in OLD_NAMES.items():
                    name = name.replace(new, old)
                if attention_is_convolution and tensor.ndim == 2:
                    tensor = tensor[:, :, None, None]
            weights[prefix + name] = tensor
        torch.save(weights, folder / f"{part}.pth")
        words += [f"--{part}", folder / f"{part}.pth"]
    return words


def run(*words):
    convert_original_checkpoint.main(convert_original_checkpoint.parse_args([str(word) for word in words]))


def convert(bases, output_dir, *words):
    models = ("--base", bases / "sd", "--image_encoder_name_or_path", bases / "clip")
    run(*models, "--height", HEIGHT, "--width", WIDTH, "--output_dir", output_dir, *words)
    return load(output_dir)


def extract(words, base, output_dir, *more):
    run(*words, "--subject_of", base, "--output_dir", output_dir, *more)


def load(folder):
    pipe = DreamPosePipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def converted(bases, release, tmp_path_factory):
    """The folder of a pipeline converted with the default value ranges."""
    folder = tmp_path_factory.mktemp("converted")
    convert(bases, folder / "pipeline", *save_release(folder / "checkpoints", release))
    return folder / "pipeline"


# To a pipeline


@torch.no_grad()
def release_frames(models, image_encoder, photo, pose_maps, start, image_range, pose_range, s_i, s_p, num_steps):
    """Sample frame by frame like the release, without the pipeline's code; return the denoised latents."""
    vae, scheduler = models["vae"], build_ddim()
    scheduler.set_timesteps(num_steps)
    processor = CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=IMAGE_SIZE)

    def encode(picture):
        pixels = torch.tensor(list(picture.tobytes())).reshape(1, HEIGHT, WIDTH, 3).permute(0, 3, 1, 2) / 255
        pixels = image_range[0] + (image_range[1] - image_range[0]) * pixels
        clip = image_encoder(**processor(images=picture, return_tensors="pt")).last_hidden_state
        return models["adapter"](clip, vae.encode(pixels).latent_dist.mean * 0.18215)

    states = torch.cat([encode(Image.new("RGB", photo.size)), encode(photo), encode(photo)])
    frames = []
    for index in range(len(pose_maps)):
        window = [pose_maps[min(max(i, 0), len(pose_maps) - 1)] for i in range(index - 2, index + 3)]
        window = pose_range[0] + (pose_range[1] - pose_range[0]) * torch.cat(window)[None]
        window = F.interpolate(window, start.shape[-2:])
        poses, latents = torch.cat([torch.zeros_like(window), window, torch.zeros_like(window)]), start
        for t in scheduler.timesteps:
            batch = torch.cat([torch.cat([latents] * 3), poses], dim=1)
            neither, both, photo_only = models["unet"](batch, t, states).sample.chunk(3)
            noise = neither + s_i * (photo_only - neither) + s_p * (both - photo_only)
            latents = scheduler.step(noise, t, latents).prev_sample
        frames.append(latents)
    return torch.cat(frames)


def build_ddim():
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("image_range", ["minus_one_one", "zero_one"])
@pytest.mark.parametrize("pose_range", ["minus_one_one", "zero_one"])
def test_a_converted_pipeline_denoises_like_the_release(bases, release, tmp_path, image_range, pose_range):
    words = save_release(tmp_path / "checkpoints", release)
    ranges = ("--image_range", image_range, "--pose_range", pose_range)
    pipe = convert(bases, tmp_path / "pipeline", *words, *ranges)
    pipe.scheduler = build_ddim()
    torch.manual_seed(0)
    photo, start = get_dummy_image(0, HEIGHT, WIDTH), torch.randn(1, 4, HEIGHT // 2, WIDTH // 2)
    pose_maps = torch.rand(5, 2, HEIGHT, WIDTH)
    how = {"num_inference_steps": 4, "output_type": "latent", "latents": start}
    ours = pipe(photo, pose_maps, image_guidance_scale=3.0, pose_guidance_scale=2.0, **how).frames[0]
    values = {"minus_one_one": (-1.0, 1.0), "zero_one": (0.0, 1.0)}
    sampling = (photo, pose_maps, start, values[image_range], values[pose_range], 3.0, 2.0, 4)
    theirs = release_frames(release, pipe.image_encoder, *sampling)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    # Another value range changes the result.
    other = {"minus_one_one": (0.0, 1.0), "zero_one": (-1.0, 1.0)}
    for change in ({3: other[image_range]}, {4: other[pose_range]}):
        changed = [change.get(place, value) for place, value in enumerate(sampling)]
        assert (release_frames(release, pipe.image_encoder, *changed) - theirs).abs().max() > 1e-3


@pytest.mark.parametrize("prefix", ["", "module.", "module.module."])
@pytest.mark.parametrize("attention_is_convolution", [False, True])
def test_old_names_and_shapes(bases, release, tmp_path, prefix, attention_is_convolution):
    words = save_release(tmp_path / "checkpoints", release, prefix, attention_is_convolution)
    pipe = convert(bases, tmp_path / "pipeline", *words)
    for part, expected in convert_names(release).items():
        state = getattr(pipe, part).state_dict()
        assert len(state) == len(expected)
        for key, tensor in state.items():
            assert torch.equal(tensor, expected[key]), key
    torch.manual_seed(0)
    clip, latents = torch.randn(2, NUM_IMAGE_TOKENS, IMAGE_EMBED_DIM), torch.randn(2, 4, HEIGHT // 2, WIDTH // 2)
    with torch.no_grad():
        torch.testing.assert_close(pipe.adapter(clip, latents), release["adapter"](clip, latents), atol=1e-5, rtol=0)


def test_settings_and_card_of_a_converted_pipeline(converted):
    pipe = DreamPosePipeline.from_pretrained(converted)
    assert isinstance(pipe.scheduler, PNDMScheduler)
    stored = ("skip_prk_steps", "set_alpha_to_one", "steps_offset", "timestep_spacing", "beta_schedule")
    assert [pipe.scheduler.config[name] for name in stored] == [True, False, 1, "leading", "scaled_linear"]
    config = {name: value for name, value in pipe.config.items() if name.startswith("default_")}
    assert config == {
        "default_height": HEIGHT,
        "default_width": WIDTH,
        "default_num_inference_steps": 100,
        "default_image_guidance_scale": 8.0,
        "default_pose_guidance_scale": 3.0,
        "default_guidance_stop": 1.0,
    }
    assert tuple(pipe.config.image_range) == tuple(pipe.config.pose_range) == (-1, 1)
    assert pipe.feature_extractor.do_center_crop
    card = ModelCard.load(converted / "README.md")
    text = " ".join(card.text.split())
    assert "UNet, adapter and VAE are checkpoints of the authors' [release]" in text
    assert "pictures in [-1, 1] to the VAE (`image_range`) and pose maps in [-1, 1] to the UNet" in text
    assert "PNDM with 100 steps and guidance scales of 8 (photo) and 3 (pose)" in text
    assert "stage 1" not in text and "were trained on" not in text and str(converted.parent) not in card.content


def test_without_a_vae_the_base_s_is_kept_and_the_ranges_are_reported(bases, release, tmp_path, capsys):
    words = save_release(tmp_path / "checkpoints", {part: release[part] for part in ("unet", "adapter")})
    pipe = convert(bases, tmp_path / "pipeline", *words, "--image_range", "zero_one")
    assert tuple(pipe.config.image_range) == (0, 1) and tuple(pipe.config.pose_range) == (-1, 1)
    expected = build_vae(0).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in pipe.vae.state_dict().items())
    text = " ".join((tmp_path / "pipeline" / "README.md").read_text().split())
    assert "UNet and adapter are checkpoints" in text and "pictures in [0, 1] to the VAE" in text
    assert "image_range zero_one, pose_range minus_one_one" in capsys.readouterr().out


@pytest.mark.parametrize("radius", [0, 1, 3])
def test_other_pose_radii(bases, release, tmp_path, radius):
    torch.manual_seed(0)
    models = {"unet": get_unet(4 + 2 * (2 * radius + 1)), "adapter": release["adapter"]}
    pipe = convert(bases, tmp_path / "pipeline", *save_release(tmp_path / "checkpoints", models))
    assert pipe.pose_radius == radius
    assert torch.equal(pipe.unet.conv_in.weight, models["unet"].conv_in.weight)


# Refusals


class Hostile:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_hostile_pickle_is_refused_and_not_run(bases, release, tmp_path, is_zip):
    words = save_release(tmp_path, release)
    weights = {**release["adapter"].state_dict(), "more": Hostile(tmp_path / "was_run")}
    torch.save(weights, tmp_path / "adapter.pth", _use_new_zipfile_serialization=is_zip)
    rule = "`adapter` must be a state dict of tensors only, got 'adapter.pth': it refers to posix.mkdir. None of it"
    with pytest.raises(ValueError, match=rule) as refusal:
        convert(bases, tmp_path / "pipeline", *words)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "was_run").exists() and not (tmp_path / "pipeline").exists()


def test_the_hostile_pickle_would_run(tmp_path):
    torch.save({"more": Hostile(tmp_path / "was_run")}, tmp_path / "weights.pth")
    torch.load(tmp_path / "weights.pth", weights_only=False)
    assert (tmp_path / "was_run").exists()


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "`unet` must be an existing file, got .*unet.pth'"),
        (b"no checkpoint", "`unet` must be a state dict of tensors only, got 'unet.pth': reading it raises"),
        (nn.Linear(2, 2), "must be a state dict of tensors only, .* refers to torch.nn.modules.linear.Linear"),
        ([torch.ones(2)], "`unet` must be a state dict of floating-point tensors, got 'unet.pth'"),
        ({}, "`unet` must be a state dict of floating-point tensors"),
        ({"epoch": 3}, "`unet` must be a state dict of floating-point tensors"),
        ({"conv_in.weight": torch.ones(2, dtype=torch.int8)}, "`unet` must be a state dict of floating-point tensors"),
        ({"a": torch.ones(2), "module.a": torch.ones(2)}, "`unet` must hold every weight once, got 'unet.pth'"),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path, content, message):
    path = tmp_path / "unet.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        read_checkpoint(path, "unet")


def spoil(weights, drop=(), add=(), reshape=(), nan=()):
    weights = {name: tensor for name, tensor in weights.items() if name not in drop}
    weights |= {name: torch.zeros(1) for name in add} | {name: torch.zeros(5, 9) for name in reshape}
    return weights | {name: torch.full_like(weights[name], math.nan) for name in nan}


@pytest.mark.parametrize(
    "part, change, message",
    [
        ("adapter", {"drop": ["linear1.bias"]}, "`adapter` .* DreamPoseAdapter, got missing: token_mixer.bias.$"),
        ("adapter", {"add": ["linear2.bias"]}, "`adapter` must hold .*, got unexpected: linear2.bias.$"),
        (
            "adapter",
            {"reshape": ["vae2clip.weight"]},
            r"`adapter` .*, got wrong shape: vae_projection.weight is \(5, 9\) instead of \(16, 96\).$",
        ),
        ("unet", {"nan": ["conv_out.bias"]}, "`unet` must .* UNet2DConditionModel, got not finite: conv_out.bias.$"),
        (
            "vae",
            {"drop": ["quant_conv.bias"], "add": ["a", "b"]},
            "`vae` must .* AutoencoderKL, got missing: quant_conv.bias; unexpected: a, b.$",
        ),
        ("vae", {"drop": ["decoder.conv_in.weight", "decoder.conv_in.bias"]}, "missing: decoder.conv_in.weight, dec"),
        ("unet", {"drop": ["conv_in.weight"]}, "`unet` must hold conv_in.weight and conv_out.weight, got conv_in.b"),
    ],
)
def test_weights_of_another_model(bases, release, tmp_path, part, change, message):
    words = save_release(tmp_path, release)
    torch.save(spoil(release[part].state_dict(), **change), tmp_path / f"{part}.pth")
    with pytest.raises(ValueError, match=message):
        convert(bases, tmp_path / "pipeline", *words)
    assert not (tmp_path / "pipeline").exists()


def test_long_lists_of_names_are_cut(bases, release, tmp_path):
    words = save_release(tmp_path, release | {"vae": get_unet(14)})
    with pytest.raises(
        ValueError, match=r"`vae` .* missing: (\S+, ){5}\S+ and \d+ more; unexpected: (\S+, ){5}\S+ and"
    ):
        convert(bases, tmp_path / "pipeline", *words)


@pytest.mark.parametrize("in_channels", [4, 5, 8, 13])
def test_a_unet_without_a_pose_window(in_channels):
    weights = {"conv_in.weight": torch.ones(8, in_channels, 3, 3), "conv_out.weight": torch.ones(4, 8, 3, 3)}
    message = f"`unet` must have 4 input channels for latents and 2 for .* poses, got {in_channels} in conv_in.weight"
    with pytest.raises(ValueError, match=message):
        find_pose_radius(weights)


def test_a_size_that_does_not_fit_the_adapter(bases, release, tmp_path):
    words = save_release(tmp_path, release)
    message = "`height` and `width` must be those of the pictures .*, got 64 and 32, which give 128 cells .* of 96"
    with pytest.raises(ValueError, match=message):
        convert(bases, tmp_path / "pipeline", *words, "--height", 64)


def test_a_dreampose_pipeline_cannot_be_the_base(bases, converted, release, tmp_path):
    words = save_release(tmp_path, release)
    message = f"`base` must be a Stable Diffusion 1.x, got '{converted}', which is a DreamPosePipeline"
    with pytest.raises(ValueError, match=message):
        convert(bases, tmp_path / "pipeline", *words, "--base", converted)
    assert not (tmp_path / "pipeline").exists()


@pytest.mark.parametrize("subject", [False, True])
def test_other_files_are_not_overwritten(bases, converted, release, tmp_path, subject):
    output = tmp_path / "output"
    words = save_release(tmp_path / "checkpoints", add_differences(release, rank=1) if subject else release)

    def write():
        if subject:
            extract(words, converted, output, "--rank", 1)
        else:
            convert(bases, output, *words)

    output.write_text("")
    with pytest.raises(ValueError, match="`output_dir` must be a new or empty folder, or .* which is a file"):
        write()
    output.unlink()
    output.mkdir()
    (output / "README.md").write_text("Of something else.")
    other = "pytorch_lora_weights.safetensors" if not subject else "model_index.json"
    (output / other).write_text("{}")
    with pytest.raises(ValueError, match="`output_dir` must be a new or empty folder, or .* holds README.md, "):
        write()
    assert (output / "README.md").read_text() == "Of something else."
    (output / other).unlink()
    (output / "README.md").unlink()
    if not subject:
        (output / "unet").mkdir()  # left by an interrupted run
    write()
    first = (output / "README.md").read_text()
    (output / "README.md").write_text("Of an earlier output.")
    write()
    assert (output / "README.md").read_text() == first


def test_bad_bases(bases, release, tmp_path):
    paths = dict(zip(release, (tmp_path / f"{part}.pth" for part in release)))
    save_release(tmp_path, release)
    how = {"image_range": "zero_one", "pose_range": "zero_one", "height": HEIGHT, "width": WIDTH}
    with pytest.raises(ValueError, match="`base` must be a pipeline's folder or Hub id, got .*none'"):
        convert_checkpoints(paths, str(tmp_path / "none"), str(bases / "clip"), **how)
    message = "`image_encoder_name_or_path` must lead to a model that can be loaded, got .*/none'"
    with pytest.raises(ValueError, match=message) as refusal:
        convert_checkpoints(paths, str(bases / "sd"), str(tmp_path / "none"), **how)
    assert "\n" not in str(refusal.value)
    with pytest.raises(ValueError, match="`output_dir` must spare what is read"):
        convert(bases, bases / "sd", *save_release(tmp_path, release))


@pytest.mark.parametrize(
    "words, message",
    [
        (["--unet", "a.pth"], "`--unet` and `--adapter` must be given for a pipeline, but `--adapter` is missing."),
        (["--subject_of", "base"], "`--unet`, `--adapter` or `--vae` must be given with `--subject_of`."),
        (
            ["--subject_of", "base", "--unet", "a.pth", "--image_range", "zero_one"],
            "`--image_range` must be given without `--subject_of`, got 'zero_one'",
        ),
        (["--unet", "a.pth", "--adapter", "b.pth", "--rank", "4"], "`--rank` must be given only with `--subject_of`"),
        (["--unet", "a.pth", "--pose_range", "0..255"], "argument --pose_range: invalid choice"),
    ],
)
def test_options_that_exclude_each_other(capsys, words, message):
    with pytest.raises(SystemExit):
        convert_original_checkpoint.parse_args([*words, "--output_dir", "out"])
    assert message in capsys.readouterr().err


# A subject to a LoRA


@torch.no_grad()
def add_differences(models, rank=None):
    """Copy the models and add to two of every three layers a matrix of this rank, or of full rank."""
    torch.manual_seed(8)
    models = copy.deepcopy(models)
    for model in models.values():
        layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
        for layer in (layer for number, layer in enumerate(layers) if number % 3 != 2):
            rows, columns = layer.weight.flatten(1).shape
            size = rank or min(rows, columns)
            difference = torch.randn(rows, size) @ torch.randn(size, columns) / size
            layer.weight += 0.1 * difference.reshape(layer.weight.shape)
    return models


def read_facts(folder):
    with safe_open(folder / FILE, "pt") as file:
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
        num_bytes = sum(file.get_tensor(key).nbytes for key in file.keys())
    return {key.removeprefix("dreampose."): value for key, value in metadata.items() if "dreampose." in key}, num_bytes


def test_a_difference_of_the_lora_s_rank_is_recovered(converted, release, tmp_path, capsys):
    subject = add_differences(release, rank=2)
    words = save_release(tmp_path / "checkpoints", subject)
    extract(words, converted, tmp_path / "anna", "--rank", 2)
    pipe, expected = load(converted), convert_names(subject)
    before = {part: getattr(pipe, part).state_dict() for part in subject}
    distance = max(
        (before[part][key] - value).abs().max() for part in subject for key, value in expected[part].items()
    )
    assert distance > 0.1
    pipe.load_lora_weights(tmp_path / "anna", adapter_name="anna")
    for part in subject:
        changed = {key for key, value in expected[part].items() if not torch.equal(value, before[part][key])}
        found = {name for name, layer in getattr(pipe, part).named_modules() if "anna" in getattr(layer, "lora_A", {})}
        assert found == {key.removesuffix(".weight") for key in changed} and len(found) >= 1
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    for part, weights in expected.items():
        for key, value in getattr(pipe, part).state_dict().items():
            torch.testing.assert_close(value, weights[key], atol=1e-5, rtol=0, msg=key)
    facts, num_bytes = read_facts(tmp_path / "anna")
    assert facts["rank"] == facts["lora_alpha"] == 2 and facts["num_weight_bytes"] == num_bytes
    assert facts["relative_error"] < 1e-5 and [facts[f"{part}_num_left"] for part in subject] == [0, 0, 0]
    assert "base_model" not in facts, "a folder's name is not written"
    output = capsys.readouterr().out
    size = (tmp_path / "anna" / FILE).stat().st_size
    assert "unet: rank 2 in " in output and "leaves 0.00% of the difference" in output
    assert f"all: 0.00% left; {tmp_path / 'anna' / FILE} has {size / 1e6:.2f} MB" in output


def test_an_extracted_subject_has_a_card(converted, release, tmp_path):
    subject = add_differences({part: release[part] for part in ("unet", "vae")}, rank=2)
    words = save_release(tmp_path / "checkpoints", subject)
    extract(words, converted, tmp_path / "anna", "--rank", 1)
    card, facts = ModelCard.load(tmp_path / "anna" / "README.md"), read_facts(tmp_path / "anna")[0]
    text = " ".join(card.text.split())
    assert "lora" in card.data.tags and card.data.pipeline_tag == "image-to-video" and card.data.base_model is None
    for part in (
        "a LoRA of UNet and VAE, taken from checkpoints in the format of the authors' release.",
        'pipe.load_lora_weights("path/to/this/folder")',
        "the best approximation of rank 1:",
        f"It leaves {facts['relative_error']:.2%} of the difference",
        "Versions: torch",
    ):
        assert part in text, part
    for word in ("None", "{{", "{%", "photos of that person", " steps", str(tmp_path)):
        assert word not in text, word


def convert_names(models):
    """Return the weights of the release's models under this project's names."""
    weights = {part: model.state_dict() for part, model in models.items()}
    for old, new in ADAPTER_NAMES.items():
        for kind in ("weight", "bias"):
            weights["adapter"][f"{new}.{kind}"] = weights["adapter"].pop(f"{old}.{kind}")
    return weights


def test_the_error_of_a_full_difference_follows_from_its_singular_values(converted, release, tmp_path):
    subject = add_differences(release)
    with torch.no_grad():
        subject["vae"].decoder.conv_out.bias += 0.5
        subject["vae"].decoder.conv_norm_out.weight -= 0.25
    words = save_release(tmp_path / "checkpoints", subject)
    extract(words, converted, tmp_path / "anna", "--rank", 3)
    facts, _ = read_facts(tmp_path / "anna")
    whole, left = {}, {}
    own, others = convert_names(subject), load(converted)
    for part, weights in own.items():
        differences = [weights[key].double() - value for key, value in getattr(others, part).state_dict().items()]
        matrices = [difference.flatten(1) for difference in differences if difference.ndim > 1]
        values = [torch.linalg.svdvals(matrix) for matrix in matrices]
        whole[part] = sum(difference.square().sum().item() for difference in differences)
        left[part] = sum(value[3:].square().sum().item() for value in values)
        left[part] += sum(difference.square().sum().item() for difference in differences if difference.ndim == 1)
        assert 0.1 < left[part] / whole[part] < 1
        expected = math.sqrt(left[part] / whole[part])
        assert facts[f"{part}_relative_error"] == pytest.approx(expected, rel=1e-5)
    total = math.sqrt(sum(left.values()) / sum(whole.values()))
    assert facts["relative_error"] == pytest.approx(total, rel=1e-5)
    assert facts["vae_num_left"] == 2 and facts["unet_num_left"] == facts["adapter_num_left"] == 0
    pipe = load(converted)
    pipe.load_lora_weights(tmp_path / "anna")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    for part, weights in own.items():
        rest = sum((weights[key] - value).double().square().sum() for key, value in state(pipe, part))
        assert math.sqrt(rest / whole[part]) == pytest.approx(facts[f"{part}_relative_error"], rel=1e-4)


def state(pipe, part):
    return getattr(pipe, part).state_dict().items()


def test_a_subject_of_one_component(converted, release, tmp_path):
    """The adapter differs only in a bias, which a LoRA cannot change."""
    subject = add_differences({"vae": release["vae"]}, rank=1) | {"adapter": copy.deepcopy(release["adapter"])}
    nn.init.constant_(subject["adapter"].linear1.bias, 2.0)
    words = save_release(tmp_path / "checkpoints", subject)
    extract(words, converted, tmp_path / "anna", "--rank", 1)
    pipe = load(converted)
    pipe.load_lora_weights(tmp_path / "anna", adapter_name="anna")
    assert pipe.get_list_adapters() == {"vae": ["anna"]}
    facts, _ = read_facts(tmp_path / "anna")
    assert facts["adapter_relative_error"] == facts["adapter_num_left"] == 1 and "unet_num_left" not in facts


def test_bad_subjects(bases, converted, release, tmp_path):
    words, anna = save_release(tmp_path, release), tmp_path / "anna"
    for base, more, message in (
        (converted, [], "`unet`, `adapter`, `vae` must differ from `subject_of` in a linear"),
        (converted, ["--rank", 0], "`rank` must be at least 1, got 0"),
        (converted, ["--device", "meat"], "`device` must be one that computes in float64, got 'meat'"),
        (bases / "sd", [], "`subject_of` must be a DreamPose pipeline, .* a StableDiffusionPipeline"),
        (tmp_path / "none", [], "`subject_of` must be a pipeline's folder or Hub id, got .*none'"),
        (converted, ["--output_dir", converted], "`output_dir` must spare what is read"),
    ):
        with pytest.raises(ValueError, match=message):
            extract(words, base, anna, *more)
    torch.save(spoil(release["unet"].state_dict(), drop=["conv_out.bias"]), tmp_path / "unet.pth")
    with pytest.raises(ValueError, match="`unet` must hold the weights of this UNet.*missing: conv_out.bias"):
        extract(words, converted, anna)
    assert not anna.exists()


def test_the_ranges_are_those_of_the_conversion():
    assert convert_original_checkpoint.RANGES == tuple(conversion.RANGES)


def test_a_flipped_bit_in_a_zip_file_is_refused(tmp_path):
    """torch reads the file without an error, with other weights."""
    path = tmp_path / "unet.pth"
    torch.save({"conv_in.weight": torch.full((64,), 0.5), "conv_in.bias": torch.ones(64)}, path)
    weights = read_checkpoint(path, "unet")
    assert weights["conv_in.weight"].eq(0.5).all()
    del weights
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((64,), 0.5).numpy().tobytes()) + 9] ^= 1
    path.write_bytes(content)
    rule = "`unet` must be an undamaged file of `torch.save`, got 'unet.pth': the CRC of its entry '.*data/0' is wrong"
    with pytest.raises(ValueError, match=rule):
        read_checkpoint(path, "unet")


def test_no_flipped_bit_in_a_zip_file_s_directory_ends_in_a_traceback(tmp_path):
    path = tmp_path / "unet.pth"
    torch.save({"a": torch.ones(8)}, path)
    content = path.read_bytes()
    num_refused = 0
    for index in range(content.rfind(b"PK\x06\x06"), len(content)):  # the three records at the end
        for bit in range(8):
            path.write_bytes(content[:index] + bytes([content[index] ^ 1 << bit]) + content[index + 1 :])
            try:
                assert read_checkpoint(path, "unet")["a"].eq(1).all(), "bits that nothing uses"
            except ValueError as error:
                assert str(error).startswith("`unet` must be ") and "got 'unet.pth': " in str(error)
                num_refused += 1
    assert num_refused > 100


def test_an_entry_beyond_the_end_of_a_zip_file_is_refused(tmp_path):
    """Python raises an error without a text for it."""
    path = tmp_path / "unet.pth"
    torch.save({"a": torch.ones(8)}, path)
    content = bytearray(path.read_bytes())
    last = content.rfind(b"PK\x01\x02")  # in the directory: the last entry, with its two sizes 20 bytes later
    content[last + 20 : last + 28] = struct.pack("<II", 1000, 1000)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="`unet` must be an undamaged file of `torch.save`, got 'unet.pth': EOFError"):
        read_checkpoint(path, "unet")


def test_a_file_without_checksums_is_read_with_a_warning(tmp_path, caplog):
    path = tmp_path / "unet.pth"
    torch.save({"a": torch.ones(8)}, path)
    assert read_checkpoint(path, "unet")["a"].eq(1).all() and not caplog.records
    torch.save({"a": torch.ones(8)}, path, _use_new_zipfile_serialization=False)
    assert read_checkpoint(path, "unet")["a"].eq(1).all()
    (record,) = caplog.records
    assert record.message == "unet.pth is in torch's old format, which has no checksums: damage in it would not show."


def test_a_compressed_zip_file_is_refused(tmp_path):
    """torch would read compressed bytes as weights, and a decompression bomb would fill the memory."""
    path, packed = tmp_path / "unet.pth", tmp_path / "packed.pth"
    torch.save({"conv_in.weight": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(ValueError, match="`unet` must be an undamaged .*'packed.pth': its entries must be stored unc"):
        read_checkpoint(packed, "unet")
