"""Subjects (LoRAs of UNet, adapter and VAE in one file): attached, switched, fused, saved and unloaded."""

import json
import logging
import socket

import diffusers
import huggingface_hub
import pytest
import torch
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
        assert ("was trained on someone/base; this model is someone/other" in caplog.text) == warns
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
    with pytest.raises(ValueError, match="`hotswap` must replace 'other'"):
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
    assert "was trained on someone/base; this model is someone/other" in caplog.text
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
    with pytest.raises(ValueError, match="`adapter_name` must be new unless `hotswap=True`; 'anna' is attached"):
        pipe.load_lora_weights(subjects / "anna", adapter_name="anna")
    with pytest.raises(ValueError, match="`unet_lora_layers`, .* must be given; got none"):
        DreamPosePipeline.save_lora_weights(tmp_path)
