"""Fixtures that several test files share. A file overrides one by defining a fixture of the same name."""

import gc
import signal
import weakref

import pytest
import torch
from accelerate.state import AcceleratorState

from pipeline_dreampose import DreamPosePipeline
from tests.animating import Killed
from tests.densepose_exports import TupleExport
from tests.tiny_components import get_dummy_components
from training.data.frame_pairs import LatentShape
from training.data.procedural_fashion import load_procedural_fashion
from training.media import animation
from training.metrics.clips import Clips


def pytest_configure():
    """Enable Ctrl-C, which background jobs of a shell ignore: some tests send it to the processes that they start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish():
    """Exclude the imported libraries from garbage collection, which is faster without them."""
    gc.freeze()


def reset_accelerate():
    """Reset accelerate, which keeps one setting for all accelerators of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    yield
    reset_accelerate()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A data set of six videos of six frames, 80 x 64 pixels."""
    return load_procedural_fashion("smoke", "train", cache_dir=str(tmp_path_factory.mktemp("datasets")))


@pytest.fixture(scope="module")
def odd_frames(dataset, tmp_path_factory):
    """A prepared folder with the split `validation`: three videos with a frame size that no UNet can halve."""
    names, box, folder = ("image", "iuv", "layers"), (1, 2, 62, 79), tmp_path_factory.mktemp("odd")
    rows = dataset.select(range(18)).map(lambda row: {name: row[name].crop(box) for name in names})
    (folder / "data").mkdir()
    rows.to_parquet(folder / "data" / "validation-00000-of-00001.parquet")
    return folder


@pytest.fixture
def clips_held(monkeypatch):
    """A list with the number of clips in memory after each read."""
    read, references, held = Clips.__getitem__, [], []

    def count(self, index):
        references.append(weakref.ref(clip := read(self, index)))
        held.append(sum(reference() is not None for reference in references))
        return clip

    monkeypatch.setattr(Clips, "__getitem__", count)
    return held


@pytest.fixture(scope="module")
def pipeline():
    """A tiny pipeline for the size of these frames."""
    pipeline = DreamPosePipeline(**get_dummy_components(), default_height=80, default_width=64)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def shape(pipeline):
    """The sizes of these frames and their latents."""
    return LatentShape.of(pipeline.vae, 80, 64)


@pytest.fixture(scope="module")
def densepose(tmp_path_factory):
    """File of a fake DensePose that returns the picture itself as IUV, and nobody for a black picture."""
    path = tmp_path_factory.mktemp("densepose") / "model.pt"
    torch.jit.script(TupleExport()).save(path)
    return path


@pytest.fixture
def kill_after(monkeypatch):
    """A function that lets `animate.py` render a number of frames, then kills it; it returns the list of them."""
    write = animation.write_frame

    def prepare(num_frames):
        rendered = []

        def limited(frame, path):
            if path.parent.suffix == ".frames":
                if len(rendered) == num_frames:
                    raise Killed
                rendered.append(int(path.stem))
            write(frame, path)

        monkeypatch.setattr(animation, "write_frame", limited)
        return rendered

    return prepare
