"""Memory of a step: hand-computed values on small modules, relations on whole ones, the report."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from benchmarks.speed.sampling_procedures import build_models
from benchmarks.subjects.memory import main, parse_args
from benchmarks.subjects.memory_counting import (
    LikeOnCuda,
    LiveBytes,
    bytes_by_dtype,
    count_step,
    optimizer_bytes,
    quantized_bytes,
    saved_for_backward,
)
from tests.launch import ROOT
from tests.tiny_components import get_dummy_pipeline
from training.models.denoiser import Denoiser
from training.models.lora import attached_lora, build_lora_configs


STORED = ROOT / "benchmarks" / "subjects" / "memory.json"


def empty(*shape, **kwargs):
    return torch.empty(*shape, device="meta", **kwargs)


def test_a_linear_layer_saves_its_input_and_makes_its_gradients():
    """Input [3,5], output [3,2], in float32."""
    layer, inputs = nn.Linear(5, 2, device="meta"), empty(3, 5)
    counted = count_step(lambda: layer(inputs).sum(), list(layer.parameters()))
    assert counted["saved_activations"] == 3 * 5 * 4
    # The loss, its gradient, and the gradients of weight and bias.
    assert counted["peak"] == 4 + 4 + (5 * 2 + 2) * 4
    layer.weight.requires_grad_(False)  # then no gradient needs the input
    assert count_step(lambda: layer(inputs).sum(), list(layer.parameters()))["saved_activations"] == 0


def test_a_storage_counts_once_and_excluded_tensors_do_not():
    inputs, weight = empty(3, 5, requires_grad=True), empty(5, requires_grad=True)
    with saved_for_backward([weight]) as saved:
        hidden = inputs.exp()  # saves its result
        (hidden.view(15) * hidden.view(15)).sum()  # saves the same storage twice more, as two views
        hidden * weight
    assert saved == {hidden.untyped_storage()._cdata: 3 * 5 * 4}


def test_live_bytes_follow_the_living_tensors():
    with LiveBytes() as live:
        first = empty(100)
        view = first[:10]
        second = first + 1
        assert live.now == 800
        del first
        assert live.now == 800, "the view keeps the storage"
        del view
        assert live.now == 400 and live.peak == 800
        second.add_(1)
        assert live.now == 400
    assert live.peak == 800


def test_a_checkpoint_saves_its_input_and_recomputes_the_rest():
    """Each of three exponentials of shape [10] saves its result, 40 bytes."""

    def run(inputs):
        return inputs.exp().exp().exp()

    inputs = empty(10, requires_grad=True)
    plain = count_step(lambda: run(inputs * 2).sum(), [inputs])
    again = count_step(lambda: checkpoint(run, inputs * 2, use_reentrant=False).sum(), [inputs])
    assert (plain["saved_activations"], again["saved_activations"]) == (120, 40)
    # The peak holds the input, three recomputed results, the loss, and gradients of the loss and of two results.
    assert again["peak"] >= 40 + 3 * 40


def test_attention_saves_inputs_output_and_one_number_per_row():
    query, key, value = (empty(1, 2, length, 8, requires_grad=True) for length in (4, 6, 6))
    counted = count_step(lambda: F.scaled_dot_product_attention(query, key, value).sum(), [])
    assert counted["saved_activations"] == 4 * (2 * 4 * 8 + 2 * (2 * 6 * 8) + 2 * 4 * 8 + 2 * 4)


def test_autocast_follows_cuda():
    convolution, norm = nn.Conv2d(4, 4, 1, device="meta"), nn.GroupNorm(2, 4, device="meta", dtype=torch.bfloat16)
    with LikeOnCuda(torch.bfloat16):
        hidden = convolution(empty(1, 4, 3, 3))
        assert hidden.dtype == torch.bfloat16 and norm(hidden).dtype == torch.float32
        assert F.silu(norm(hidden)).dtype == torch.float32 and F.silu(hidden).dtype == torch.bfloat16
        assert F.scaled_dot_product_attention(*[empty(1, 1, 2, 8)] * 3).dtype == torch.bfloat16
        assert F.mse_loss(hidden, hidden).dtype == torch.float32
    with LikeOnCuda():
        assert convolution(empty(1, 4, 3, 3)).dtype == torch.float32
    # The input in half precision, the result in float32, two numbers per group, and copies of both weights.
    convolution.requires_grad_(False)
    norm.requires_grad_(False)
    inputs, parameters = empty(1, 4, 3, 3, requires_grad=True), [*convolution.parameters(), *norm.parameters()]
    counted = count_step(lambda: norm(convolution(inputs)).sum(), parameters, torch.bfloat16)
    assert counted["saved_activations"] == 36 * 2 + 36 * 4 + 2 * 2 * 4 + (16 * 2 + 4 * 4)


def test_a_step_on_meta_counts_like_one_on_a_device():
    """The same module gives the same counts on meta and on the CPU."""
    pipe, results = get_dummy_pipeline(), []
    module = Denoiser(pipe.unet, pipe.adapter).requires_grad_(False)
    for place in ("cpu", "meta"):
        module.to(place)
        inputs = [torch.ones(2, channels, 16, 12, device=place) for channels in (4, 10)]
        timesteps, tokens = torch.ones(2, dtype=torch.long, device=place), torch.ones(2, 5, 16, device=place)
        with attached_lora({"unet": module.unet, "adapter": module.adapter}, build_lora_configs(2), seed=0):
            module.to(place)

            def forward():
                return module(inputs[0], timesteps, inputs[1], inputs[0], image_embeds=tokens).square().mean()

            results.append(count_step(forward, list(module.parameters())))
    assert results[0]["saved_activations"] == results[1]["saved_activations"] > 0
    assert results[0]["peak"] == pytest.approx(results[1]["peak"], rel=0.02)


def test_bytes_of_weights_and_moments():
    layer = nn.Linear(64, 2, device="meta").requires_grad_(False)
    assert bytes_by_dtype(layer.parameters()) == {"float32": (128 + 2) * 4}
    # Half a byte per weight, one float32 scale per 64 weights; the bias stays.
    assert quantized_bytes(layer) == {"float32": 2 * 4, "nf4": 64 + 2 * 4}
    parameters = [empty(4096), empty(10)]
    assert optimizer_bytes(parameters, use_8bit_adam=False) == 2 * 4 * 4106
    assert optimizer_bytes(parameters, use_8bit_adam=True) == 2 * (4096 + 16 * 4) + 2 * 4 * 10


@pytest.mark.slow
def test_the_report_shows_what_saves_memory(tmp_path):
    names = ("default", "default, activations kept", "smallest")
    words = ["--size", "tiny", "--settings", *names, "--output", str(tmp_path / "report.json")]
    report = main(parse_args(words))
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored["kind"] == "counted on the meta device" and stored["settings"] == report
    default, kept, smallest = (report[name]["bytes"] for name in names)
    for phase in ("denoiser", "decoder"):
        figures = default[phase]
        assert figures["saved_activations"] < kept[phase]["saved_activations"] / 2
        assert figures["step_peak"] < kept[phase]["step_peak"]
        assert smallest[phase]["optimizer"] < figures["optimizer"] == 2 * figures["gradients"]
        parts = sum(figures["parameters"].values()) + figures["optimizer"] + figures["gradients"]
        assert figures["total"] == parts + figures["step_peak"]
    assert set(smallest["denoiser"]["parameters"]) == {"bfloat16", "float32", "nf4"}
    # The encoders are on the GPU only while they encode.
    encoders = sum(default["encoding"]["parameters"].values()) - sum(default["denoiser"]["parameters"].values())
    models = build_models("tiny")
    assert encoders == sum(p.nbytes for name in ("vae", "image_encoder") for p in models[name].parameters())


@pytest.mark.slow
def test_the_gpu_measurement_runs_on_the_cpu_without_figures(tmp_path):
    words = ["--size", "tiny", "--settings", "default", "bf16", "--device", "cpu", "--steps", "1"]
    report = main(parse_args([*words, "--output", str(tmp_path / "new" / "report.json")]))
    assert set(report) == {"default", "bf16"}, "one precision after the other"
    assert report["default"]["max_memory_allocated"] == {"denoiser": None, "decoder": None}


@pytest.mark.skipif(torch.cuda.is_available(), reason="only a machine without CUDA refuses")
def test_a_measurement_without_cuda_is_refused_before_anything_runs():
    with pytest.raises(ValueError, match="`device` must be meta or cpu where there is no CUDA, got cuda"):
        main(parse_args(["--device", "cuda"]))
    with pytest.raises(ValueError, match="quantize_base"):
        main(parse_args(["--device", "cpu", "--settings", "default", "smallest"]))


def test_the_stored_figures_stay_within_the_limits_and_match_the_page():
    report = json.loads(STORED.read_text())
    assert report["kind"] == "counted on the meta device" and report["size"] == "full"
    totals = {
        name: max(figures["total"] for figures in entry["bytes"].values())
        for name, entry in report["settings"].items()
    }
    assert totals["default"] < 10e9 and totals["smallest"] < 8e9
    phases = report["settings"]["bf16"]["bytes"]
    totals["without the decoder"] = max(phases[name]["total"] for name in ("encoding", "denoiser"))
    page = (ROOT / "docs" / "subjects.md").read_text()
    table = page[page.index("| setting | GB |") :].split("\n\n")[0].splitlines()[2:]
    names = ("default", "default, a batch of 4 at once", "bf16", "without the decoder")
    assert [row.split("|")[-2].strip() for row in table] == [f"{totals[name] / 1e9:.1f}" for name in names]
