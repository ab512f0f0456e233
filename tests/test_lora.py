"""Subjects (LoRAs of UNet, adapter and VAE in one file): attached, switched, fused, saved and unloaded."""

import json
import logging
import socket
from pathlib import Path

import diffusers
import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline_dreampose import DreamPosePipeline
from tests.hub_server import Hub
from tests.tiny_components import (
    ALPHA,
    RANK,
    TARGETS,
    get_dummy_components,
    get_dummy_inputs,
    get_dummy_pipeline,
    save_subject,
)


FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    folder = tmp_path_factory.mktemp("subjects")
    save_subject(folder / "anna", 1, base_model="someone/base")
    save_subject(folder / "bert", 2, parts=("unet", "adapter"))
    save_subject(folder / "carl", 3)
    return folder


def render(pipe):
    return pipe(**get_dummy_inputs()).frames


def merged_by_hand(*files_and_weights):
    """A pipeline with the weights `W + weight * alpha / rank * B A`."""
    pipe = get_dummy_pipeline()
    for file, weight in files_and_weights:
        state_dict = load_file(file / FILE)
        for key, down in state_dict.items():
            if ".lora_A." not in key:
                continue
            up = state_dict[key.replace(".lora_A.", ".lora_B.")]
            part, _, path = key.removesuffix(".lora_A.weight").partition(".")
            layer = getattr(pipe, part).get_submodule(path)
            delta = (up.flatten(1) @ down.flatten(1)).reshape(layer.weight.shape)
            layer.weight.data += weight * ALPHA / RANK * delta
    return pipe


def test_a_subject_equals_its_weights_merged_by_hand(subjects):
    pipe = get_dummy_pipeline()
    plain = render(pipe)
    pipe.load_lora_weights(subjects / "anna", adapter_name="anna")
    assert pipe.get_active_adapters() == ["anna"]
    assert pipe.get_list_adapters() == {"unet": ["anna"], "adapter": ["anna"], "vae": ["anna"]}
    torch.testing.assert_close(render(pipe), render(merged_by_hand((subjects / "anna", 1.0))), atol=1e-4, rtol=0)
    assert (render(pipe) - plain).abs().max() > 0.05


@pytest.mark.parametrize("part", TARGETS)
def test_every_part_of_the_file_counts(subjects, part):
    weights = load_file(subjects / "anna" / FILE)
    pipe = get_dummy_pipeline()
    plain = render(pipe)
    pipe.load_lora_weights({key: weight for key, weight in weights.items() if key.startswith(part)})
    assert list(pipe.get_list_adapters()) == [part] and (render(pipe) - plain).abs().max() > 1e-3


def test_unloading_restores_every_bit(subjects):
    pipe = get_dummy_pipeline()
    plain = render(pipe)
    names = {part: set(getattr(pipe, part).state_dict()) for part in TARGETS}
    pipe.load_lora_weights(subjects / "anna")
    pipe.unload_lora_weights()
    assert torch.equal(render(pipe), plain)
    assert pipe.get_list_adapters() == {} and pipe.get_active_adapters() == []
    assert names == {part: set(getattr(pipe, part).state_dict()) for part in TARGETS}


def test_two_subjects_on_one_base(subjects):
    """One subject has no VAE weights, so the other one's must not be active with it."""
    alone = {}
    for name in ("anna", "bert"):
        pipe = get_dummy_pipeline()
        pipe.load_lora_weights(subjects / name, adapter_name=name)
        alone[name] = render(pipe)
    pipe = get_dummy_pipeline()
    plain = render(pipe)
    for name in ("anna", "bert"):
        pipe.load_lora_weights(subjects / name, adapter_name=name)
    assert torch.equal(render(pipe), alone["bert"]), "the subject loaded last is active"
    pipe.set_adapters("anna")
    assert torch.equal(render(pipe), alone["anna"])
    pipe.set_adapters("bert")
    assert torch.equal(render(pipe), alone["bert"])
    pipe.set_adapters(["anna", "bert"], [0.5, 0.25])
    blend = merged_by_hand((subjects / "anna", 0.5), (subjects / "bert", 0.25))
    torch.testing.assert_close(render(pipe), render(blend), atol=1e-4, rtol=0)
    pipe.disable_lora()
    assert torch.equal(render(pipe), plain)
    pipe.enable_lora()
    pipe.delete_adapters("anna")
    pipe.set_adapters("bert")
    assert {name for names in pipe.get_list_adapters().values() for name in names} == {"bert"}
    assert torch.equal(render(pipe), alone["bert"])


def test_weights_may_differ_by_component(subjects):
    pipe = get_dummy_pipeline()
    pipe.load_lora_weights(subjects / "anna", adapter_name="anna")
    pipe.set_adapters("anna", {"unet": 0.5, "adapter": 0.0, "vae": 0.0})
    other = get_dummy_pipeline()
    other.load_lora_weights(subjects / "anna", adapter_name="anna")
    other.adapter.unload_lora()
    other.vae.unload_lora()
    other.unet.set_adapters("anna", 0.5)
    torch.testing.assert_close(render(pipe), render(other), atol=1e-5, rtol=0)


def test_fusing_and_unfusing(subjects):
    pipe = get_dummy_pipeline()
    plain = render(pipe)
    pipe.load_lora_weights(subjects / "anna", adapter_name="anna")
    attached = render(pipe)
    pipe.fuse_lora()
    assert pipe.fused_loras == {"anna"}
    torch.testing.assert_close(render(pipe), attached, atol=1e-4, rtol=0)
    pipe.unfuse_lora()
    assert pipe.num_fused_loras == 0
    pipe.fuse_lora(["unet", "adapter", "vae"], 0.0)  # the scale comes second, as in diffusers
    torch.testing.assert_close(render(pipe), plain, atol=1e-4, rtol=0)
    pipe.unfuse_lora()
    with pytest.raises(ValueError, match="`components` cannot be an empty list"):
        pipe.fuse_lora([])
    pipe.unload_lora_weights()
    torch.testing.assert_close(render(pipe), plain, atol=1e-4, rtol=0)


def test_saving_requires_the_subject_to_be_fused_and_unloaded(subjects, tmp_path):
    pipe = get_dummy_pipeline()
    pipe.load_lora_weights(subjects / "anna")
    attached = render(pipe)
    with pytest.raises(ValueError, match="`save_pretrained` .* PEFT .* `vae`"):
        pipe.save_pretrained(tmp_path)
    pipe.load_lora_weights(subjects / "carl", adapter_name="carl")
    pipe.set_adapters("default_0")
    pipe.delete_adapters("carl")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path)
    loaded = DreamPosePipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(render(loaded), render(pipe))
    torch.testing.assert_close(render(loaded), attached, atol=1e-4, rtol=0)


def test_empty_layers_of_peft_are_not_saved_either(subjects, tmp_path):
    pipe = get_dummy_pipeline()
    pipe.load_lora_weights(subjects / "bert", adapter_name="bert")
    pipe.delete_adapters("bert")
    assert pipe.get_list_adapters() == {}
    with pytest.raises(ValueError, match="`save_pretrained` .* PEFT .* `unet`"):
        pipe.save_pretrained(tmp_path / "saved")
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path / "saved")


def test_a_subject_is_read_from_a_folder_a_file_weights_and_the_cache(subjects, monkeypatch, tmp_path):
    """None of them needs a connection, once a Hub repository is in the cache."""
    cache = {"cache_dir": tmp_path}
    with Hub() as hub:
        hub.commit("models/someone/anna", {FILE: (subjects / "anna" / FILE).read_bytes()})
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
        template = huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE
        template = hub.endpoint + template[template.index("/{repo_id}") :]
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        fetched = DreamPosePipeline.lora_state_dict("someone/anna", **cache)
        assert f"/someone/anna/resolve/main/{FILE}" in hub.paths()

    def refuse(*_):
        raise AssertionError("no connection may be tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    weights = load_file(subjects / "anna" / FILE)
    (tmp_path / "own_name.safetensors").write_bytes((subjects / "anna" / FILE).read_bytes())
    sources = [
        (subjects / "anna", {}),
        (str(subjects / "anna"), {}),
        (subjects / "anna" / FILE, {}),
        (tmp_path, {"weight_name": "own_name.safetensors"}),
        (weights, {}),
        ("someone/anna", {**cache, "local_files_only": True}),
    ]
    for source, arguments in sources:
        read = DreamPosePipeline.lora_state_dict(source, **arguments)
        assert read.keys() == fetched.keys() and all(torch.equal(read[key], fetched[key]) for key in read), source


def test_metadata_is_stored_and_another_base_model_is_a_warning(subjects, caplog):
    with safe_open(subjects / "anna" / FILE, "pt") as file:
        stored = json.loads(file.metadata()["lora_adapter_metadata"])
    assert stored["dreampose.base_model"] == "someone/base" and stored["vae.lora_alpha"] == ALPHA
    _, metadata = DreamPosePipeline.lora_state_dict(subjects / "anna", return_lora_metadata=True)
    assert metadata == stored

    logger = diffusers.utils.logging.get_logger("pipeline_dreampose")
    logger.addHandler(caplog.handler)
    pipe = get_dummy_pipeline()
    for name, warns in (("someone/base", False), ("someone/other", True)):
        caplog.clear()
        pipe.register_to_config(_name_or_path=name)
        with caplog.at_level(logging.WARNING, logger.name):
            pipe.load_lora_weights(subjects / "anna")
        assert ("was trained on 'someone/base'; this model is 'someone/other'" in caplog.text) == warns
    logger.removeHandler(caplog.handler)
    assert pipe.get_list_adapters()["vae"] == ["default_0", "default_1"]


def test_hotswap(subjects):
    fresh = get_dummy_pipeline()
    fresh.load_lora_weights(subjects / "carl")
    pipe = get_dummy_pipeline()
    pipe.load_lora_weights(subjects / "anna", adapter_name="subject")
    pipe.load_lora_weights(subjects / "carl", adapter_name="subject", hotswap=True)
    assert pipe.get_list_adapters()["unet"] == ["subject"] and torch.equal(render(pipe), render(fresh))
    with pytest.raises(ValueError, match="`hotswap` must replace 'subject' in the same components"):
        pipe.load_lora_weights(subjects / "bert", adapter_name="subject", hotswap=True)
    with pytest.raises(
        ValueError, match="`adapter_name` must be attached if, and only if, `hotswap=True`; got 'other', which is not"
    ):
        pipe.load_lora_weights(subjects / "carl", adapter_name="other", hotswap=True)
    pipe.load_lora_weights(subjects / "anna", adapter_name="subject_2")
    with pytest.raises(ValueError, match="`hotswap` needs a name that no other subject or layer contains"):
        pipe.load_lora_weights(subjects / "carl", adapter_name="subject", hotswap=True)


def test_half_precision(subjects):
    pipe = get_dummy_pipeline().to(torch.bfloat16)
    pipe.load_lora_weights(subjects / "anna")
    assert {parameter.dtype for parameter in pipe.vae.parameters()} == {torch.bfloat16}
    assert torch.isfinite(render(pipe)).all()


def test_another_shape_is_one_error_and_changes_nothing(tmp_path, caplog):
    """A warning before the error names both base models, if they are known."""
    save_subject(tmp_path, 1, base_model="someone/base")
    weights = load_file(tmp_path / FILE)
    key = "vae.decoder.conv_out.lora_A.weight"
    weights[key] = weights[key][:, :-1].contiguous()
    pipe = get_dummy_pipeline()
    with pytest.raises(ValueError, match=r"LoRA of this model's .* vae.decoder.conv_out has shape"):
        pipe.load_lora_weights(weights)
    assert pipe.get_list_adapters() == {}
    other = get_dummy_pipeline(**get_dummy_components(latent_channels=3))
    other.register_to_config(_name_or_path="someone/other")
    logger = diffusers.utils.logging.get_logger("pipeline_dreampose")
    logger.addHandler(caplog.handler)
    with pytest.raises(ValueError, match="LoRA of this model's .* has shape"):
        other.load_lora_weights(tmp_path)
    logger.removeHandler(caplog.handler)
    assert "was trained on 'someone/base'; this model is 'someone/other'" in caplog.text
    assert other.get_list_adapters() == {}


@pytest.mark.parametrize(
    "weights, message",
    [
        ({}, "got no weights"),
        ({"text_encoder.layer.lora_A.weight": torch.zeros(2, 4)}, "got text_encoder.layer.lora_A.weight"),
        ({"adapter.token_mixer.lora_A.weight": torch.zeros(2, 9)}, "without layer or partner"),
        ({"adapter.token_mixer.weight": torch.zeros(5, 9)}, "got adapter.token_mixer.weight"),
    ],
)
def test_weights_of_something_else_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        get_dummy_pipeline().load_lora_weights(weights)


@pytest.mark.parametrize("name", ["a", "my.subject", "lora"])
def test_names_that_peft_mistakes_for_keys_are_refused(subjects, name):
    with pytest.raises(ValueError, match="`adapter_name` must have two letters or more, no dots"):
        get_dummy_pipeline().load_lora_weights(subjects / "anna", adapter_name=name)


def test_wrong_files_and_names_are_refused(subjects, tmp_path):
    pipe = get_dummy_pipeline()
    (tmp_path / FILE).write_bytes(b"no safetensors")
    with pytest.raises(ValueError, match="`pretrained_model_name_or_path_or_dict` must be safetensors"):
        pipe.load_lora_weights(tmp_path)
    with pytest.raises(ValueError, match="`weight_name` must name a safetensors file"):
        pipe.load_lora_weights(tmp_path, weight_name="weights.bin")
    # without metadata, the rank comes from the shapes and alpha equals the rank
    save_file(load_file(subjects / "anna" / FILE), tmp_path / FILE)
    pipe.load_lora_weights(tmp_path, adapter_name="anna")
    assert pipe.unet.peft_config["anna"].r == RANK
    with pytest.raises(
        ValueError, match="`adapter_name` must be attached if, .* `hotswap=True`; got 'anna', which is attached"
    ):
        pipe.load_lora_weights(subjects / "anna", adapter_name="anna")
    with pytest.raises(ValueError, match="`unet_lora_layers`, .* must be given; got none"):
        DreamPosePipeline.save_lora_weights(tmp_path)


SOURCES = ["nowhere", "no/such/folder", "/nowhere", "", 5, None, ["someone/anna"], b"x", b"a/b", [], object(), True]


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_that_is_neither_here_nor_an_id_is_refused_without_asking_the_hub(monkeypatch, source):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", None)  # nobody may be asked
    with pytest.raises(ValueError, match="`pretrained_model_name_or_path_or_dict` must be a file, a folder, an id"):
        get_dummy_pipeline().load_lora_weights(source)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"weight_name": 3}, "`weight_name` must name a safetensors file; got '3'"),
        ({"use_safetensors": False}, "`use_safetensors` must be True; got False"),
        ({"metadata": {"unet.r": 2}}, "`metadata` must be left out if weights come from a file"),
        ({"allow_pickle": True}, "`kwargs` must be among .*weight_name.* got .'allow_pickle'."),
        (
            {"hotswap": True},
            "`adapter_name` must be attached if, and only if, `hotswap=True`; got 'default_0', which is not",
        ),
    ],
)
def test_options_that_would_be_ignored_or_fail_are_refused(subjects, options, message):
    pipe = get_dummy_pipeline()
    with pytest.raises(ValueError, match=message):
        pipe.load_lora_weights(subjects / "anna", **options)
    assert pipe.get_list_adapters() == {}


def test_diffusers_still_has_no_public_function_that_reads_any_lora():
    """If this fails, that function can replace the private `_fetch_state_dict`."""
    with pytest.raises(NotImplementedError):
        diffusers.loaders.lora_base.LoraBaseMixin.lora_state_dict()


def test_a_weight_name_may_be_a_path(subjects):
    weights = DreamPosePipeline.lora_state_dict(subjects / "anna", weight_name=Path(FILE), use_safetensors=True)
    assert weights.keys() == load_file(subjects / "anna" / FILE).keys()


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 1e308, "x", [1], 2j])
def test_scales_of_subjects_are_finite_numbers(attached, scale):
    pipe, before = attached
    for weights in (scale, [scale], {"unet": scale}, [{"vae": scale}]):
        if weights != [1]:
            with pytest.raises(ValueError, match="`adapter_weights` must hold numbers from -1000 to 1000; got"):
                pipe.set_adapters("anna", weights)
    with pytest.raises(ValueError, match="`lora_scale` must be a number from -1000 to 1000; got"):
        pipe.fuse_lora(lora_scale=scale)
    assert torch.equal(render(pipe), before)


@pytest.mark.parametrize("names", [[], (), "", None, 3])
def test_one_or_more_subjects_are_activated(attached, names):
    with pytest.raises(ValueError, match="`adapter_names` must name one or more attached subjects; got"):
        attached[0].set_adapters(names)
    assert attached[0].get_active_adapters() == ["anna"]


def test_set_adapters_takes_the_scale_of_a_fusion_back(subjects):
    pipe = get_dummy_pipeline()
    pipe.load_lora_weights(subjects / "anna", adapter_name="anna")
    before = render(pipe)
    pipe.fuse_lora(lora_scale=0.3)
    pipe.unfuse_lora()
    pipe.set_adapters("anna")
    torch.testing.assert_close(render(pipe), before, atol=1e-4, rtol=0)


def test_a_name_in_a_warning_is_one_line(subjects, warnings_of_pipeline):
    weights, metadata = read(subjects / "anna")
    pipe = get_dummy_pipeline()
    pipe.register_to_config(_name_or_path="this\nmodel")
    pipe.load_lora_weights(weights, metadata={**metadata, "dreampose.base_model": "other\n\x1b[31m" + "model" * 99})
    (message,) = set(warnings_of_pipeline.messages)
    assert message.isprintable() and "other\\n" in message and len(message) < 400


# Hard inputs: a refused load changes nothing, metadata is checked, scales survive a hotswap


@pytest.fixture
def warnings_of_pipeline(caplog):
    logger = diffusers.utils.logging.get_logger("pipeline_dreampose")
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.WARNING, logger.name):
        yield caplog
    logger.removeHandler(caplog.handler)


@pytest.fixture(scope="module")
def attached(subjects):
    """A pipeline with a subject at half its scale, and its video. No test that uses it may change it."""
    pipe = get_dummy_pipeline()
    pipe.load_lora_weights(subjects / "anna", adapter_name="anna")
    pipe.set_adapters("anna", 0.5)
    return pipe, render(pipe)


def read(folder):
    return DreamPosePipeline.lora_state_dict(folder, return_lora_metadata=True)


def make_subject(components=TARGETS, alpha=ALPHA, seed=5, **settings):
    """Return weights and metadata of a random subject with any `LoraConfig`; its targets may differ by component."""
    models, weights, metadata = get_dummy_components(), {}, {}
    torch.manual_seed(seed)
    for part, targets in components.items():
        settings = {"r": RANK, **settings}
        models[part].add_adapter(LoraConfig(lora_alpha=alpha, target_modules=targets, **settings))
        for key, weight in get_peft_model_state_dict(models[part]).items():
            random = 0.3 * torch.randn_like(weight)
            weights[f"{part}.{key}"] = random.abs() + 1 if "magnitude" in key else random
        metadata |= {f"{part}.{key}": value for key, value in models[part].peft_config["default"].to_dict().items()}
    return weights, metadata


KEY = "vae.decoder.conv_out.lora_A.weight"  # of the component that is attached last


@pytest.mark.parametrize(
    "change, message",
    [
        ({"vae.r": 4}, r"`vae.r`; got 4"),
        ({"vae.r": 2.0}, r"`vae.r`; got 2.0"),
        ({"vae.r": 10**5000}, "`vae.r`"),
        ({"vae.lora_alpha": float("nan")}, "above 0, at most 1e6, as `vae.lora_alpha`; got nan"),
        ({"vae.lora_alpha": float("inf")}, "`vae.lora_alpha`"),
        ({"vae.lora_alpha": 1e30}, "`vae.lora_alpha`"),
        ({"vae.lora_alpha": 0}, "`vae.lora_alpha`"),
        ({"vae.lora_alpha": True}, "`vae.lora_alpha`; got True"),
        ({"vae.lora_alpha": "6"}, "`vae.lora_alpha`"),
        ({"vae.rank_pattern": {"conv_out": 1}}, "`vae.r`; got 1"),
        ({"vae.rank_pattern": {"([a-z_0-9.]+)+X": 2}}, "not regular expressions, as `vae.rank_pattern`"),
        ({"vae.alpha_pattern": {"(.*)*": 2}}, "not regular expressions, as `vae.alpha_pattern`"),
        ({"vae.alpha_pattern": {"conv_out": -1}}, "`vae.lora_alpha`; got -1"),
        ({"vae.alpha_pattern": ["conv_out"]}, "`vae.alpha_pattern`"),
        ({"vae.alpha_pattern": {f"name_{i}": 1 for i in range(2001)}}, "up to 2,000 names .* `vae.alpha_pattern`"),
        ({"vae.use_rslora": "yes"}, "True or False as `vae.use_rslora`; got 'yes'"),
        ({"vae.use_dora": True}, "have False as `vae.use_dora`; got True"),
        ({"vae.bias": "all"}, "have 'none' as `vae.bias`; got 'all'"),
        ({"vae.bias": np.ones(2)}, "`vae.bias`"),
        ({"vae.alpha_pattern": np.ones(2)}, "`vae.alpha_pattern`"),
        ({"vae.lora_bias": True}, "`vae.lora_bias`"),
        ({"vae.modules_to_save": ["decoder.conv_in"]}, r"`vae.modules_to_save`; got \['decoder.conv_in'\]"),
        ({"vae.init_lora_weights": "pissa"}, "`vae.init_lora_weights`"),
        ({"vae.layer_replication": [[0, 1]]}, "`vae.layer_replication`"),
        ({"vae.peft_type": "LOKR"}, "`vae.peft_type`"),
        ({"vae.target_parameters": ["weight"]}, "`vae.target_parameters`"),
        ({3: 4}, "`metadata` of a LoRA must be a dict"),
        (
            {KEY: lambda weight: weight.to(torch.int8)},
            "finite floating-point tensors up to 1e4; got .*conv_out.* of torch.int8",
        ),
        ({KEY: lambda weight: weight.to(torch.float8_e4m3fn)}, "finite floating-point"),
        ({KEY: lambda weight: weight.to(torch.complex64)}, "finite floating-point"),
        ({KEY: lambda weight: weight.to("meta")}, "finite floating-point"),
        ({KEY: lambda weight: weight.to_sparse()}, "finite floating-point"),
        ({KEY: lambda weight: weight * torch.nan}, "finite floating-point"),
        ({KEY: lambda weight: weight * 0 - 20000}, "finite floating-point tensors up to 1e4"),
        ({KEY: lambda weight: weight * 0 + 1e30}, "finite floating-point tensors up to 1e4"),
        ({KEY: lambda weight: weight.double() * 0 + 1e300}, "finite floating-point tensors up to 1e4"),
        ({KEY: lambda weight: weight.numpy()}, "finite floating-point .* of <class 'numpy.ndarray'>"),
        ({KEY: lambda weight: weight[:1]}, "conv_out.lora_B.weight of shape"),
        ({KEY: lambda weight: weight[:0]}, "conv_out.lora_A.weight of shape"),
        ({KEY: lambda weight: weight[..., 0]}, "conv_out.lora_A.weight of shape"),
        ({KEY.replace("_A", "_B"): lambda weight: weight[..., 0]}, "conv_out.lora_B.weight of shape"),
        ({KEY.replace("lora_A.weight", "lora_B.bias"): torch.zeros(3)}, "conv_out.lora_B.bias of shape"),
        ({KEY.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(1, 3, 1, 1)}, "DoRA in all layers"),
        ({"unet.conv_in.base_layer.lora_A.weight": torch.zeros(2, 14, 3, 3)}, "base_layer.* without layer or partner"),
        ({"unet.conv_norm_out.lora_A.weight": torch.zeros(2)}, "conv_norm_out.* without layer or partner"),
        ({5: torch.zeros(2)}, "got 5 without layer or partner"),
    ],
)
def test_a_refused_load_changes_nothing(subjects, attached, change, message):
    pipe, before = attached
    weights, metadata = read(subjects / "carl")
    for key, value in change.items():
        target = weights if callable(value) or isinstance(value, torch.Tensor) else metadata
        target[key] = value(weights[key]) if callable(value) else value
    for hotswap in (False, True):
        with pytest.raises(ValueError, match=message) as error:
            pipe.load_lora_weights(weights, "anna" if hotswap else "carl", hotswap, metadata=metadata)
        assert "`" in str(error.value) and len(str(error.value)) < 400
    assert pipe.get_list_adapters() == dict.fromkeys(TARGETS, ["anna"])
    assert torch.equal(render(pipe), before)


BROKEN = ["{", "[1]", "[" * 100_000, '{"unet.r": NaN}', '{"vae.lora_alpha": Infinity}', f'{{"unet.r": {"9" * 5000}}}']


@pytest.mark.parametrize("text", BROKEN)
def test_broken_metadata_of_a_file_is_one_error(subjects, attached, tmp_path, text):
    pipe, before = attached
    save_file(load_file(subjects / "carl" / FILE), tmp_path / FILE, {"format": "pt", "lora_adapter_metadata": text})
    with pytest.raises(ValueError, match="must be safetensors, and its metadata JSON|`metadata` of a LoRA must"):
        pipe.load_lora_weights(tmp_path)
    assert pipe.get_list_adapters() == dict.fromkeys(TARGETS, ["anna"]) and torch.equal(render(pipe), before)


@pytest.mark.parametrize("name", ["items", "forward", "training", "lora_A", "lora_anna", "a" * 101, 5, ["anna"], ""])
def test_names_that_a_module_dict_cannot_hold_are_refused(subjects, attached, name):
    """PEFT stores a subject's weights under its name in a `ModuleDict`, which refuses its own attributes half-way."""
    pipe, before = attached
    with pytest.raises(ValueError, match="`adapter_name` must"):
        pipe.load_lora_weights(subjects / "carl", adapter_name=name)
    assert torch.equal(render(pipe), before)


CONVOLUTIONS = {**TARGETS, "vae": r"decoder\..*(conv1|conv2|conv_out)"}


@pytest.mark.parametrize(
    "components, settings, message",
    [
        (CONVOLUTIONS, {}, "other layers .*conv2.* in `vae`"),
        (TARGETS, {"use_dora": True}, "DoRA"),
        (TARGETS, {"use_rslora": True}, "rsLoRA"),
    ],
    ids=["convolutions", "dora", "rslora"],
)
def test_a_refused_hotswap_changes_nothing(attached, components, settings, message):
    pipe, before = attached
    weights, metadata = make_subject(components, **settings)
    with pytest.raises(ValueError, match=f"`hotswap` needs the same layers and kind .*{message}"):
        pipe.load_lora_weights(weights, "anna", hotswap=True, metadata=metadata)
    assert pipe.get_list_adapters() == dict.fromkeys(TARGETS, ["anna"]) and torch.equal(render(pipe), before)


def test_hotswap_of_a_fused_subject_is_refused(subjects):
    pipe = get_dummy_pipeline()
    plain = render(pipe)
    pipe.load_lora_weights(subjects / "anna", adapter_name="anna")
    pipe.fuse_lora()
    fused = render(pipe)
    with pytest.raises(ValueError, match="`hotswap` needs an unfused subject; got 'anna' fused into `unet`"):
        pipe.load_lora_weights(subjects / "carl", adapter_name="anna", hotswap=True)
    assert torch.equal(render(pipe), fused) and pipe.fused_loras == {"anna"}
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    torch.testing.assert_close(render(pipe), plain, atol=1e-4, rtol=0)


@pytest.mark.parametrize("hotswap", [False, True])
@pytest.mark.parametrize("offload", [False, True])
def test_a_load_that_fails_half_way_is_undone(subjects, monkeypatch, hotswap, offload):
    """The third component fails, once before and once after it was changed; also with hooks of offloading."""
    pipe = get_dummy_pipeline()
    pipe.load_lora_weights(subjects / "anna", adapter_name="anna")
    if not hotswap:  # next to a subject that the third component does not have
        pipe.unload_lora_weights()
        pipe.load_lora_weights(subjects / "bert", adapter_name="bert")
        pipe.set_adapters("bert", 0.5)
    if offload:
        pipe.enable_model_cpu_offload(device="cpu")
    before, adapters, active = render(pipe), pipe.get_list_adapters(), pipe.get_active_adapters()
    names = {part: list(getattr(pipe, part).state_dict()) for part in TARGETS}
    load = type(pipe.vae).load_lora_adapter

    def fail(self, *args, **kwargs):
        if late:
            load(self, *args, **{**kwargs, "_pipeline": None})
        raise MemoryError("as a full GPU does")

    for late in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(type(pipe.vae), "load_lora_adapter", fail)
            patch.setattr("diffusers.pipelines.pipeline_utils.get_device", lambda: "cpu:0")
            with pytest.raises(MemoryError):
                pipe.load_lora_weights(subjects / "carl", "anna" if hotswap else "carl", hotswap)
        assert (pipe.get_list_adapters(), pipe.get_active_adapters()) == (adapters, active)
        assert names == {part: list(getattr(pipe, part).state_dict()) for part in TARGETS}
        assert torch.equal(render(pipe), before)
        assert hasattr(pipe.unet, "_hf_hook") == offload
    with pytest.raises(MemoryError), monkeypatch.context() as patch:  # with a clean base
        patch.setattr(type(pipe.vae), "load_lora_adapter", fail)
        fresh = get_dummy_pipeline()
        fresh.load_lora_weights(subjects / "carl")
    assert fresh.get_list_adapters() == {} and torch.equal(render(fresh), render(get_dummy_pipeline()))
    assert not any(hasattr(layer, "base_layer") for part in TARGETS for layer in getattr(fresh, part).modules())


def test_metadata_that_peft_would_run_is_ignored(subjects, attached, warnings_of_pipeline):
    """Layers come from the weights. Fields that the installed PEFT does not know are one warning."""
    weights, metadata = read(subjects / "anna")
    hang = "([a-z_0-9.]+)+X"
    for part in TARGETS:
        metadata |= {f"{part}.{field}": hang for field in ("target_modules", "exclude_modules", "layers_pattern")}
        metadata |= {f"{part}.layers_to_transform": [7], f"{part}.lora_dropout": 0.9, f"{part}.of_peft_1_0": {"a": 1}}
    metadata |= {"text_encoder.r": 5, "unet.init_lora_weights": "gaussian", "unet.bias": None}
    pipe = get_dummy_pipeline()
    pipe.load_lora_weights(weights, adapter_name="anna", metadata=metadata)
    pipe.set_adapters("anna", 0.5)
    assert torch.equal(render(pipe), attached[1])
    assert len(set(warnings_of_pipeline.messages)) == 1 and "of_peft_1_0" in warnings_of_pipeline.text


def test_rank_and_alpha_of_single_layers(subjects, tmp_path):
    """Names in patterns are literal: the end of a path, or all of it after "^", with or without backslashes."""
    patterns = {"rank_pattern": {r"^conv_in": 3, "to_out.0": 5}, "alpha_pattern": {r"attn1\.to_q": 10, "^conv_in": 9}}
    weights, metadata = make_subject({"unet": TARGETS["unet"]}, **patterns)
    pipe = get_dummy_pipeline()
    pipe.load_lora_weights(weights, adapter_name="anna", metadata=metadata)
    own = get_dummy_components()["unet"]
    own.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS["unet"], **patterns), "anna")
    scalings = {p: layer.scaling for p, layer in own.named_modules() if hasattr(layer, "scaling")}
    assert {p: layer.scaling for p, layer in pipe.unet.named_modules() if hasattr(layer, "scaling")} == scalings
    assert {str(scaling) for scaling in scalings.values()} == {f"{{'anna': {s}}}" for s in (3.0, 5.0, 1.2)}
    assert pipe.unet.conv_in.r == {"anna": 3}
    DreamPosePipeline.save_lora_weights(  # what was loaded can be saved and loaded again
        tmp_path,
        get_peft_model_state_dict(pipe.unet, adapter_name="anna"),
        unet_lora_adapter_metadata=pipe.unet.peft_config["anna"].to_dict(),
    )
    again = get_dummy_pipeline()
    again.load_lora_weights(tmp_path, adapter_name="anna")
    assert torch.equal(render(again), render(pipe))
    # a hotswap brings its own ranks and alphas, layer by layer
    other, other_metadata = make_subject({"unet": TARGETS["unet"]}, alpha=1, seed=9)
    swapped = get_dummy_pipeline()
    swapped.load_lora_weights(other, adapter_name="anna", metadata=other_metadata)
    swapped.load_lora_weights(tmp_path, "anna", hotswap=True)
    assert {p: layer.scaling for p, layer in swapped.unet.named_modules() if hasattr(layer, "scaling")} == scalings
    assert torch.equal(render(swapped), render(pipe))
    assert swapped.unet.peft_config["anna"].alpha_pattern == pipe.unet.peft_config["anna"].alpha_pattern


def test_a_failed_hotswap_restores_prepared_scales(monkeypatch):
    """After `enable_lora_hotswap` scales are tensors, which a swap changes in place."""
    small, large = make_subject(alpha=4, r=4), make_subject(alpha=16, r=8, seed=6)
    pipe = get_dummy_pipeline()
    pipe.enable_lora_hotswap(target_rank=8)
    pipe.load_lora_weights(small[0], "swap", metadata=small[1])
    before = render(pipe)

    def fail(self, *args, **kwargs):
        raise MemoryError("as a full GPU does")

    monkeypatch.setattr(type(pipe.vae), "load_lora_adapter", fail)
    with pytest.raises(MemoryError):
        pipe.load_lora_weights(large[0], "swap", hotswap=True, metadata=large[1])
    assert pipe.unet.conv_in.scaling["swap"] == 1.0 and torch.equal(render(pipe), before)


@pytest.mark.parametrize("prepared", [False, True])
def test_scales_after_a_hotswap(prepared):
    """`set_adapters` counts from the new file's alpha and rank. A scale that was set before stays."""
    small, large = make_subject(alpha=4, r=4), make_subject(alpha=16, r=8, seed=6)
    direct, pipe = get_dummy_pipeline(), get_dummy_pipeline()
    direct.load_lora_weights(large[0], "swap", metadata=large[1])
    if prepared:
        pipe.enable_lora_hotswap(target_rank=8)
    pipe.load_lora_weights(small[0], "swap", metadata=small[1])
    assert isinstance(pipe.unet.conv_in.scaling["swap"], torch.Tensor) == prepared
    pipe.load_lora_weights(large[0], "swap", hotswap=True, metadata=large[1])
    assert isinstance(pipe.unet.conv_in.scaling["swap"], torch.Tensor) == prepared
    assert torch.equal(render(pipe), render(direct)) and pipe.unet.conv_in.scaling["swap"] == 2.0
    assert type(pipe.unet.conv_in.lora_A["swap"].weight) is torch.nn.Parameter
    assert large[0]["unet.conv_in.lora_A.weight"].shape[0] == 8, "a swap leaves the given weights alone"
    for pipeline in (pipe, direct):
        pipeline.set_adapters("swap", 0.5)
        assert pipeline.unet.conv_in.scaling["swap"] == pipeline.adapter.token_mixer.scaling["swap"] == 1.0
    assert torch.equal(render(pipe), render(direct))
    pipe.load_lora_weights(small[0], "swap", hotswap=True, metadata=small[1])
    assert pipe.unet.conv_in.scaling["swap"] == 0.5  # half of 4 / 4
    pipe.load_lora_weights(large[0], "swap", hotswap=True, metadata=large[1])
    assert pipe.unet.conv_in.scaling["swap"] == 1.0 and torch.equal(render(pipe), render(direct))


def test_compiled_models(subjects, attached):
    """All methods act on the models inside the wrappers of `torch.compile`. Eager runs keep the test short."""
    pipe = get_dummy_pipeline()
    plain = render(pipe)
    wrappers = {part: torch.compile(getattr(pipe, part), backend="eager") for part in ("unet", "adapter")}
    for part, wrapper in wrappers.items():
        setattr(pipe, part, wrapper)
    with torch.compiler.set_stance("force_eager"):
        pipe.load_lora_weights(subjects / "anna", adapter_name="anna")
        assert pipe.get_list_adapters() == dict.fromkeys(TARGETS, ["anna"]) and pipe.get_active_adapters() == ["anna"]
        pipe.set_adapters("anna", 0.5)
        assert torch.equal(render(pipe), attached[1])
        pipe.load_lora_weights(subjects / "carl", adapter_name="anna", hotswap=True)
        pipe.fuse_lora()
        assert not torch.equal(render(pipe), attached[1])
        pipe.unfuse_lora()
        pipe.unload_lora_weights()
        assert pipe.get_list_adapters() == {}
        assert all(getattr(pipe, part) is wrapper for part, wrapper in wrappers.items())
        torch.testing.assert_close(render(pipe), plain, atol=1e-4, rtol=0)
    wrapper = torch.compile(pipe.adapter._orig_mod, backend="eager")
    pipe.adapter = wrapper
    pipe.load_lora_weights(subjects / "anna", adapter_name="anna")
    pipe.set_adapters("anna", 0.5)
    with torch.no_grad():
        inputs = torch.randn(1, 5, 16), torch.randn(1, 4, 16, 12)
        torch.testing.assert_close(wrapper(*inputs), attached[0].adapter(*inputs), atol=1e-5, rtol=0)


def test_weights_by_name_take_their_metadata(subjects, attached, warnings_of_pipeline):
    weights, metadata = read(subjects / "anna")
    shuffled = dict(reversed(weights.items()))
    pipe = get_dummy_pipeline()
    pipe.load_lora_weights(shuffled, adapter_name="anna", metadata=metadata)
    pipe.set_adapters("anna", 0.5)
    assert torch.equal(render(pipe), attached[1]) and not warnings_of_pipeline.records
    pipe.load_lora_weights(weights, adapter_name="bert")
    assert "no `metadata`, so the alpha of each layer is taken to be its rank" in warnings_of_pipeline.text
    assert pipe.unet.conv_in.scaling == {"anna": ALPHA / RANK / 2, "bert": 1.0}


def test_a_vae_without_lora(subjects):
    """If the VAE cannot have a LoRA, the other components still get theirs."""
    vae = AutoencoderTiny(encoder_block_out_channels=(4,) * 4, decoder_block_out_channels=(4,) * 4)
    pipe = get_dummy_pipeline()
    pipe.vae = vae
    pipe.load_lora_weights(subjects / "bert", adapter_name="bert")
    pipe.set_adapters("bert", 0.5)
    assert pipe.get_list_adapters() == {"unet": ["bert"], "adapter": ["bert"]}
    with pytest.raises(ValueError, match="got vae.* without layer or partner"):
        pipe.load_lora_weights(subjects / "anna")
    pipe.unload_lora_weights()
    assert pipe.get_list_adapters() == {}


def test_a_pipeline_without_a_unet_has_no_adapters():
    pipe = get_dummy_pipeline(unet=None)
    pipe.unload_lora_weights()
    assert pipe.get_list_adapters() == {}
