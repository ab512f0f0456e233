"""`animate.py --driving`: a video of anybody drives a photo, in one command."""

import av
import numpy as np
import pytest
import torch
from PIL import Image

import animate
from pipeline_dreampose import DreamPosePipeline
from tests.densepose_exports import TupleExport
from tests.tiny_components import get_dummy_image, get_dummy_pipeline
from training.data.procedural_fashion import ProceduralFashionConfig


FRAMES = 6


@pytest.fixture(scope="module")
def drawn():
    """IUV pictures of a drawn clip, 80 x 64 pixels. The fake DensePose returns a picture as it is."""
    clip = ProceduralFashionConfig(name="driver", num_frames=FRAMES).clip("test", 0, 0, range(FRAMES))
    return [Image.fromarray(frame.iuv) for frame in clip]


def write_lossless(path, frames, fps=25):
    with av.open(path, "w") as container:
        stream = container.add_stream("ffv1", rate=fps)
        stream.width, stream.height, stream.pix_fmt = *frames[0].size, "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame).reformat(format="bgr0")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, drawn):
    """Arguments that name a model, a photo, a video of IUV pictures and the fake DensePose."""
    folder = tmp_path_factory.mktemp("inputs")
    get_dummy_pipeline().save_pretrained(folder / "model")
    get_dummy_image().save(folder / "photo.png")
    write_lossless(folder / "dance.mkv", drawn)
    torch.jit.script(TupleExport()).save(folder / "model.pt")
    return {
        "--model": folder / "model", "--image": folder / "photo.png", "--driving": folder / "dance.mkv",
        "--densepose": folder / "model.pt", "--align": "none", "--scale": 1, "--device": "cpu",
    }  # fmt: skip


def run(inputs, *more, **changes):
    arguments = {**inputs, **{"--" + name: value for name, value in changes.items()}}
    words = [str(word) for pair in arguments.items() if pair[1] is not None for word in pair]
    return animate.main(animate.parse_args([*words, *more]))


def inside(iuv):
    """Empty an IUV picture outside the box that the fake DensePose returns."""
    pixels = np.zeros_like(np.asarray(iuv))
    pixels[2:78, 4:60] = np.asarray(iuv)[2:78, 4:60]
    return Image.fromarray(pixels)


def test_a_video_drives_the_photo(inputs, drawn, tmp_path):
    frames = run(inputs, output=tmp_path / "video.mp4")
    pipe = DreamPosePipeline.from_pretrained(inputs["--model"])
    expected = pipe(get_dummy_image(), [inside(iuv) for iuv in drawn], generator=torch.Generator().manual_seed(0))
    assert [f.tobytes() for f in frames] == [f.tobytes() for f in expected.frames[0]]
