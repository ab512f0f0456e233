"""Whatever diffusers offers to save memory or time changes where and how the models run, never the video."""

import pytest
import torch
from accelerate import cpu_offload

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
    # What `enable_sequential_cpu_offload` does; that calls the device "cpu:0", which accelerate takes for another one
    for model in pipe.components.values():
        if isinstance(model, torch.nn.Module):
            cpu_offload(model, torch.device("cpu"), offload_buffers=len(model._parameters) > 0)
    assert {parameter.device.type for parameter in pipe.unet.parameters()} == {"meta"}
    assert torch.equal(render(pipe, chunk_size=2), expected)
    assert torch.equal(render(pipe, chunk_size=2), expected), "a second call finds its models again"


def test_slices_and_tiles_stay_near(expected):
    pipe = get_dummy_pipeline()
    pipe.enable_attention_slicing()
    pipe.vae.enable_slicing()
    torch.testing.assert_close(render(pipe, chunk_size=2), expected, atol=1e-5, rtol=0)
    pipe.vae.enable_tiling()  # no tile is smaller than these pictures
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
