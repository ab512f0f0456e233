"""A table of bad calls over all arguments of the pipeline: each is one `ValueError`, before a model runs."""

import inspect
import itertools
import warnings
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from unittest import mock

import diffusers
import numpy as np
import pytest
import torch
from diffusers.callbacks import PipelineCallback
from PIL import Image

from pipeline_dreampose import DreamPosePipeline
from tests.tiny_components import (
    HEIGHT,
    LATENT_CHANNELS,
    LATENT_HEIGHT,
    LATENT_WIDTH,
    NUM_FRAMES,
    WIDTH,
    get_dummy_components,
    get_dummy_image,
    get_dummy_inputs,
    get_dummy_iuv,
    get_dummy_pipeline,
)


HUGE = 10**400  # no float holds it
DIGITS = 10**5000  # Python refuses to print it
LATENTS = (1, LATENT_CHANNELS, LATENT_HEIGHT, LATENT_WIDTH)
NAN, INF = float("nan"), float("inf")


class Odd:
    """An object of an unknown class that fails to show itself."""

    def __repr__(self):
        raise RuntimeError("no repr")

    def __eq__(self, other):
        return False

    __hash__ = None


NOT_WHOLE = [0, -1, 2.5, 4.0, "4", b"4", [4], (4, 4), {}, Odd(), NAN, INF, -INF, -HUGE, -DIGITS, 4j]
NOT_WHOLE += [Fraction(1, 3), Decimal(4), np.float64(4), np.array([4]), torch.tensor(4), torch.tensor(4.0), object]
NOT_A_SCALE = [-1, -0.5, -1e-9, NAN, INF, -INF, HUGE, -HUGE, DIGITS, 1e308, 1001, np.float32("inf"), np.nan]
NOT_A_SCALE += ["3", b"3", [3], (), {}, Odd(), 2j, Decimal(3), Fraction(-1, 2), np.array(3.0), torch.tensor(3.0)]


def odd_tensors(shape):
    """Tensors of a good shape with an unusable memory layout or unusable numbers."""
    yield torch.zeros(shape, device="meta")
    yield torch.zeros(shape).to_sparse()
    yield torch.zeros(shape, dtype=torch.complex64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantised tensors are deprecated
        quantized = torch.quantize_per_tensor(torch.zeros(shape), 0.1, 0, torch.quint8)
        nested = torch.nested.nested_tensor([torch.zeros(shape[1:])] * shape[0])
    yield quantized
    yield nested
    yield torch.full(shape, NAN)
    yield torch.full(shape, INF)
    yield torch.full(shape, -INF)


def odd_arrays(shape):
    """Arrays of a good shape that hold no real numbers, or unusable ones."""
    for kind in ("O", "U3", "S3", "c8", "M8[s]", "m8[s]", "V4"):
        yield np.zeros(shape, dtype=kind)
    yield np.zeros(shape, dtype=[("a", "f4")])
    for value in (NAN, INF, -INF, -1e-3, 1.5, 1e300):
        yield np.full(shape, value)


def bad_images():
    photo = get_dummy_image()
    yield from (
        None,
        5,
        "photo.png",
        b"\x89PNG",
        Path("photo.png"),
        {},
        {"image": photo},
        Odd(),
        object,
        iter([photo]),
    )
    yield from ([], (), [[]], [[photo], []], [None], [photo, None], [[photo, "other"]], [[[photo]]])
    yield from (Image.new("RGB", size) for size in ((0, 0), (0, 5), (5, 0)))
    closed = Image.new("RGB", (4, 4))
    closed.close()
    yield closed
    yield from odd_arrays((8, 8, 3))
    yield from odd_tensors((3, 8, 8))
    yield from (np.zeros(shape, np.uint8) for shape in ((), (3,), (8, 8), (8, 8, 4), (3, 8, 8), (8, 8, 1), (0, 8, 3)))
    yield from (np.zeros(shape, np.uint8) for shape in ((8, 0, 3), (0, 8, 8, 3), (1, 0, 8, 3), (1, 1, 8, 8, 3)))
    yield from (
        torch.zeros(shape) for shape in ((), (8, 8), (4, 8, 8), (8, 8, 3), (3, 0, 8), (0, 3, 8, 8), (2, 1, 3, 8, 8))
    )
    yield np.full((8, 8, 3), 200, np.int64)
    yield np.full((8, 8, 3), 60000, np.uint16)
    yield torch.full((3, 8, 8), 255.0)
    yield from (Image.new("F", (8, 8), value) for value in (-0.5, 300.0, 65535.0, NAN, INF))
    yield from (Image.new("I", (8, 8), value) for value in (-1, 65536))


def bad_pose_maps():
    iuv, frame = get_dummy_iuv(), (NUM_FRAMES, 2, HEIGHT, WIDTH)
    yield from (None, 5, "poses", b"", {}, {0: iuv}, iuv, Odd(), object, iter([iuv]), range(3))
    yield from ([], (), [[]], [[], []], [None], [iuv, None], [iuv, [iuv]], [[iuv], [iuv, iuv]], [[iuv], []], ["a.png"])
    yield from ([Image.new("RGB", size)] for size in ((0, 0), (0, 5), (5, 0)))
    yield from ([Image.new(mode, (8, 8))] for mode in ("L", "RGBA", "P", "I", "F", "1", "CMYK", "HSV", "I;16"))
    yield from ([Image.new("RGB", (8, 8), color)] for color in ((0, 0, 25), (68, 1, 84), (53, 42, 135), (0, 0, 255)))
    yield [iuv, get_dummy_iuv(height=16)]
    yield from odd_arrays(frame)
    yield from odd_tensors(frame)
    for shape in (
        (),
        (2,),
        (2, 8, 8),
        (3, 1, 8, 8),
        (3, 3, 8, 8),
        (0, 2, 8, 8),
        (3, 2, 0, 8),
        (3, 2, 8, 0),
        (1, 1, 3, 2, 8, 8),
    ):
        yield np.zeros(shape, np.float32)
        yield torch.zeros(shape)
    yield from (np.zeros((3, 2, 8, 8), kind) for kind in (np.uint8, np.int64, np.uint16, bool))
    yield from (torch.zeros((3, 2, 8, 8), dtype=kind) for kind in (torch.uint8, torch.int64, torch.bool))
    yield from (
        np.zeros(shape, np.uint8)
        for shape in ((0, 8, 8, 3), (3, 0, 8, 3), (2, 3, 8, 8, 3), (8, 8, 3), (1, 0, 8, 8, 3))
    )
    yield np.full((3, 8, 8, 3), 25, np.uint8)
    yield np.zeros((3, 8, 8, 3))
    yield torch.full((3, 8, 8, 3), 25, dtype=torch.uint8)
    yield [np.zeros((8, 8, 3), kind) for kind in (float,)]
    yield [np.zeros(shape, np.uint8) for shape in ((8, 8),)]
    yield [np.zeros((0, 8, 3), np.uint8)]
    yield [torch.zeros(8, 8, 3, dtype=torch.uint8)]
    yield torch.zeros(2, *frame)


def bad_latents():
    yield from (5, 0.5, "noise", b"", [], [torch.zeros(LATENTS)], {}, Odd(), np.zeros(LATENTS), object)
    yield from odd_tensors(LATENTS)
    yield from (torch.full(LATENTS, value) for value in (1e30, -1e30, 20000.0))
    yield torch.full(LATENTS, 1e300, dtype=torch.float64)
    yield from (torch.zeros(LATENTS, dtype=kind) for kind in (torch.int64, torch.uint8, torch.bool))
    shapes = [
        (),
        LATENTS[1:],
        (0, *LATENTS[1:]),
        (2, *LATENTS[1:]),
        (2, NUM_FRAMES, *LATENTS[1:]),
        (1, 3, 16, 12),
        (1, 4, 12, 16),
    ]
    yield from (torch.zeros(shape) for shape in shapes)


def bad_frame_indices():
    yield from ([], (), [5], [-1], [0, 0], [0.5], ["0"], "01", b"", 3, -1, 0.5, NAN, Odd(), object, [None], [[0], [1]])
    yield from (
        range(6),
        range(10**12),
        range(3, 3),
        itertools.count(),
        itertools.repeat(0),
        [HUGE],
        [-HUGE],
        [DIGITS],
    )
    yield from (np.array([0.0, 1.0]), np.array(1), np.array([[0, 1], [2, 3]]), np.array(["a"]), np.zeros(0, int))
    yield from (
        torch.tensor([0.5]),
        torch.tensor(1),
        torch.zeros(2, 2, dtype=torch.int64),
        torch.zeros(2, device="meta"),
    )
    yield torch.zeros(2, dtype=torch.int64, device="meta")


def bad_generators():
    one = torch.Generator()
    yield from (
        0,
        42,
        -1,
        "seed",
        0.5,
        [],
        [None],
        [one, one],
        [one, None],
        [42],
        (one,),
        {},
        Odd(),
        object,
        torch.Generator,
    )
    yield from (np.random.default_rng(0), iter([one]), torch.tensor(1))


def bad_callbacks():
    yield from (5, "callback", b"", [], [print], {}, Odd(), object, dict, PipelineCallback, torch.zeros(1))
    yield from (lambda: {}, lambda pipe: {}, lambda a, b, c: {}, lambda a, b, c, d, e: {}, lambda *, pipe: {})


BAD = {
    "image": list(bad_images()),
    "pose_maps": list(bad_pose_maps()),
    "height": [*NOT_WHOLE, 30, 33, 2**14 + 4, 10**9, HUGE, DIGITS],
    "width": [*NOT_WHOLE, 30, 33, 2**14 + 4, 10**9, HUGE, DIGITS],
    "num_inference_steps": [*NOT_WHOLE, 1001, 10**9, HUGE, DIGITS],
    "image_guidance_scale": NOT_A_SCALE,
    "pose_guidance_scale": NOT_A_SCALE,
    "frame_indices": list(bad_frame_indices()),
    "generator": list(bad_generators()),
    "latents": list(bad_latents()),
    "chunk_size": [*NOT_WHOLE, HUGE, DIGITS],
    "output_type": ["", "PIL", "mp4", b"pil", None, 5, ["pil"], ("pil",), {}, Odd(), np.array(["pil", "np"]), object],
    "return_dict": [None, 0, 1, "False", [], {}, Odd(), np.zeros(2), torch.tensor(True)],
    "callback_on_step_end": list(bad_callbacks()),
    "callback_on_step_end_tensor_inputs": [None, 5, "latents", "noise_pred", b"latents", {}, Odd(), object, print]
    + [["pose"], ["latents", "pose"], [None], [5], [["latents"]], [Odd()], [DIGITS], [np.zeros(2)], ["latents", b""]],
    "guidance_start": [*NOT_A_SCALE, 1.1, 2],
    "guidance_stop": [*NOT_A_SCALE, 1.1, 2],
}
CALLS = [(name, value) for name, values in BAD.items() for value in values]


@pytest.fixture(scope="module")
def pipe():
    return get_dummy_pipeline()


@pytest.mark.parametrize("argument, value", CALLS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(CALLS)])
def test_a_bad_call_is_one_error_before_a_model_runs(pipe, argument, value):
    models = [mock.patch.object(getattr(pipe, name), "forward") for name in ("unet", "image_encoder", "adapter")]
    models += [mock.patch.object(pipe.vae, name) for name in ("encode", "decode")]
    config = dict(pipe.config)
    for model in models:
        model.start()
    try:
        with pytest.raises(ValueError) as caught:
            pipe(**{**get_dummy_inputs(), argument: value})
        assert not any(getattr(pipe, name).forward.called for name in ("unet", "image_encoder", "adapter"))
        assert not pipe.vae.encode.called and not pipe.vae.decode.called
    finally:
        for model in models:
            model.stop()
    message = str(caught.value)
    assert type(caught.value) is ValueError and f"`{argument}" in message and "must" in message and len(message) < 600
    assert dict(pipe.config) == config


def test_the_table_holds_every_argument_and_many_calls():
    arguments = list(inspect.signature(DreamPosePipeline.__call__).parameters)[1:]
    assert list(BAD) == arguments and len(CALLS) >= 200 and all(len(values) > 8 for values in BAD.values())


def test_bad_calls_leave_nothing_behind(pipe):
    """The pipeline that took the calls above still gives the video of a new one."""
    assert torch.equal(pipe(**get_dummy_inputs()).frames, get_dummy_pipeline()(**get_dummy_inputs()).frames)


def test_values_that_are_unusual_but_good(pipe):
    expected = pipe(**get_dummy_inputs()).frames
    for same in (
        {"height": np.int64(HEIGHT), "width": np.int32(WIDTH)},
        {"num_inference_steps": np.int16(2), "chunk_size": np.uint8(200)},
        {"image_guidance_scale": Fraction(2), "pose_guidance_scale": np.float32(1.5)},
        {"image_guidance_scale": 2, "chunk_size": 2**62},
        {"guidance_start": np.float32(0), "guidance_stop": Fraction(1)},
        {"frame_indices": (i for i in range(NUM_FRAMES)), "return_dict": np.True_},
        {"callback_on_step_end": mock.Mock(return_value={}), "callback_on_step_end_tensor_inputs": ()},
        {"callback_on_step_end": lambda *args, **kwargs: kwargs},
    ):
        assert torch.allclose(pipe(**{**get_dummy_inputs(), **same}).frames, expected, atol=1e-5)


ODD_LATENTS = itertools.islice(odd_tensors((NUM_FRAMES, *LATENTS[1:])), 5)
BAD_RETURNS = [{"latents": latents} for latents in ODD_LATENTS]
BAD_RETURNS += [None, 5, [], "latents", {"latents": None}, {"latents": torch.zeros(1)}, {"latents": np.zeros(LATENTS)}]


@pytest.mark.parametrize("returned", BAD_RETURNS)
def test_a_callback_must_return_a_dict_with_latents_of_the_same_shape(pipe, returned):
    with pytest.raises(ValueError, match="`callback_on_step_end` must return a dict, whose dense `latents` keep"):
        pipe(**get_dummy_inputs(), callback_on_step_end=lambda *args: returned)


# Components


def bad_components():
    made = get_dummy_components()
    linear = torch.nn.Linear(1, 1)
    for name in ("vae", "unet", "image_encoder", "adapter"):
        others = [other for key, other in made.items() if key not in (name, "scheduler")]
        yield from ((name, value) for value in (None, linear, *others) if (name, value) != ("adapter", made["unet"]))
    yield from (("feature_extractor", value) for value in (None, linear, made["unet"]))
    yield from (("scheduler", value) for value in (None, linear, made["unet"], diffusers.EDMEulerScheduler()))
    yield "scheduler", diffusers.DDIMScheduler  # the class instead of an object
    yield from ((name, value) for name in (*made, "safety_checker") for value in (3, "vae", [1], object()))
    config = {name: value for name, value in made["vae"].config.items() if not name.startswith("_")}
    for setting, values in (
        ("in_channels", (1, 4)),
        ("out_channels", (1, 4)),
        ("scaling_factor", (None, 0, NAN, "1")),
    ):
        yield from (("vae", diffusers.AutoencoderKL(**{**config, setting: value})) for value in values)


@pytest.mark.parametrize("argument, value", list(bad_components()))
def test_a_component_of_another_kind_is_refused_by_name(argument, value):
    with pytest.raises(ValueError, match=f"`{argument}` must"):
        get_dummy_pipeline(**{argument: value})(**get_dummy_inputs())
