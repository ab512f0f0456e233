"""A LoRA during training: its layers, what trains, and that its file reproduces the trained model."""

import json
import math

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import save_file

from pipeline_dreampose import DreamPoseAdapter, DreamPosePipeline
from tests.tiny_components import get_dummy_inputs, get_dummy_pipeline
from training.models.lora import ADAPTER_NAME, attached_lora, build_lora_configs, collect_lora, sort_metadata


PARTS = ("unet", "adapter", "vae")


def parts_of(pipe):
    return {name: getattr(pipe, name).requires_grad_(False) for name in PARTS}


def layers_of(part):
    return {name for name, module in part.named_modules() if ADAPTER_NAME in getattr(module, "lora_A", {})}


def render(pipe):
    return pipe(**get_dummy_inputs()).frames


def draw_weights(parts):
    """Draw LoRA weights of a size that training might give; larger ones only magnify the rounding of fusing."""
    torch.manual_seed(7)
    with torch.no_grad():
        for part in parts.values():
            for name, parameter in part.named_parameters():
                if ".lora_" in name:
                    parameter.add_(0.1 * torch.randn_like(parameter))


def get_vae():
    """Return a VAE with attention in the middle block, like Stable Diffusion's."""
    return AutoencoderKL(
        block_out_channels=(4, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=2,
    )  # fmt: skip


@pytest.mark.parametrize("convolutions", [False, True])
@pytest.mark.parametrize("conv_in", [False, True])
def test_target_layers(convolutions, conv_in):
    pipe = get_dummy_pipeline(vae=get_vae())
    unet, decoder = dict(pipe.unet.named_modules()), dict(pipe.vae.decoder.named_modules())
    attention = {name for name, module in unet.items() if ".attn" in name and isinstance(module, torch.nn.Linear)}
    blocks = {name for name, module in unet.items() if "block" in name and isinstance(module, torch.nn.Conv2d)}
    blocks = {name for name in blocks if "attentions" not in name}
    expected = attention | (blocks if convolutions else set()) | ({"conv_in"} if conv_in else set())
    weighty = (torch.nn.Conv2d, torch.nn.Linear)
    whole = {f"decoder.{name}" for name, module in decoder.items() if isinstance(module, weighty)}
    assert any("to_q" in name for name in whole) and len(attention) > 10 and len(blocks) > 10
    configs = build_lora_configs(2, lora_convolutions=convolutions, lora_conv_in=conv_in)
    with attached_lora(parts_of(pipe), configs, seed=0):
        assert layers_of(pipe.unet) == expected
        assert layers_of(pipe.adapter) == {"vae_projection", "token_mixer"}
        assert layers_of(pipe.vae) == whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_lora_trains_in_float32_and_detaching_restores_the_model(dtype):
    pipe = get_dummy_pipeline().to(dtype)
    before = {name: {k: v.clone() for k, v in part.state_dict().items()} for name, part in parts_of(pipe).items()}
    plain = render(pipe)
    parts = parts_of(pipe)
    with attached_lora(parts, build_lora_configs(2), seed=0):
        assert torch.equal(render(pipe), plain), "a new LoRA changes nothing"
        for part in parts.values():
            for name, parameter in part.named_parameters():
                assert parameter.requires_grad == (".lora_" in name), name
                assert parameter.dtype == (torch.float32 if parameter.requires_grad else dtype), name
        draw_weights(parts)
        assert not torch.equal(render(pipe), plain)
    for name, part in parts.items():
        state = part.state_dict()
        assert state.keys() == before[name].keys()
        assert all(torch.equal(state[key], value) for key, value in before[name].items())
    assert torch.equal(render(pipe), plain) and pipe.get_list_adapters() == {}


def test_initial_weights_depend_only_on_the_seed():
    drawn = []
    for seed, disturbance in ((0, 1), (0, 2), (1, 1)):
        parts = parts_of(get_dummy_pipeline())
        torch.manual_seed(disturbance)
        with attached_lora(parts, build_lora_configs(2), seed):
            drawn.append(collect_lora(parts)["unet_lora_layers"])
    key = next(key for key in drawn[0] if "lora_A" in key)
    assert all(torch.equal(drawn[0][key], drawn[1][key]) for key in drawn[0])
    assert not torch.equal(drawn[0][key], drawn[2][key])


@pytest.mark.parametrize(
    "settings, scaling",
    [
        ({"rank": 4}, 1.0),
        ({"rank": 4, "lora_alpha": 6}, 1.5),
        ({"rank": 4, "lora_alpha": 6, "use_rslora": True}, 6 / math.sqrt(4)),
        ({"rank": 4, "lora_alpha": 3, "use_dora": True, "lora_convolutions": True, "lora_conv_in": True}, 0.75),
    ],
    ids=["plain", "alpha", "rslora", "dora"],
)
def test_a_fresh_pipeline_with_the_file_equals_the_trained_one(tmp_path, settings, scaling):
    pipe = get_dummy_pipeline(vae=get_vae())
    pipe.save_pretrained(tmp_path / "base")
    plain, parts = render(pipe), parts_of(pipe)
    with attached_lora(parts, build_lora_configs(**settings), seed=0):
        draw_weights(parts)
        trained = render(pipe)
        DreamPosePipeline.save_lora_weights(tmp_path, **collect_lora(parts), run_metadata={"rank": 4})
    fresh = DreamPosePipeline.from_pretrained(tmp_path / "base")
    fresh.set_progress_bar_config(disable=True)
    fresh.load_lora_weights(tmp_path, adapter_name="anna")
    torch.testing.assert_close(render(fresh), trained, atol=1e-5, rtol=0)
    assert (trained - plain).abs().max() > 0.01
    for part in PARTS:
        config = getattr(fresh, part).peft_config["anna"]
        flags = (settings.get("use_rslora", False), settings.get("use_dora", False))
        assert (config.r, config.use_rslora, config.use_dora) == (4, *flags)
    assert fresh.adapter.token_mixer.scaling["anna"] == pytest.approx(scaling)
    with safe_open(tmp_path / "pytorch_lora_weights.safetensors", "pt") as file:
        stored = json.loads(file.metadata()["lora_adapter_metadata"])
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float32}
    assert stored["dreampose.rank"] == 4 and stored["unet.target_modules"] == sorted(stored["unet.target_modules"])
    fresh.fuse_lora()
    fresh.unload_lora_weights()
    torch.testing.assert_close(render(fresh), trained, atol=1e-5, rtol=0)


def test_a_file_that_does_not_fit_is_refused(tmp_path):
    pipe = get_dummy_pipeline()
    parts = parts_of(pipe)
    with attached_lora(parts, build_lora_configs(2, use_dora=True), seed=0):
        DreamPosePipeline.save_lora_weights(tmp_path, **collect_lora(parts))
    weights = DreamPosePipeline.lora_state_dict(tmp_path)
    key = "adapter.token_mixer.lora_magnitude_vector"
    weights[key] = weights[key][1:]
    with pytest.raises(ValueError, match="adapter.token_mixer has shape"):
        pipe.load_lora_weights(weights)
    del weights["adapter.token_mixer.lora_A.weight"]
    with pytest.raises(ValueError, match="token_mixer.* without layer or partner"):
        pipe.load_lora_weights(weights)


def test_the_full_size_model_s_file_has_at_most_25_megabytes():
    """Counts parameters on the meta device, with Stable Diffusion's shapes and the default rank."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, in_channels=14)
        channels = (128, 256, 512, 512)
        vae = AutoencoderKL(
            block_out_channels=channels, layers_per_block=2, down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )  # fmt: skip
        parts = {"unet": unet, "adapter": DreamPoseAdapter(), "vae": vae}
        assert 859e6 < sum(p.numel() for p in unet.parameters()) < 860e6
        for name, config in build_lora_configs(16).items():
            parts[name].requires_grad_(False).add_adapter(config, ADAPTER_NAME)
    count = sum(p.numel() for part in parts.values() for p in part.parameters() if p.requires_grad)
    assert 15e6 < 4 * count < 25e6


def test_equal_subjects_give_equal_files(tmp_path):
    """The library writes metadata in a random order, so twenty files would hardly be equal without sorting."""
    tensors, metadata = {"b": torch.arange(3.0), "a": torch.ones(2, 2)}, {"z": "Zoë/\n\x7f", "format": "pt", "y": "1"}
    contents = set()
    for number in range(20):
        path = tmp_path / f"{number}.safetensors"
        save_file(tensors, path, metadata)
        sort_metadata(path)
        contents.add(path.read_bytes())
    assert len(contents) == 1 and len(list(tmp_path.iterdir())) == 20
    with safe_open(path, "pt") as file:
        assert file.metadata() == metadata and file.keys() == ["a", "b"]
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in tensors.items())
    header = contents.pop()
    size = int.from_bytes(header[:8], "little")
    assert size % 8 == 0 and list(json.loads(header[8 : 8 + size])["__metadata__"]) == ["format", "y", "z"]
