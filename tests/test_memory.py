"""The ways in which diffusers saves memory or time do not change the video."""

import subprocess
import sys
import weakref

import pytest
import torch
from accelerate import cpu_offload
from diffusers import PipelineQuantizationConfig, TorchAoConfig
from torchao.quantization import Int8WeightOnlyConfig

from pipeline_dreampose import DreamPosePipeline
from tests.launch import ROOT
from tests.tiny_components import get_dummy_inputs, get_dummy_pipeline


def render(pipe, **kwargs):
    return pipe(**get_dummy_inputs(), **kwargs).frames


@pytest.fixture(scope="module")
def expected():
    return render(get_dummy_pipeline(), chunk_size=2)


@pytest.mark.parametrize("offload_type", ["leaf_level", "block_level"])
def test_group_offload_changes_nothing(expected, offload_type):
    pipe = get_dummy_pipeline()
    device = torch.device("cpu")
    blocks = {"num_blocks_per_group": 1} if offload_type == "block_level" else {}
    pipe.enable_group_offload(onload_device=device, offload_device=device, offload_type=offload_type, **blocks)
    assert torch.equal(render(pipe, chunk_size=2), expected)


def test_sequential_offload_changes_nothing(expected):
    pipe = get_dummy_pipeline()
    # `enable_sequential_cpu_offload` does the same, but with "cpu:0", which accelerate takes for another device
    for model in pipe.components.values():
        if isinstance(model, torch.nn.Module):
            cpu_offload(model, torch.device("cpu"), offload_buffers=len(model._parameters) > 0)
    assert {parameter.device.type for parameter in pipe.unet.parameters()} == {"meta"}
    assert torch.equal(render(pipe, chunk_size=2), expected)
    assert torch.equal(render(pipe, chunk_size=2), expected), "a second call also works"


def test_slices_and_tiles_stay_near(expected):
    pipe = get_dummy_pipeline()
    pipe.enable_attention_slicing()
    pipe.vae.enable_slicing()
    torch.testing.assert_close(render(pipe, chunk_size=2), expected, atol=1e-5, rtol=0)
    pipe.vae.enable_tiling()  # these pictures fit into one tile
    torch.testing.assert_close(render(pipe, chunk_size=2), expected, atol=1e-5, rtol=0)


def test_layerwise_casting_stores_less_and_stays_near(expected):
    pipe = get_dummy_pipeline()
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert torch.float8_e4m3fn in {parameter.dtype for parameter in pipe.unet.parameters()}
    frames = render(pipe, chunk_size=2)
    assert torch.isfinite(frames).all() and (frames - expected).abs().mean() < 0.1


@pytest.mark.slow
def test_a_compiled_unet_is_compiled_once_for_all_chunks(expected):
    torch._dynamo.reset()
    pipe = get_dummy_pipeline()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    pipe.unet = torch.compile(pipe.unet, backend=backend)
    first = render(pipe, chunk_size=5)
    num_graphs = len(graphs)
    torch.testing.assert_close(first, expected, atol=1e-4, rtol=0)
    assert num_graphs > 0

    torch._dynamo.reset()
    graphs.clear()
    pipe = get_dummy_pipeline()
    pipe.unet = torch.compile(pipe.unet, backend=backend)
    inputs = {**get_dummy_inputs(), "pose_maps": get_dummy_inputs()["pose_maps"] * 2}
    pipe(**inputs, chunk_size=5)  # two chunks
    assert len(graphs) == num_graphs


def test_an_int8_unet_stays_near(expected, tmp_path):
    get_dummy_pipeline().save_pretrained(tmp_path)
    quantization_config = PipelineQuantizationConfig(quant_mapping={"unet": TorchAoConfig(Int8WeightOnlyConfig())})
    pipe = DreamPosePipeline.from_pretrained(tmp_path, quantization_config=quantization_config)
    linear = [layer for layer in pipe.unet.modules() if isinstance(layer, torch.nn.Linear)]
    assert {type(layer.weight).__name__ for layer in linear} == {"Int8Tensor"}
    difference = (render(pipe, chunk_size=2) - expected).abs()
    assert 0 < difference.mean() < 0.01 and difference.max() < 0.05


@pytest.mark.parametrize("output_type", ["pil", "np"])
def test_a_stream_keeps_no_finished_frames(output_type):
    """At most the frames of two chunks are in memory: the one being read, and the one before it."""
    inputs = {**get_dummy_inputs(), "pose_maps": get_dummy_inputs()["pose_maps"] * 4, "output_type": output_type}
    frames, most = [], 0
    for frame in get_dummy_pipeline().stream(**inputs, num_inference_steps=1, chunk_size=2):
        frames.append(weakref.ref(frame if output_type == "pil" else frame.base))  # a chunk is one array
        del frame
        most = max(most, sum(reference() is not None for reference in frames))
    assert len(frames) == 20 and most <= 4


@pytest.mark.slow
def test_peak_memory_grows_only_by_the_finished_frames():
    """Runs in its own process, so that its peak memory is the pipeline's."""
    script = """
import resource
import torch
from tests.tiny_components import get_dummy_image, get_dummy_pipeline
pipe = get_dummy_pipeline()
pipe.set_progress_bar_config(disable=True)
def peak_mb(num_frames):
    poses = torch.rand(num_frames, 2, 64, 48)
    frames = pipe(get_dummy_image(0, 64, 48), poses, height=64, width=48, num_inference_steps=1, chunk_size=8,
                  output_type="pt").frames
    assert frames.shape[1] == num_frames
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
peak_mb(8)
print(peak_mb(16), peak_mb(272))
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    few, many = map(float, result.stdout.split())
    # each frame: 3 channels, twice due to stacking, and 2 channels of pose map, as given and as fitted; 4 bytes each
    per_frame = 64 * 48 * 4 * (2 * 3 + 2 * 2) / 2**20
    assert many - few < 256 * per_frame + 16, (few, many)
