"""The pipeline: the method of the paper, inputs and outputs, chunks, callbacks, and refused input."""

import copy
import math
import threading
from contextlib import contextmanager
from unittest import mock

import diffusers
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.schedulers import KarrasDiffusionSchedulers
from PIL import Image

from pipeline_dreampose import DreamPoseAdapter, DreamPosePipeline, encode_pixels, iuv_to_pose_map
from tests.tiny_components import (
    HEIGHT,
    IMAGE_EMBED_DIM,
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
    get_unet,
)


LATENT_SHAPE = (LATENT_CHANNELS, LATENT_HEIGHT, LATENT_WIDTH)
REFUSED = ("EDMEulerScheduler", "DPMSolverSDEScheduler")
SCHEDULERS = [scheduler.name for scheduler in KarrasDiffusionSchedulers if scheduler.name not in REFUSED]
ALL_SCHEDULERS = [name for name in dir(diffusers) if name.endswith("Scheduler") and not name.startswith("Flax")]
# Those outside of `KarrasDiffusionSchedulers` that fit Stable Diffusion
OTHER_SCHEDULERS = [
    "CogVideoXDDIMScheduler",
    "DDIMParallelScheduler",
    "DDPMParallelScheduler",
    "LCMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
]
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


@pytest.fixture(scope="module")
def shared_pipe():
    """One pipeline for all tests that do not change it."""
    return get_dummy_pipeline()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@contextmanager
def unet_inputs(pipe):
    """Record `(sample, encoder_hidden_states)` of each call of the UNet while the block runs."""
    seen = []

    def record(module, args, kwargs):
        seen.append((args[0], kwargs["encoder_hidden_states"]))

    hook = pipe.unet.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()


@contextmanager
def scheduler_of(pipe, scheduler):
    """Replace the scheduler of a shared pipeline while the block runs."""
    previous, pipe.scheduler = pipe.scheduler, scheduler
    try:
        yield
    finally:
        pipe.scheduler = previous


def difference(a, b):
    return (a - b).abs().max().item()


@torch.no_grad()
def reference_video(components, photo, iuvs, s_i, s_p, num_steps, seed):
    """The whole method of the paper, frame by frame, without the pipeline's code."""
    vae, unet, adapter, scheduler = (components[name] for name in ("vae", "unet", "adapter", "scheduler"))

    def encode(picture):
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
        latents = vae.encode(2 * pixels - 1).latent_dist.mean * vae.config.scaling_factor
        clip_input = components["feature_extractor"](images=picture, return_tensors="pt")
        tokens = components["image_encoder"](**clip_input).last_hidden_state
        vae_tokens = adapter.vae_projection(F.max_pool2d(latents, 2).flatten(2))
        mixed = torch.einsum("ot,btd->bod", adapter.token_mixer.weight, torch.cat([tokens, vae_tokens], dim=1))
        return mixed + adapter.token_mixer.bias[:, None], latents

    c_i, photo_latents = encode(photo)
    no_image, _ = encode(Image.new("RGB", photo.size))
    iuvs = [torch.from_numpy(np.array(iuv)[::2, ::2].copy()) for iuv in iuvs]  # nearest neighbour, to latent size
    poses = [torch.stack([iuv[..., 1], iuv[..., 0]]) / 255 * (iuv[..., 2] > 0) for iuv in iuvs]
    noise = torch.randn(photo_latents.shape, generator=seeded(seed))
    frames = []
    for i in range(len(poses)):
        c_p = torch.cat([poses[min(max(i + d, 0), len(poses) - 1)] for d in (-2, -1, 0, 1, 2)])[None]
        no_pose = torch.zeros_like(c_p)
        scheduler.set_timesteps(num_steps)
        alpha = scheduler.alphas_cumprod[scheduler.timesteps[0]]
        x = alpha.sqrt() * photo_latents + (1 - alpha).sqrt() * noise
        for t in scheduler.timesteps:
            eps_00 = unet(torch.cat([x, no_pose], dim=1), t, no_image).sample
            eps_i0 = unet(torch.cat([x, no_pose], dim=1), t, c_i).sample
            eps_ip = unet(torch.cat([x, c_p], dim=1), t, c_i).sample
            eps = eps_00 + s_i * (eps_i0 - eps_00) + s_p * (eps_ip - eps_i0)
            x = scheduler.step(eps, t, x).prev_sample
        frames.append(vae.decode(x / vae.config.scaling_factor).sample[0] / 2 + 0.5)
    return torch.stack(frames).clamp(0, 1)


# The method


SCALES = [(0, 0), (1, 1), (1, 0), (0, 1), (1, 2), (2, 2), (2, 1.5), (8, 3)]


# Every pair of scales with two frames; one, two and three branches also with other lengths and chunks.
@pytest.mark.parametrize(
    "s_i, s_p, num_frames, chunk_size",
    [(*scales, 2, 1) for scales in SCALES]
    + [(*scales, *length) for scales in [(1, 1), (1, 2), (8, 3)] for length in [(1, 8), (5, 3)]],
)
def test_agrees_with_the_method(shared_pipe, s_i, s_p, num_frames, chunk_size):
    photo, iuvs = get_dummy_image(3), [get_dummy_iuv(i) for i in range(num_frames)]
    frames = shared_pipe(
        photo,
        iuvs,
        num_inference_steps=3,
        image_guidance_scale=s_i,
        pose_guidance_scale=s_p,
        chunk_size=chunk_size,
        generator=seeded(7),
        output_type="pt",
    ).frames
    expected = reference_video(shared_pipe.components, photo, iuvs, s_i, s_p, num_steps=3, seed=7)
    assert frames.shape == (1, num_frames, 3, HEIGHT, WIDTH)
    assert difference(frames[0], expected) < 1e-4
    assert 0.05 < expected.std() and expected.min() < expected.max()


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_agrees_with_the_method_for_other_predictions(prediction_type):
    pipe = get_dummy_pipeline()
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type=prediction_type)
    photo, iuvs = get_dummy_image(), [get_dummy_iuv(i) for i in range(3)]
    frames = pipe(photo, iuvs, generator=seeded(), output_type="pt").frames[0]
    assert difference(frames, reference_video(pipe.components, photo, iuvs, 2.0, 1.5, 2, 0)) < 1e-4


def test_photo_pose_neighbours_scales_and_seed_all_matter(shared_pipe):
    inputs = get_dummy_inputs()
    latents = shared_pipe(**{**inputs, "output_type": "latent"}).frames
    changes = {
        "image": get_dummy_image(9),
        "pose_maps": [get_dummy_iuv(9), *inputs["pose_maps"][1:]],
        "generator": seeded(1),
        "image_guidance_scale": 2.5,
        "pose_guidance_scale": 0.5,
        "num_inference_steps": 3,
    }
    for name, value in changes.items():
        changed = {**get_dummy_inputs(), "output_type": "latent", name: value}
        frames = shared_pipe(**changed).frames
        assert difference(frames[:, :3], latents[:, :3]) > 1e-3, name
        if name == "pose_maps":  # a window reaches two frames to each side
            assert all(difference(frames[:, i], latents[:, i]) > 1e-4 for i in range(3))
            assert difference(frames[:, 3:], latents[:, 3:]) < 1e-5


def test_other_sizes_channels_and_windows():
    components = get_dummy_components(latent_channels=8, pose_radius=1)
    pipe = get_dummy_pipeline(**components)
    assert pipe.pose_radius == 1
    with unet_inputs(pipe) as seen:
        frames = pipe(**get_dummy_inputs(), height=40, width=48).frames
    assert frames.shape == (1, NUM_FRAMES, 3, 40, 48) and seen[1][0].shape == (3 * NUM_FRAMES, 8 + 6, 20, 24)


@pytest.mark.parametrize(
    "s_i, s_p, branches", [(2, 1.5, 3), (0, 0, 1), (1, 1, 1), (1, 0, 1), (1, 2, 2), (2, 2, 2), (2, 0, 2), (0, 1, 3)]
)
def test_branches_of_weight_zero_are_not_computed(shared_pipe, s_i, s_p, branches):
    with mock.patch.object(shared_pipe, "encode_null_image", wraps=shared_pipe.encode_null_image) as encode_null_image:
        with unet_inputs(shared_pipe) as seen:
            shared_pipe(**get_dummy_inputs(), image_guidance_scale=s_i, pose_guidance_scale=s_p)
    first = branches - 1 + NUM_FRAMES if s_p else branches  # without pose, all frames share one row
    assert [len(sample) for sample, _ in seen] == [first, branches * NUM_FRAMES]
    assert encode_null_image.call_count == (0 if s_i == 1 else 1)


def test_scales_of_one_are_the_fully_conditioned_prediction(shared_pipe):
    windows, latents = torch.rand(2, 10, LATENT_HEIGHT, LATENT_WIDTH), torch.randn(2, *LATENT_SHAPE)
    states, null_states, t = torch.randn(1, 5, IMAGE_EMBED_DIM), torch.randn(1, 5, IMAGE_EMBED_DIM), torch.tensor(500)
    with torch.no_grad():
        expected = shared_pipe.unet(torch.cat([latents, windows], 1), t, states.expand(2, -1, -1)).sample
        branches = shared_pipe.guidance_branches(1.0, 1.0)
        predicted = shared_pipe.predict_noise(latents, t, windows, states, None, branches)
        assert difference(predicted, expected) < 1e-6
        branches = [(0.0, False, False), (0.0, True, False), (1.0, True, True)]
        predicted = shared_pipe.predict_noise(latents, t, windows, states, null_states, branches)
        assert difference(predicted, expected) < 1e-6
    for s_i, s_p in [(0, 0), (1, 0), (0.3, 0.7), (8, 3)]:
        assert sum(weight for weight, _, _ in shared_pipe.guidance_branches(s_i, s_p)) == pytest.approx(1)


def test_reference_is_encoded_once_per_video(shared_pipe):
    with mock.patch.object(shared_pipe.vae, "encode", wraps=shared_pipe.vae.encode) as encode:
        shared_pipe(**get_dummy_inputs(), chunk_size=1, image_guidance_scale=1.0)
        assert encode.call_count == 1
        shared_pipe(**get_dummy_inputs(), chunk_size=1)  # and the null image
        assert encode.call_count == 3
        shared_pipe(**{**get_dummy_inputs(), "image": [get_dummy_image(i) for i in range(3)]}, chunk_size=1)
        assert encode.call_count == 3 + 4


def test_image_range_and_pose_range_are_those_of_converted_weights():
    pipe, plain = get_dummy_pipeline(image_range=[0.0, 1.0], pose_range=[-1.0, 1.0]), get_dummy_pipeline()
    with mock.patch.object(pipe.vae, "encode", wraps=pipe.vae.encode) as encode, unet_inputs(pipe) as seen:
        pipe(**get_dummy_inputs())
    photo, black = (call.args[0] for call in encode.call_args_list)
    assert black.eq(0).all() and 0 <= photo.min() and photo.max() <= 1
    no_pose, still_no_pose, poses = seen[1][0][:, LATENT_CHANNELS:].chunk(3)
    assert not no_pose.any() and not still_no_pose.any()
    expected = iuv_to_pose_map(get_dummy_inputs()["pose_maps"][0])[:, ::2, ::2] * 2 - 1
    assert torch.allclose(poses[0, 4:6], expected) and poses.min() == -1
    latents = torch.randn(1, *LATENT_SHAPE)
    with torch.no_grad():
        decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
        assert difference(pipe.decode_latents(latents), decoded.clamp(0, 1)) < 1e-6
        assert difference(plain.decode_latents(latents), (decoded / 2 + 0.5).clamp(0, 1)) < 1e-6


# Other VAEs


def other_vae(name):
    """Return a tiny VAE of another class, with the latents of `get_dummy_components`."""
    channels, down, up = (8, 8), ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
    plain = {"block_out_channels": channels, "down_block_types": down, "up_block_types": up, "latent_channels": 4}
    sides = {"encoder_block_out_channels": channels, "decoder_block_out_channels": channels}
    asymmetric = {"down_block_out_channels": channels, "up_block_out_channels": channels}
    decoder = {"decoder_down_block_types": ("ResnetDownsampleBlock2D",) * 2, "decoder_layers_per_block": 1}
    decoder |= {"decoder_up_block_types": ("ResnetUpsampleBlock2D",) * 2, "decoder_block_out_channels": (32, 64)}
    settings = {
        "AutoencoderKL": {**plain, "norm_num_groups": 2},
        "VQModel": {**plain, "norm_num_groups": 2},
        "AutoencoderTiny": {**sides, "num_encoder_blocks": (1, 2), "num_decoder_blocks": (2, 1)},
        "AsymmetricAutoencoderKL": {**plain, **asymmetric, "norm_num_groups": 2},
        "ConsistencyDecoderVAE": {**sides, **decoder, "encoder_down_block_types": down, "encoder_norm_num_groups": 2},
    }[name]
    if name == "AsymmetricAutoencoderKL":
        del settings["block_out_channels"]
    torch.manual_seed(0)
    return getattr(diffusers, name)(**settings).eval()


@pytest.mark.parametrize(
    "name", ["AutoencoderKL", "AutoencoderTiny", "AsymmetricAutoencoderKL", "ConsistencyDecoderVAE", "VQModel"]
)
def test_every_vae_with_latents_of_these_channels_works(name):
    pipe = get_dummy_pipeline(vae=other_vae(name))
    frames = pipe(**get_dummy_inputs()).frames
    assert frames.shape == (1, NUM_FRAMES, 3, HEIGHT, WIDTH) and frames.std() > 0.005
    assert torch.isfinite(frames).all()
    for chunk_size in (2, 3):  # also a decoder that draws noise
        assert difference(pipe(**get_dummy_inputs(), chunk_size=chunk_size).frames, frames) < 1e-4
    latents = pipe(**{**get_dummy_inputs(), "num_inference_steps": 1, "output_type": "latent"}).frames
    assert latents.shape == (1, NUM_FRAMES, *LATENT_SHAPE)


def test_an_encoder_without_a_distribution_gives_its_latents():
    vae = other_vae("AutoencoderTiny")
    pixel_values = torch.rand(2, 3, HEIGHT, WIDTH) * 2 - 1
    with torch.no_grad():
        latents = encode_pixels(pixel_values, vae)
        assert torch.equal(latents.mode(), vae.encode(pixel_values).latents)
        assert torch.equal(latents.sample(), latents.mode())


def test_a_vae_of_another_kind_is_refused_by_name():
    video = diffusers.AutoencoderKLTemporalDecoder(block_out_channels=(32,))
    channels = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    deep = diffusers.AutoencoderDC(**channels, encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1))
    for vae, message in (
        (video, "`vae` must encode single pictures, not videos; got AutoencoderKLTemporalDecoder"),
        (deep, r"`vae` must have the settings \['block_out_channels'\]; got AutoencoderDC"),
        (torch.nn.Linear(1, 1), "`vae` must have the settings .* got Linear"),
    ):
        with pytest.raises(ValueError, match=message):
            get_dummy_pipeline(vae=vae)
    small = get_dummy_pipeline()
    small.vae_scale_factor = 4
    with pytest.raises(ValueError, match=r"`vae` must encode these pictures to latents of shape \(4, 8, 6\); got"):
        small(**get_dummy_inputs(), num_inference_steps=1)
    with pytest.raises(ValueError, match="`unet` must fit `vae`: out_channels must be 4; got 8"):
        config = {**get_unet().config, "out_channels": 8}
        get_dummy_pipeline(unet=diffusers.UNet2DConditionModel.from_config(config))(**get_dummy_inputs())


# What all frames share in the first step


@pytest.mark.parametrize("s_i, s_p, shared", [(2, 1.5, 2), (2, 2, 1), (1, 2, 1), (1, 0, 1), (1, 1, 0)])
def test_without_pose_the_first_step_is_predicted_once_a_video(shared_pipe, s_i, s_p, shared):
    """A start of each frame's own gives the same video, if all are equal, without sharing."""
    scales = {"image_guidance_scale": s_i, "pose_guidance_scale": s_p}
    inputs = {**get_dummy_inputs(), **scales, "chunk_size": 2, "image": [get_dummy_image(0), get_dummy_image(1)]}
    noise = torch.randn(1, *LATENT_SHAPE, generator=seeded(5))
    posed = 2 if s_p else 0
    with unet_inputs(shared_pipe) as seen:
        frames = shared_pipe(**inputs, latents=noise).frames
    rows = [len(sample) for sample, _ in seen]
    both = 2 * (shared + bool(s_p))  # both steps of a chunk of two frames; without work, the UNet does not run
    later = [posed, both] if posed else [both]
    assert rows == [shared + posed, both, *later, *later] * 2
    with unet_inputs(shared_pipe) as seen:
        apart = shared_pipe(**inputs, latents=noise.expand(NUM_FRAMES, -1, -1, -1)).frames
    assert [len(sample) for sample, _ in seen] == [both] * 12
    assert difference(frames, apart) < 1e-4


def test_several_photos_share_the_first_step_too(shared_pipe):
    noise = torch.randn(1, *LATENT_SHAPE, generator=seeded(5))
    inputs = {**get_dummy_inputs(), "image": [[get_dummy_image(i) for i in range(3)]], "chunk_size": 2}
    frames = shared_pipe(**inputs, latents=noise, num_inference_steps=4).frames
    apart = {**inputs, "generator": seeded(), "latents": noise.expand(NUM_FRAMES, -1, -1, -1)}
    assert difference(frames, shared_pipe(**apart, num_inference_steps=4).frames) < 1e-4


def test_hooks_that_keep_attention_see_the_same_batch_in_every_step():
    pipe, kinds = get_dummy_pipeline(), ("spatial_attention", "cross_attention")
    settings = {f"{kind}_block_skip_range": 2 for kind in kinds} | {
        f"{k}_timestep_skip_range": (0, 1000) for k in kinds
    }
    settings |= {f"{kind}_block_identifiers": ("blocks",) for kind in kinds}
    settings["current_timestep_callback"] = lambda: pipe.current_timestep
    expected = pipe(**get_dummy_inputs(), num_inference_steps=4).frames
    config = diffusers.PyramidAttentionBroadcastConfig(**settings)
    diffusers.apply_pyramid_attention_broadcast(pipe.unet, config)
    with unet_inputs(pipe) as seen:
        frames = pipe(**get_dummy_inputs(), num_inference_steps=4).frames
    assert [len(sample) for sample, _ in seen] == [3 * NUM_FRAMES] * 4
    assert 0 < difference(frames, expected) < 0.2


def test_a_unet_that_is_no_module_runs(shared_pipe):
    class Engine:
        def __init__(self, unet):
            self.unet, self.config, self.dtype, self.rows = unet, unet.config, unet.dtype, []

        def __call__(self, sample, *args, **kwargs):
            self.rows.append(len(sample))
            return self.unet(sample, *args, **kwargs)

    pipe = get_dummy_pipeline()
    pipe.unet = engine = Engine(pipe.unet)
    assert difference(pipe(**get_dummy_inputs()).frames, shared_pipe(**get_dummy_inputs()).frames) < 1e-5
    assert engine.rows == [3 * NUM_FRAMES] * 2, "it may have been built for batches of one size"


# The interval of guidance


@pytest.mark.parametrize(
    "start, stop, guided",
    [(0, 1, range(5)), (0.2, 0.6, (1, 2)), (0.21, 0.6, (2,)), (0, 0.61, range(4)), (0.5, 0.5, ()), (1, 1, ())],
)
def test_outside_of_its_interval_guidance_costs_nothing(shared_pipe, start, stop, guided):
    interval = {"guidance_start": start, "guidance_stop": stop, "num_inference_steps": 5}
    with unet_inputs(shared_pipe) as seen:
        shared_pipe(**get_dummy_inputs(), **interval)
    first = 2 + NUM_FRAMES  # all frames share what sees no pose
    rows = [(first if i == 0 else 3 * NUM_FRAMES) if i in guided else NUM_FRAMES for i in range(5)]
    assert [len(sample) for sample, _ in seen] == rows


def test_the_interval_of_guidance_equals_scales_that_a_callback_sets(shared_pipe):
    def callback(pipe, step, timestep, callback_kwargs):
        is_guided = step + 1 in (1, 2)
        pipe._image_guidance_scale, pipe._pose_guidance_scale = (2.0, 1.5) if is_guided else (1.0, 1.0)
        return {}

    inputs = {**get_dummy_inputs(), "num_inference_steps": 4, "chunk_size": 2}
    frames = shared_pipe(**inputs, guidance_start=0.25, guidance_stop=0.75).frames
    scales = {"image_guidance_scale": 1.0, "pose_guidance_scale": 1.0, "generator": seeded()}
    expected = shared_pipe(**{**inputs, **scales}, callback_on_step_end=callback).frames
    assert torch.equal(frames, expected)
    plain = shared_pipe(**{**inputs, **scales, "generator": seeded()}).frames
    never = shared_pipe(**{**inputs, "generator": seeded()}, guidance_stop=0.0).frames
    assert torch.equal(never, plain) and difference(frames, plain) > 1e-3


def test_the_stored_end_of_guidance_counts_if_the_call_gives_none(shared_pipe):
    pipe = get_dummy_pipeline(default_guidance_stop=0.5)
    with unet_inputs(pipe) as seen:
        frames = pipe(**get_dummy_inputs()).frames
    assert [len(sample) for sample, _ in seen] == [2 + NUM_FRAMES, NUM_FRAMES], "the last of two steps is not guided"
    assert torch.equal(frames, shared_pipe(**get_dummy_inputs(), guidance_stop=0.5).frames)
    always = shared_pipe(**get_dummy_inputs()).frames
    assert torch.equal(pipe(**get_dummy_inputs(), guidance_stop=1.0).frames, always)
    assert not torch.equal(frames, always)
    with pytest.raises(ValueError, match="`guidance_stop` must be a finite number from 0.6 to 1; got 0.5"):
        pipe(**get_dummy_inputs(), guidance_start=0.6)


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), "1", None])
def test_a_bad_stored_end_of_guidance_is_refused(value):
    pipe = get_dummy_pipeline(default_guidance_stop=value)
    with pytest.raises(ValueError, match="`guidance_stop` must be a finite number from 0.0 to 1; got "):
        pipe(**get_dummy_inputs())


# Batches, chunks and frames


def test_batch_equals_singles(shared_pipe):
    images = [get_dummy_image(i) for i in range(2)]
    poses = [[get_dummy_iuv(10 * b + i) for i in range(3)] for b in range(2)]
    settings = {"output_type": "pt", "chunk_size": 2}
    singles = [shared_pipe(images[b], poses[b], generator=seeded(b), **settings).frames for b in range(2)]
    batch = shared_pipe(images, poses, generator=[seeded(0), seeded(1)], **settings).frames
    assert batch.shape[:2] == (2, 3) and difference(batch, torch.cat(singles)) < 1e-5
    one_generator = seeded(0)
    singles = [shared_pipe(images[b], poses[b], generator=one_generator, **settings).frames for b in range(2)]
    assert difference(shared_pipe(images, poses, generator=seeded(0), **settings).frames, torch.cat(singles)) < 1e-5
    shared_poses = shared_pipe(images, poses[0], generator=[seeded(0), seeded(1)], **settings).frames
    assert difference(shared_poses[0], batch[0]) < 1e-5 and difference(shared_poses[1], batch[1]) > 1e-3


def test_images_and_poses_in_every_form(shared_pipe):
    settings = {"num_inference_steps": 1, "output_type": "pt"}
    images, iuvs = [get_dummy_image(i) for i in range(2)], [get_dummy_iuv(i) for i in range(3)]
    maps = torch.stack([iuv_to_pose_map(iuv) for iuv in iuvs])
    expected = shared_pipe(images, iuvs, generator=seeded(), **settings).frames
    array = np.stack([np.array(image) for image in images])
    tensor = torch.from_numpy(array).permute(0, 3, 1, 2)
    for form in (array, array / 255, tensor, [array[0], images[1]], tuple(images)):
        frames = shared_pipe(form, iuvs, generator=seeded(), **settings).frames
        assert difference(frames, expected) < 1e-6
    batched, arrays = maps.expand(2, -1, -1, -1, -1), [np.array(iuv) for iuv in iuvs]
    for form in (maps, maps.numpy(), maps.double(), batched, batched.numpy(), [iuvs, iuvs], arrays):
        frames = shared_pipe(images, form, generator=seeded(), **settings).frames
        assert difference(frames, expected) < 1e-6
    clip, flipped = np.stack(arrays), np.stack(arrays[::-1])
    for form in (
        clip,
        torch.from_numpy(clip),
        torch.from_numpy(clip)[None],
        np.stack([clip, clip]),
        clip[None],
        flipped[::-1],
        np.asfortranarray(clip),
    ):
        frames = shared_pipe(images, form, generator=seeded(), **settings).frames
        assert difference(frames, expected) < 1e-6
    one = shared_pipe(images[0], iuvs, generator=seeded(), **settings).frames
    for form in (array[0], array[:1], tensor[0], [images[0]], [[images[0]]]):
        assert difference(shared_pipe(form, iuvs, generator=seeded(), **settings).frames, one) < 1e-6


def test_several_photos_of_a_subject(shared_pipe):
    inputs = get_dummy_inputs()
    photo, other = get_dummy_image(0), get_dummy_image(1)
    single = shared_pipe(**inputs).frames
    assert difference(shared_pipe(**{**get_dummy_inputs(), "image": [[photo] * 3]}).frames, single) < 1e-6

    settings = {"num_inference_steps": 8, "image_guidance_scale": 1.0, "pose_guidance_scale": 1.0, "chunk_size": 3}
    with unet_inputs(shared_pipe) as seen:
        shared_pipe(**{**get_dummy_inputs(), "image": [[photo, other]]}, **settings)
    with torch.no_grad():
        encoded = [shared_pipe.encode_image(shared_pipe.prepare_image(p, HEIGHT, WIDTH)[0]) for p in (photo, other)]
    drawn = [[i for i in (0, 1) if difference(encoded[i][0].expand(3, -1, -1), given) < 1e-5] for _, given in seen]
    assert drawn[:8] == drawn[8:] and {tuple(photos) for photos in drawn} == {(0,), (1,)}
    timesteps = shared_pipe.set_timesteps(8, torch.device("cpu"))
    noise, latents = torch.randn(1, *LATENT_SHAPE, generator=seeded()), encoded[0][1]
    start = shared_pipe.scheduler.add_noise(latents, noise, timesteps[:1])
    assert difference(seen[0][0][:, :LATENT_CHANNELS], start.expand(3, -1, -1, -1)) < 1e-5


def test_any_chunk_size_gives_the_same_video(shared_pipe):
    frames = [shared_pipe(**get_dummy_inputs(), chunk_size=size).frames for size in (1, 2, 3, 100)]
    assert all(difference(frames[0], other) < 1e-5 for other in frames[1:])


def test_chunks_have_equal_size(shared_pipe):
    poses = torch.rand(10, 2, LATENT_HEIGHT, LATENT_WIDTH)
    settings = {"num_inference_steps": 1, "image_guidance_scale": 1, "pose_guidance_scale": 1, "output_type": "latent"}
    for chunk_size, sizes in ((8, [5, 5]), (4, [4, 4, 4]), (3, [3, 3, 3, 3]), (10, [10]), (6, [5, 5])):
        with unet_inputs(shared_pipe) as seen:
            shared_pipe(get_dummy_image(), poses, **settings, chunk_size=chunk_size)
        assert [len(sample) for sample, _ in seen] == sizes


def test_frame_indices_give_the_same_frames_of_the_whole_video(shared_pipe):
    with scheduler_of(shared_pipe, diffusers.EulerAncestralDiscreteScheduler()):
        whole = shared_pipe(**get_dummy_inputs(), chunk_size=2).frames
        for indices in ([0], [4], [3, 1], range(1, 5, 2), torch.tensor([2, 0, 4]), np.array([1, 2, 3])):
            frames = shared_pipe(**get_dummy_inputs(), chunk_size=2, frame_indices=indices).frames
            assert difference(frames, whole[:, list(indices)]) < 1e-5


# Random numbers and start latents


def test_the_generator_decides_the_result(shared_pipe):
    assert torch.equal(shared_pipe(**get_dummy_inputs()).frames, shared_pipe(**get_dummy_inputs()).frames)
    torch.manual_seed(0)
    free = {**get_dummy_inputs(), "generator": None}
    first, second = shared_pipe(**free).frames, shared_pipe(**free).frames
    assert difference(first, second) > 1e-3


def test_latents_replace_the_start(shared_pipe):
    unit = torch.randn(2, NUM_FRAMES, *LATENT_SHAPE, generator=seeded())
    inputs = {**get_dummy_inputs(), "image": [get_dummy_image(0), get_dummy_image(1)]}
    for latents in (unit[0, :1], unit[0], unit):
        euler = diffusers.EulerDiscreteScheduler(timestep_spacing="leading")
        with scheduler_of(shared_pipe, euler), unet_inputs(shared_pipe) as seen:
            shared_pipe(**inputs, latents=latents, image_guidance_scale=1.0, pose_guidance_scale=1.0)
        assert euler.init_noise_sigma > 3
        scale = euler.init_noise_sigma / (euler.sigmas[0] ** 2 + 1) ** 0.5  # Euler scales the model's input
        starts = torch.stack([seen[0][0], seen[2][0]])[:, :, :LATENT_CHANNELS]
        assert difference(starts, latents.expand(2, NUM_FRAMES, *LATENT_SHAPE) * scale) < 1e-5


@pytest.mark.parametrize(
    "name, num_steps", [*((name, 2) for name in SCHEDULERS + OTHER_SCHEDULERS), ("PNDMScheduler", 5)]
)
def test_every_scheduler_runs_and_is_reset_between_chunks(shared_pipe, name, num_steps):
    config = shared_pipe.scheduler.config
    config = {key: config[key] for key in ("beta_start", "beta_end", "beta_schedule")}
    if name == "PNDMScheduler":  # Stable Diffusion skips its Runge-Kutta steps, which need more than two
        config["skip_prk_steps"] = num_steps == 2
    settings = {"num_inference_steps": num_steps, "image_guidance_scale": 1.0, "pose_guidance_scale": 1.0}
    frames = []
    with scheduler_of(shared_pipe, getattr(diffusers, name)(**config)):
        for chunk_size in (2, 5):
            inputs = {**get_dummy_inputs(), **settings, "output_type": "latent"}
            frames.append(shared_pipe(**inputs, chunk_size=chunk_size).frames)
    assert torch.isfinite(frames[0]).all()
    tolerance = 1e-4 * frames[0].abs().max()
    assert difference(frames[0], frames[1]) < tolerance


@pytest.mark.parametrize("algorithm_type", ["sde-dpmsolver++", "dpmsolver++"])
def test_all_frames_share_the_noise_of_stochastic_steps(shared_pipe, algorithm_type):
    """Else frames would flicker. Another seed gives other noise, and so does another video of the same seed."""
    poses, photos = torch.zeros(3, 2, LATENT_HEIGHT, LATENT_WIDTH), [get_dummy_image()] * 2
    noise = torch.zeros(1, *LATENT_SHAPE)  # the same start for all videos
    settings = {"latents": noise, "output_type": "latent", "chunk_size": 2}
    with scheduler_of(shared_pipe, diffusers.DPMSolverMultistepScheduler(algorithm_type=algorithm_type)):
        videos = shared_pipe(photos, poses, generator=seeded(), **settings).frames
        other = shared_pipe(photos[0], poses, generator=seeded(1), **settings).frames[0]
    for video in (*videos, other):
        assert difference(video, video[:1].expand_as(video)) < 1e-4 * video.abs().max()
    is_stochastic = algorithm_type.startswith("sde")
    for video in (videos[1], other):
        assert (difference(videos[0], video) > 1e-2) == is_stochastic


# Output and settings


def test_output_types(shared_pipe):
    outputs = {}
    for output_type in ("pil", "np", "pt", "latent"):
        outputs[output_type] = shared_pipe(**{**get_dummy_inputs(), "output_type": output_type}).frames
    pil, array, tensor, latents = outputs.values()
    assert isinstance(array, np.ndarray) and array.dtype == np.float32
    assert array.shape == (1, NUM_FRAMES, HEIGHT, WIDTH, 3) and 0 <= array.min() and array.max() <= 1
    assert tensor.shape == (1, NUM_FRAMES, 3, HEIGHT, WIDTH) and tensor.dtype == torch.float32
    assert np.array_equal(tensor.permute(0, 1, 3, 4, 2).numpy(), array)
    assert len(pil) == 1 and len(pil[0]) == NUM_FRAMES and pil[0][0].size == (WIDTH, HEIGHT)
    assert np.array_equal(np.stack([np.array(frame) for frame in pil[0]]), (array[0] * 255).round().astype(np.uint8))
    assert latents.shape == (1, NUM_FRAMES, *LATENT_SHAPE) and latents.dtype == torch.float32
    with torch.no_grad():
        decoded = shared_pipe.vae.decode(latents[0] / shared_pipe.vae.config.scaling_factor).sample
    assert difference((decoded / 2 + 0.5).clamp(0, 1), tensor[0]) < 1e-5


def test_tuple_and_output_agree(shared_pipe):
    output = shared_pipe(**get_dummy_inputs())
    as_tuple = shared_pipe(**get_dummy_inputs(), return_dict=False)
    assert len(as_tuple) == 2 and torch.equal(as_tuple[0], output.frames) and torch.equal(output["frames"], output[0])
    assert as_tuple[1] is None and output.nsfw_content_detected is None


def test_defaults_come_from_the_config(shared_pipe):
    inputs = get_dummy_inputs()
    explicit = shared_pipe(
        **inputs, height=HEIGHT, width=WIDTH, num_inference_steps=2, image_guidance_scale=2.0, pose_guidance_scale=1.5
    ).frames
    assert torch.equal(shared_pipe(**get_dummy_inputs()).frames, explicit)
    assert shared_pipe.image_guidance_scale == 2.0 and shared_pipe.pose_guidance_scale == 1.5
    assert shared_pipe.num_timesteps == 2 and shared_pipe.interrupt is False
    config = DreamPosePipeline(**get_dummy_components()).config
    assert (config.default_height, config.default_width, config.default_num_inference_steps) == (640, 512, 25)


def test_half_precision_stays_near():
    pipe = get_dummy_pipeline()
    frames = pipe(**get_dummy_inputs()).frames
    half = pipe.to(torch.bfloat16)(**get_dummy_inputs()).frames
    assert half.dtype == torch.float32 and (half - frames).abs().mean() < 0.02


def test_model_offload_changes_nothing():
    expected = get_dummy_pipeline()(**get_dummy_inputs()).frames
    pipe = get_dummy_pipeline()
    pipe.enable_model_cpu_offload(device="cpu")
    assert torch.equal(pipe(**get_dummy_inputs()).frames, expected)


def test_safety_checker_sees_every_frame():
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    torch.manual_seed(0)
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = {**tower, "image_size": 8, "patch_size": 4}
    config = CLIPConfig(text_config=tower, vision_config=vision, projection_dim=8)
    checker = StableDiffusionSafetyChecker(config).eval()
    pipe = get_dummy_pipeline(safety_checker=checker)
    for threshold, flagged in ((2.0, False), (-2.0, True)):
        checker.concept_embeds_weights.data.fill_(threshold)
        frames, flags = pipe(**get_dummy_inputs(), chunk_size=2, return_dict=False)
        assert flags == [[flagged] * NUM_FRAMES] and frames.any() != flagged
    assert pipe(**{**get_dummy_inputs(), "output_type": "latent"}).nsfw_content_detected is None


# Callbacks, progress and interruption


def test_callback_never_sees_padding(shared_pipe):
    seen = []

    def callback(pipe, step, timestep, callback_kwargs):
        assert pipe is shared_pipe and set(callback_kwargs) == {"latents", "noise_pred"}
        seen.append((step, int(timestep), callback_kwargs["latents"].shape, callback_kwargs["noise_pred"].shape))
        return callback_kwargs

    plain = shared_pipe(**get_dummy_inputs(), chunk_size=3).frames
    frames = shared_pipe(
        **get_dummy_inputs(),
        chunk_size=3,
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["latents", "noise_pred"],
    ).frames
    assert torch.equal(frames, plain)
    timesteps = [int(t) for t in shared_pipe.scheduler.timesteps]
    shapes = [(3, *LATENT_SHAPE)] * 2 + [(2, *LATENT_SHAPE)] * 2
    assert seen == [(i % 2, timesteps[i % 2], shape, shape) for i, shape in enumerate(shapes)]


def test_callback_may_change_latents(shared_pipe):
    def callback(pipe, step, timestep, callback_kwargs):
        assert list(callback_kwargs) == ["latents"]
        return {"latents": torch.full_like(callback_kwargs["latents"], float(step))}

    latents = {**get_dummy_inputs(), "output_type": "latent", "chunk_size": 3}
    assert shared_pipe(**latents, callback_on_step_end=callback).frames.eq(1).all()
    plain = shared_pipe(**{**latents, "generator": seeded()}).frames
    untouched = shared_pipe(**{**latents, "generator": seeded()}, callback_on_step_end=lambda *args: {}).frames
    assert torch.equal(untouched, plain)


def test_callback_objects_name_their_own_tensors(shared_pipe):
    class Recorder(diffusers.callbacks.PipelineCallback):
        tensor_inputs = ["noise_pred"]
        names = []

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            self.names.append(list(callback_kwargs))
            return callback_kwargs

    shared_pipe(**get_dummy_inputs(), callback_on_step_end=Recorder())
    assert Recorder.names == [["noise_pred"]] * 2


def test_interrupt_skips_the_remaining_steps(shared_pipe):
    def callback(pipe, step, timestep, callback_kwargs):
        pipe._interrupt = True
        return callback_kwargs

    with unet_inputs(shared_pipe) as seen:
        frames = shared_pipe(**get_dummy_inputs(), num_inference_steps=5, callback_on_step_end=callback).frames
    assert len(seen) == 1 and frames.shape[1] == NUM_FRAMES


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_an_interrupted_call_begins_no_other_chunk_or_video(shared_pipe, output_type):
    def callback(pipe, step, timestep, callback_kwargs):
        pipe._interrupt = True
        return {}

    inputs = {**get_dummy_inputs(), "image": [get_dummy_image()] * 2, "output_type": output_type, "chunk_size": 3}
    inputs |= {"image_guidance_scale": 1.0, "pose_guidance_scale": 1.0}  # no null image is encoded
    with (
        mock.patch.object(shared_pipe, "decode_latents", wraps=shared_pipe.decode_latents) as decode,
        mock.patch.object(shared_pipe, "encode_image", wraps=shared_pipe.encode_image) as encode,
    ):
        video, other = shared_pipe(**inputs, callback_on_step_end=callback).frames
    assert decode.call_count == (0 if output_type == "latent" else 1) and encode.call_count == 1
    if output_type == "pil":
        assert len(video) == 3 and other == []
    else:
        video, other = torch.as_tensor(video), torch.as_tensor(other)
        assert len(video) == len(other) == NUM_FRAMES
        assert video[:3].any() and not video[3:].any() and not other.any()


@pytest.mark.parametrize("before, after", [((2.0, 1.5), (1.0, 1.0)), ((1.0, 1.0), (2.0, 1.5))])
def test_scales_that_a_callback_sets_hold_until_the_end_of_the_chunk(shared_pipe, before, after):
    def callback(pipe, step, timestep, callback_kwargs):
        pipe._image_guidance_scale, pipe._pose_guidance_scale = after
        return {}

    inputs = {**get_dummy_inputs(), "image_guidance_scale": before[0], "pose_guidance_scale": before[1]}
    call = {"num_inference_steps": 3, "callback_on_step_end": callback}
    with unet_inputs(shared_pipe) as seen:
        frames = shared_pipe(**inputs, **call, chunk_size=3).frames
    rows = {2.0: 3 * 3, 1.0: 3}[after[0]]  # three branches of three frames, or one branch
    first = {2.0: 1 + 1 + 3, 1.0: 3}[before[0]]  # the frames of the video share what sees no pose
    assert [len(args[0]) for args in seen] == [first, rows, rows, 3, rows, rows]
    assert torch.allclose(frames, shared_pipe(**{**inputs, "generator": seeded()}, **call).frames, atol=1e-5)


def test_progress_bar_counts_the_steps_of_all_chunks(shared_pipe):
    with mock.patch.object(shared_pipe, "progress_bar") as progress_bar:
        bar = progress_bar.return_value.__enter__.return_value
        shared_pipe(**{**get_dummy_inputs(), "image": [get_dummy_image()] * 2}, chunk_size=2, num_inference_steps=3)
    assert progress_bar.call_args.kwargs == {"total": 2 * 3 * 3} and bar.update.call_count == 18


# Frames one by one


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_a_stream_yields_the_frames_of_the_call(shared_pipe, output_type):
    inputs = {**get_dummy_inputs(), "image": [get_dummy_image(i) for i in range(2)], "output_type": output_type}
    inputs |= {"chunk_size": 2, "frame_indices": [4, 0, 1]}
    expected = shared_pipe(**inputs).frames
    frames = list(shared_pipe.stream(**{**inputs, "generator": seeded()}))
    kind = {"pil": Image.Image, "np": np.ndarray}.get(output_type, torch.Tensor)
    assert len(frames) == 6 and all(isinstance(frame, kind) for frame in frames)
    for frame, same in zip(frames, (frame for video in expected for frame in video), strict=True):
        assert np.array_equal(np.asarray(frame), np.asarray(same))


def test_a_stream_yields_each_chunk_when_it_is_done(shared_pipe):
    with unet_inputs(shared_pipe) as seen:
        frames, counts = shared_pipe.stream(**get_dummy_inputs(), chunk_size=2), []
        assert not seen, "nothing runs before the first frame is asked for"
        for _ in frames:
            counts.append(len(seen))
    assert counts == [2, 2, 4, 4, 6]


def test_a_stream_takes_the_arguments_of_the_call_and_refuses_bad_ones_at_once(shared_pipe):
    for name, value, message in wrong_inputs():
        with pytest.raises(ValueError, match=message):
            shared_pipe.stream(**{**get_dummy_inputs(), name: value})
    with pytest.raises(ValueError, match="`return_dict` must be left out; got `return_dict`"):
        shared_pipe.stream(**get_dummy_inputs(), return_dict=False)
    with pytest.raises(TypeError, match="unexpected keyword argument 'guidance_scale'"):
        shared_pipe.stream(**get_dummy_inputs(), guidance_scale=2.0)
    with scheduler_of(shared_pipe, diffusers.LCMScheduler(original_inference_steps=4)):
        with pytest.raises(ValueError, match="`num_inference_steps` must be a number that LCMScheduler can do; got 5"):
            shared_pipe.stream(**get_dummy_inputs(), num_inference_steps=5)


def test_a_stream_leaves_the_gradients_of_its_reader_alone(shared_pipe):
    weight = torch.ones(1, requires_grad=True)
    for frame in shared_pipe.stream(**get_dummy_inputs(), chunk_size=3):
        assert torch.is_grad_enabled() and not frame.requires_grad
        (weight * frame.mean()).backward()
    assert weight.grad.abs() > 0
    with torch.no_grad():
        next(frames := shared_pipe.stream(**get_dummy_inputs()))
        frames.close()
        assert not torch.is_grad_enabled()


def test_a_stream_that_is_closed_early_leaves_nothing_behind():
    pipe = get_dummy_pipeline()
    expected = pipe(**get_dummy_inputs()).frames
    pipe.enable_model_cpu_offload(device="cpu")
    with (
        mock.patch.object(pipe, "progress_bar") as progress_bar,
        mock.patch.object(pipe, "maybe_free_model_hooks") as free,
    ):
        frames = pipe.stream(**get_dummy_inputs(), chunk_size=2)
        next(frames)
        with pytest.raises(ValueError, match="`scheduler` must not serve two calls at once"):
            pipe(**get_dummy_inputs())
        assert free.call_count == progress_bar.return_value.__exit__.call_count == 0
        frames.close()
        assert free.call_count == progress_bar.return_value.__exit__.call_count == 1
    assert pipe.current_timestep is None and torch.equal(pipe(**get_dummy_inputs()).frames, expected)
    assert list(frames) == []
    pipe.stream(**get_dummy_inputs())  # never begun: reserves nothing
    unread = pipe.stream(**get_dummy_inputs())
    assert torch.equal(pipe(**get_dummy_inputs()).frames, expected)
    assert torch.equal(torch.stack(list(unread))[None], expected)


@pytest.mark.parametrize("interrupts", [False, True])
def test_a_reader_may_stop_at_the_last_frame(interrupts):
    def callback(pipe, step, timestep, callback_kwargs):
        pipe._interrupt = interrupts
        return {}

    pipe = get_dummy_pipeline()
    pipe.enable_model_cpu_offload(device="cpu")
    with mock.patch.object(pipe, "maybe_free_model_hooks") as free:
        frames = pipe.stream(**get_dummy_inputs(), chunk_size=3, callback_on_step_end=callback)
        places = range(3 if interrupts else NUM_FRAMES)
        assert len(list(zip(places, frames))) == len(places)  # which asks for no frame after the last one
        assert free.call_count == 1
    pipe(**get_dummy_inputs())  # the scheduler is free, while `frames` is still there
    assert next(frames, None) is None


def test_a_reader_may_end_a_stream_after_a_chunk(shared_pipe):
    frames = shared_pipe.stream(**get_dummy_inputs(), chunk_size=2)
    next(frames)
    shared_pipe._interrupt = True
    assert len(list(frames)) == 1


# Wrong input: one error that names the argument, before any model runs


def wrong_inputs():
    maps = torch.zeros(3, 2, HEIGHT, WIDTH)
    nan, iuv, photo = maps.clone(), get_dummy_iuv(), get_dummy_image()
    nan[0, 0, 0, 0] = torch.nan
    yield "height", 30, "`height` must be a positive multiple of 4, at most 16384; got 30"
    yield "width", 0, "`width` must be a positive multiple of 4, at most 16384; got 0"
    yield "height", 32.0, "`height` .* got 32.0"
    yield "num_inference_steps", 0, "`num_inference_steps` must be a whole number from 1 to 1000; got 0"
    yield "num_inference_steps", 2.5, "`num_inference_steps` .* got 2.5"
    yield "num_inference_steps", 2000, "`num_inference_steps` .* from 1 to 1000; got 2000"
    yield "chunk_size", 0, "`chunk_size` .* got 0"
    yield "image_guidance_scale", -0.5, "`image_guidance_scale` .* from 0 to 1000; got -0.5"
    yield "image_guidance_scale", float("inf"), "`image_guidance_scale` must be a finite number.* got inf"
    yield "pose_guidance_scale", float("nan"), "`pose_guidance_scale` must be a finite number.* got nan"
    yield "pose_guidance_scale", "3", "`pose_guidance_scale` .* got '3'"
    yield "guidance_start", 1.5, "`guidance_start` must be a finite number from 0 to 1; got 1.5"
    yield "guidance_stop", float("nan"), "`guidance_stop` must be a finite number from 0.0 to 1; got nan"
    yield "output_type", "mp4", "`output_type` .* got 'mp4'"
    yield "callback_on_step_end_tensor_inputs", ["pose"], r"`callback_on_step_end_tensor_inputs` .* got \['pose'\]"
    yield "frame_indices", [], r"`frame_indices` .* range\(5\); got \[\]"
    yield "frame_indices", [5], r"`frame_indices` .* got \[5\]"
    yield "frame_indices", [-1], r"`frame_indices` .* got \[-1\]"
    yield "frame_indices", [1, 1], r"`frame_indices` .* different .* got \[1, 1\]"
    yield "frame_indices", [0.5], r"`frame_indices` .* integers in range\(.* got \[0.5\]"
    yield "frame_indices", 3, "`frame_indices` .* got 3"
    yield "latents", torch.zeros(2, *LATENT_SHAPE), r"`latents` must have one of the shapes.*got \(2, 4, 16, 12\)"
    yield "latents", torch.zeros(2, 5, *LATENT_SHAPE), r"`latents` .* got \(2, 5, 4, 16, 12\)"
    yield "latents", np.zeros((1, *LATENT_SHAPE)), "`latents` .*ndarray"
    yield "latents", torch.full((1, *LATENT_SHAPE), torch.inf), "`latents` must be finite"
    yield "generator", [seeded(), seeded()], r"`generator` must be one, or one per video \(1\); got 2"
    yield "generator", 42, "`generator` must be a torch.Generator.*int"
    yield "generator", [None], "`generator` must be a torch.Generator.*NoneType"
    yield "image", [], "`image` must hold at least one photo"
    yield "image", [[photo], []], "`image` must hold at least one photo"
    yield "image", "photo.png", "`image` must be a PIL image.*str"
    yield "image", torch.full((3, 8, 8), 200.0), r"`image` must be 8 bit, or hold finite values in \[0, 1\].*200.0"
    yield "pose_maps", maps[0], r"`pose_maps` must be floating .*\(F, 2, H, W\).*got float32 \(2, 32, 24\)"
    yield "pose_maps", maps[:, :1], r"`pose_maps` .* got float32 \(3, 1, 32, 24\)"
    yield "pose_maps", maps[:0], r"`pose_maps` must hold .* at least one; got float32 \(0, 2, 32, 24\)"
    yield "pose_maps", maps + 200, r"`pose_maps` must lie in \[0, 1\].*between 200.0 and 200.0"
    yield "pose_maps", maps - 0.1, r"`pose_maps` must lie in \[0, 1\].*-0.1"
    yield "pose_maps", nan, r"`pose_maps` must lie in \[0, 1\] and be finite.*nan"
    yield "pose_maps", maps.byte(), "`pose_maps` must be floating point.*uint8"
    yield "pose_maps", [], "`pose_maps` must be a tensor, an array or a list"
    yield "pose_maps", [[]], "`pose_maps` must hold equally many frames"
    yield "pose_maps", iuv, "`pose_maps` must be a tensor, an array or a list.*Image"
    yield "pose_maps", [iuv, [iuv]], "`pose_maps` must be a list of IUV images or a list of such lists"
    yield "pose_maps", list(maps), r"`pose_maps\[0\]` must be an RGB picture"
    yield "pose_maps", [iuv, Image.new("RGB", iuv.size, (68, 1, 84))], r"`pose_maps\[1\]`.*poses again, as IUV"
    yield (
        "pose_maps",
        [iuv, get_dummy_iuv(height=16)],
        r"`pose_maps` must all have the same size.*\(16, 24\), \(32, 24\)",
    )
    yield "pose_maps", maps.expand(2, -1, -1, -1, -1), r"`pose_maps` must be one sequence.*\(1\); got 2"
    yield "pose_maps", [[iuv], [iuv, iuv]], r"`pose_maps` must hold equally many frames.*\[1, 2\]"


@pytest.mark.parametrize("name, value, message", list(wrong_inputs()))
def test_wrong_input_is_refused_before_a_model_runs(shared_pipe, name, value, message):
    with (
        mock.patch.object(shared_pipe, "encode_image") as encode_image,
        mock.patch.object(shared_pipe.unet, "forward"),
    ):
        with pytest.raises(ValueError, match=message):
            shared_pipe(**{**get_dummy_inputs(), name: value})
    encode_image.assert_not_called()


@pytest.mark.parametrize("in_channels", [4, 5, 8])
def test_a_unet_that_was_not_widened_is_refused(in_channels):
    message = f"`unet` .* 14 for five poses .*weights of 0.; got in_channels={in_channels}"
    with pytest.raises(ValueError, match=message):
        get_dummy_pipeline(unet=get_unet(in_channels))
    pipe = get_dummy_pipeline()
    pipe.unet = get_unet(in_channels)
    with pytest.raises(ValueError, match=message):
        pipe(**get_dummy_inputs())


def make_scheduler(name, config):
    """Return a scheduler with Stable Diffusion's noise levels, if its class takes them."""
    scheduler_class = getattr(diffusers, name)
    for arguments in ({}, {"mask_token_id": 0}, {"num_vec_classes": 2}):
        for make in (lambda: scheduler_class.from_config(config, **arguments), lambda: scheduler_class(**arguments)):
            try:
                return make()
            except (TypeError, ValueError):
                continue
            except ImportError:  # torchsde is missing: its schedulers are known by their noise
                return type(name, (diffusers.DDIMScheduler,), {"noise_sampler": None})()
    return scheduler_class.__new__(scheduler_class)


@pytest.fixture
def ideal_pipe(shared_pipe):
    """A pipeline whose UNet predicts the noise perfectly if `target` is the only possible picture."""
    alphas = shared_pipe.scheduler.alphas_cumprod.double()
    target = torch.randn(1, *LATENT_SHAPE, generator=seeded(3))

    def forward(sample, t, **kwargs):
        log_sigmas = ((1 - alphas) / alphas).sqrt().log()
        low = min(max(math.floor(t), 0), len(alphas) - 2)
        sigma = log_sigmas[low].lerp(log_sigmas[low + 1], float(t) - low).exp()
        alpha = 1 / (1 + sigma**2)
        return (((sample[:, :LATENT_CHANNELS] - alpha.sqrt() * target) / (1 - alpha).sqrt()).float(),)

    previous = shared_pipe.scheduler
    with mock.patch.object(shared_pipe.unet, "forward", forward):
        shared_pipe.target = target
        yield shared_pipe
    shared_pipe.scheduler = previous


def ideal_latents(pipe, scheduler):
    pipe.scheduler = scheduler
    settings = {"num_inference_steps": 20, "image_guidance_scale": 1.0, "pose_guidance_scale": 1.0}
    return pipe(**{**get_dummy_inputs(), **settings, "output_type": "latent"}).frames


# Largest error of latents with a standard deviation of 1. Some schedulers stop at t = 0, where noise of 0.03 is left.
IDEAL_BOUND = 0.15


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # of a scheduler that is refused
@pytest.mark.parametrize("name", ALL_SCHEDULERS)
def test_every_scheduler_of_diffusers_agrees_with_ddim_or_is_refused(ideal_pipe, name):
    ddim = ideal_pipe.scheduler
    scheduler = make_scheduler(name, ddim.config)
    if name in SCHEDULERS + OTHER_SCHEDULERS:
        latents = ideal_latents(ideal_pipe, scheduler)
        assert difference(latents, ideal_latents(ideal_pipe, ddim)) < 2 * IDEAL_BOUND
        assert difference(latents, ideal_pipe.target) < IDEAL_BOUND
        return
    with pytest.raises(ValueError, match=f"`scheduler` (must not be a {name}: .+|and .* of {name})"):
        ideal_latents(ideal_pipe, scheduler)


@pytest.mark.parametrize(
    "name",
    [
        "CMStochasticIterativeScheduler",
        "DPMSolverMultistepInverseScheduler",
        "EDMDPMSolverMultistepScheduler",
        "EDMEulerScheduler",
        "UnCLIPScheduler",
    ],
)
def test_refused_schedulers_would_give_another_video(ideal_pipe, name):
    scheduler = make_scheduler(name, ideal_pipe.scheduler.config)
    with mock.patch.multiple(ideal_pipe, check_components=mock.DEFAULT, check_timesteps=mock.DEFAULT):
        assert not difference(ideal_latents(ideal_pipe, scheduler), ideal_pipe.target) < 2 * IDEAL_BOUND


@pytest.mark.parametrize(
    "scheduler_class, settings, reason",
    [
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True}, "`use_flow_sigmas`"),
        (
            "EulerDiscreteScheduler",
            {"timestep_type": "continuous", "prediction_type": "v_prediction"},
            "falling timesteps",
        ),
        ("DDIMScheduler", {"steps_offset": 1000}, "falling timesteps from 999 to 0"),
        ("DDPMScheduler", {"variance_type": "learned"}, "`variance_type` needs predicted variances"),
        (
            "DPMSolverMultistepScheduler",
            {"variance_type": "learned_range"},
            "`variance_type` needs predicted variances",
        ),
        ("DDIMScheduler", {"prediction_type": "xxx"}, "able to make a step; got .*xxx.*DDIMScheduler"),
        ("UniPCMultistepScheduler", {"prediction_type": "xxx"}, "able to make a step; got .*xxx"),
        ("KDPM2DiscreteScheduler", {"prediction_type": "sample"}, "able to make a step; got .*sample"),
        *((f"{name}Scheduler", ZERO_SNR, "zero terminal SNR with epsilon") for name in ("DDIM", "DDPM", "LCM", "TCD")),
    ],
)
def test_settings_that_make_a_scheduler_unusable_are_refused(shared_pipe, scheduler_class, settings, reason):
    with scheduler_of(shared_pipe, getattr(diffusers, scheduler_class)(**settings)), unet_inputs(shared_pipe) as seen:
        with pytest.raises(ValueError, match=f"`scheduler` .*{reason}"):
            shared_pipe(**get_dummy_inputs())
    assert not seen


@pytest.mark.parametrize(
    "scheduler_class, settings",
    [
        ("DDIMScheduler", {"prediction_type": "v_prediction"}),
        ("DDIMScheduler", {"timestep_spacing": "leading"}),  # which leaves out the last timestep
        ("EulerDiscreteScheduler", {}),  # and these never reach 0
        ("DPMSolverMultistepScheduler", {}),
    ],
)
def test_zero_terminal_snr_is_taken_where_nothing_is_divided_by_it(shared_pipe, scheduler_class, settings):
    with scheduler_of(shared_pipe, getattr(diffusers, scheduler_class)(**{**ZERO_SNR, **settings})):
        assert torch.isfinite(shared_pipe(**get_dummy_inputs()).frames).all()


def test_checks_of_a_scheduler_draw_no_numbers(shared_pipe):
    with scheduler_of(shared_pipe, diffusers.DDPMScheduler()):
        state = torch.get_rng_state()
        shared_pipe.check_timesteps(5)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("num_inference_steps", [1, 2])
def test_one_step_has_a_direction_too(shared_pipe, num_inference_steps):
    with scheduler_of(shared_pipe, diffusers.DPMSolverMultistepInverseScheduler()):
        with pytest.raises(ValueError, match="`scheduler` and .* must give falling timesteps"):
            shared_pipe(**get_dummy_inputs(), num_inference_steps=num_inference_steps)


def test_a_number_of_steps_that_the_scheduler_cannot_do_is_named(shared_pipe):
    message = "`num_inference_steps` must be a number that LCMScheduler can do; got 5"
    with scheduler_of(shared_pipe, diffusers.LCMScheduler(original_inference_steps=4)):
        with pytest.raises(ValueError, match=message):
            shared_pipe(**get_dummy_inputs(), num_inference_steps=5)
    with scheduler_of(shared_pipe, diffusers.PNDMScheduler()):
        for number in (1, 2, 3):  # too few for its Runge-Kutta steps
            with pytest.raises(
                ValueError, match=f"`num_inference_steps` .* whole number from 4 to 1000; got {number}"
            ):
                shared_pipe(**get_dummy_inputs(), num_inference_steps=number)


def test_hooks_can_read_the_current_timestep(shared_pipe):
    seen = []
    hook = shared_pipe.unet.register_forward_pre_hook(lambda *args: seen.append(shared_pipe.current_timestep))
    try:
        shared_pipe(**get_dummy_inputs(), chunk_size=3)
    finally:
        hook.remove()
    assert [int(t) for t in seen] == [int(t) for t in shared_pipe.scheduler.timesteps] * 2
    assert shared_pipe.current_timestep is None is get_dummy_pipeline().current_timestep


# Threads


def test_a_second_call_at_the_same_time_is_refused(shared_pipe):
    expected, heard = shared_pipe(**get_dummy_inputs()).frames, []
    other = DreamPosePipeline.from_pipe(shared_pipe, scheduler=copy.deepcopy(shared_pipe.scheduler))
    other.set_progress_bar_config(disable=True)

    def call(pipe):
        try:
            heard.append(pipe(**get_dummy_inputs()).frames)
        except Exception as error:
            heard.append(error)

    def callback(pipe, step, timestep, callback_kwargs):
        if step == 0:
            for one in (shared_pipe, DreamPosePipeline.from_pipe(shared_pipe), other):
                thread = threading.Thread(target=call, args=(one,))
                thread.start()
                thread.join()
        return {}

    frames = shared_pipe(**get_dummy_inputs(), callback_on_step_end=callback).frames
    assert torch.equal(frames, expected), "the first call is undisturbed"
    for error in heard[:2]:
        assert type(error) is ValueError and "`scheduler` must not serve two calls at once" in str(error)
    assert torch.equal(heard[2], expected) and len(heard) == 3, "its own scheduler"
    assert torch.equal(shared_pipe(**get_dummy_inputs()).frames, expected)


def test_a_failed_call_frees_the_scheduler(shared_pipe):
    def fail(*args):
        raise KeyError("of the callback")

    with pytest.raises(KeyError, match="of the callback"):
        shared_pipe(**get_dummy_inputs(), callback_on_step_end=fail)
    assert shared_pipe.current_timestep is None
    shared_pipe(**get_dummy_inputs())


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"image_embed_dim": 32}, "`adapter` must fit `unet`: image_embed_dim must be 16; got 32"),
        ({"num_image_tokens": 50}, "`adapter` must fit `image_encoder`: num_image_tokens must be 5; got 50"),
        ({"latent_channels": 8}, "`adapter` must fit `vae`: latent_channels must be 4; got 8"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(settings, message):
    config = dict(get_dummy_components()["adapter"].config)
    pipe = get_dummy_pipeline(adapter=DreamPoseAdapter.from_config({**config, **settings}))
    with pytest.raises(ValueError, match=message):
        pipe(**get_dummy_inputs())


def test_a_saved_folder_does_not_tell_where_its_components_came_from(tmp_path):
    get_dummy_pipeline().save_pretrained(tmp_path / "first")
    (tmp_path / "second" / "other").mkdir(parents=True)
    (tmp_path / "second" / "other" / "config.json").write_text('{"_name_or_path": "not a component"}')
    DreamPosePipeline.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    assert "not a component" in (tmp_path / "second" / "other" / "config.json").read_text(), "unchanged"
    files = [path for path in (tmp_path / "second").rglob("*") if path.suffix == ".json"]
    assert len(files) >= 6 and not any(str(tmp_path) in path.read_text() for path in files)
