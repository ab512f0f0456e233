"""The functions that sampling and training share, checked against values computed by hand."""

import inspect
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPImageProcessor

import pipeline_dreampose
from pipeline_dreampose import (
    DreamPoseAdapter,
    DreamPosePipeline,
    clip_pixel_values,
    encode_reference,
    fit_image,
    fit_pose_maps,
    iuv_to_pose_map,
    pose_window,
    resize_pose_maps,
    to_rgb,
)
from tests.tiny_components import (
    HEIGHT,
    IMAGE_EMBED_DIM,
    IMAGE_SIZE,
    LATENT_CHANNELS,
    LATENT_HEIGHT,
    LATENT_WIDTH,
    NUM_IMAGE_TOKENS,
    WIDTH,
    get_dummy_components,
    get_dummy_image,
    get_dummy_iuv,
    get_dummy_pipeline,
)


def picture(rows):
    return Image.fromarray(np.array(rows, dtype=np.uint8))


# iuv_to_pose_map


def test_iuv_to_pose_map_reads_u_from_green_and_v_from_red():
    iuv = picture([[(51, 102, 1), (255, 0, 24)], [(255, 255, 0), (0, 204, 7)]])
    u, v = iuv_to_pose_map(iuv)
    assert torch.equal(u, torch.tensor([[102.0, 0.0], [0.0, 204.0]]) / 255)  # the background is always zero
    assert torch.equal(v, torch.tensor([[51.0, 255.0], [0.0, 0.0]]) / 255)
    assert torch.equal(iuv_to_pose_map(np.array(iuv)), iuv_to_pose_map(iuv))
    assert u.dtype == torch.float32


@pytest.mark.parametrize(
    "image, message",
    [
        (picture([[(0, 0, 25)]]), "got 25.*poses again, as IUV"),
        (picture([[(68, 1, 84)]]), "part-colour picture.*no longer contains U and V"),  # viridis background
        (picture([[(53, 42, 135)]]), "part-colour picture .parula"),  # parula background
        (
            picture([[(0, 0, 0)]] * 2 + [[(7, 200, 90)], [(1, 9, 2)]]),
            "got 90. Its red channel holds them .order I, U, V.: .*extract_poses",
        ),
        (picture([[(0, 0, 0)]] * 2 + [[(90, 7, 200)], [(9, 1, 2)]]), "got 200. Its green channel holds them: put V"),
        (picture([[(3, 100, 200)]] * 4), "got 200. It is no IUV picture"),  # bluish
        (picture([[(0, 0, 0)]] * 2 + [[(3, 100, 200)]]), "got 200. A lossy format"),  # bluish on black
        (picture([[(2, 0, 1)]] * 3 + [[(200, 90, 40)]]), "got 40. A lossy format such as JPEG has mixed its parts"),
        (picture([[(200, 190, 180)]]), "got 180. It is no IUV picture"),
        (picture([[3]]), "mode 'L'"),
        (picture([[(0, 0, 0, 0)]]), "mode 'RGBA'"),
        (np.zeros((4, 4, 3)), "8 bit array.*float64"),
        (np.zeros((2, 4, 4), np.uint8), r"8 bit array.*\(2, 4, 4\)"),
        (torch.zeros(4, 4, 3), "8 bit array.*Tensor"),
    ],
)
def test_iuv_to_pose_map_refuses_other_images(image, message):
    with pytest.raises(ValueError, match=message):
        iuv_to_pose_map(image)


# fit_image


def test_fit_image_of_the_right_size_changes_nothing():
    values = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    pixel_values = fit_image(Image.fromarray(values), 6, 4)
    assert pixel_values.shape == (3, 6, 4) and pixel_values.dtype == torch.float32
    levels = (pixel_values + 1) * 127.5
    assert torch.allclose(levels, torch.from_numpy(values).permute(2, 0, 1).float(), atol=1e-4)
    for level, value in ((0, -1), (255, 1)):
        assert fit_image(picture([[(level,) * 3]]), 1, 1).eq(value).all()


def test_fit_image_continues_the_borders():
    photo = picture([[(255, 0, 0), (0, 0, 255)]])  # 1 x 2 in 4 x 2 fills the second of four rows
    red = fit_image(photo, 4, 2)[0]
    assert torch.equal(red, torch.tensor([[1.0, -1.0]] * 4))
    red = fit_image(photo.transpose(Image.Transpose.TRANSPOSE), 2, 5)[0]
    assert torch.equal(red, torch.tensor([[1.0] * 5, [-1.0] * 5]))


def test_fit_image_keeps_the_whole_picture_and_its_shape():
    square = np.full((40, 40, 3), 255, dtype=np.uint8)
    square[10:30, 10:30] = 0
    dark = fit_image(Image.fromarray(square), 40, 20)[0] < 0  # fitted to 20 x 20, ten rows above and below
    rows, columns = dark.any(1).nonzero().flatten(), dark.any(0).nonzero().flatten()
    assert (rows[0], rows[-1]) == (15, 24) and (columns[0], columns[-1]) == (5, 14)


def test_fit_image_takes_arrays_and_tensors_in_both_scales():
    photo = get_dummy_image()
    array = np.array(photo)
    expected = fit_image(photo, 16, 12)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    for same in (array, array / 255, tensor, tensor / 255, (tensor / 255).double()):
        assert torch.equal(fit_image(same, 16, 12), expected)


def test_photos_of_other_modes_keep_their_levels():
    levels = np.array([[0, 51], [102, 255]])
    for mode, values in (
        ("F", levels),
        ("F", levels / 255),
        ("I", levels),
        ("I", levels * 257),
        ("I;16", levels * 257),
    ):
        array = values.astype({"F": np.float32, "I": np.int32, "I;16": np.uint16}[mode])
        image = Image.fromarray(array)
        assert image.mode == mode and np.array_equal(np.asarray(to_rgb(image)), np.stack([levels] * 3, axis=-1))
    transparent = Image.merge("LA", [Image.fromarray(levels.astype(np.uint8))] * 2)
    flat = to_rgb(transparent.convert("La"))
    assert np.abs(np.asarray(flat, int) - np.asarray(to_rgb(transparent), int)).max() <= 1
    for image, most in ((Image.new("F", (2, 2), 65535.0), 255), (Image.new("F", (2, 2), float("nan")), 255)):
        with pytest.raises(ValueError, match=f"`image` must hold values from 0 to {most} in mode F; got float32"):
            to_rgb(image)
    for value in (-1, 65536):
        with pytest.raises(ValueError, match=f"`image` must hold values from 0 to 65535 in mode I; got .*{value}"):
            to_rgb(Image.new("I", (2, 2), value))


def odd_forms(values):
    """The same numbers as arrays and tensors with another memory layout or data type."""
    frozen = values.copy()
    frozen.flags.writeable = False
    yield from (values[::-1].copy()[::-1], values[..., ::-1].copy()[..., ::-1], np.asfortranarray(values), frozen)
    yield from (values.astype(kind) for kind in (">f4", ">f8", "<f8", np.longdouble))
    tensor = torch.from_numpy(values)
    yield from (tensor, tensor.double(), tensor.clone().requires_grad_(), torch._neg_view(-tensor))
    yield tensor.transpose(0, 1).contiguous().transpose(0, 1)


def test_arrays_in_any_memory_layout_and_byte_order():
    photo = np.array(get_dummy_image())
    expected = fit_image(photo, 16, 12)
    for form in odd_forms((photo / 255).astype(np.float32)):
        form = form.permute(2, 0, 1) if isinstance(form, torch.Tensor) else form
        assert torch.equal(fit_image(form, 16, 12), expected)
    for form in (photo[::-1].copy()[::-1], torch.from_numpy(photo).permute(2, 0, 1), np.asfortranarray(photo)):
        assert torch.equal(fit_image(form, 16, 12), expected)
    pipe = get_dummy_pipeline()
    maps = torch.stack([iuv_to_pose_map(get_dummy_iuv(i)) for i in range(3)])
    expected = pipe.prepare_pose_maps(maps, HEIGHT, WIDTH, 1)
    for form in odd_forms(maps.numpy()):
        assert torch.equal(pipe.prepare_pose_maps(form, HEIGHT, WIDTH, 1), expected)
    coarse = (maps * 4).round() / 4  # what 8 bits hold exactly
    expected = pipe.prepare_pose_maps(coarse, HEIGHT, WIDTH, 1)
    for kind in (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
        assert torch.equal(pipe.prepare_pose_maps(coarse.to(kind), HEIGHT, WIDTH, 1), expected)


def test_fit_image_converts_modes():
    white = fit_image(picture([[(0, 0, 0, 0)]]), 1, 1)  # transparent black becomes white
    assert white.eq(1).all()
    half = fit_image(picture([[(0, 0, 0, 128)]]), 1, 1)
    assert torch.allclose(half, torch.full((3, 1, 1), 127 / 127.5 - 1))
    assert fit_image(Image.new("CMYK", (1, 1), (0, 0, 0, 0)), 1, 1).eq(1).all()
    assert fit_image(picture([[255]]), 1, 1).shape == (3, 1, 1)
    sixteen = Image.fromarray(np.array([[0, 257 * 7, 65535]], dtype=np.uint16))
    assert torch.allclose((fit_image(sixteen, 1, 3)[0] + 1) * 127.5, torch.tensor([[0.0, 7.0, 255.0]]), atol=1e-4)
    turned = picture([[(0, 0, 0)], [(255, 255, 255)]])
    exif = turned.getexif()
    exif[0x0112] = 3  # orientation: upside down
    turned.info["exif"] = exif.tobytes()
    assert torch.equal(fit_image(turned, 2, 1)[0].flatten(), torch.tensor([1.0, -1.0]))


def test_fit_image_refuses_unreadable_and_wrong_images(tmp_path):
    get_dummy_image(height=200, width=200).save(tmp_path / "whole.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "whole.png").read_bytes()[:5000])
    with pytest.raises(ValueError, match="`image` must be readable.*broken.png"):
        fit_image(Image.open(tmp_path / "broken.png"), 8, 8)
    for wrong, message in (
        ("photo.png", "`image` must be a PIL image.*str"),
        (np.zeros((4, 4, 4), np.uint8), "three colour channels"),
        (torch.zeros(4, 4, 3), "three colour channels"),
        (np.full((4, 4, 3), 2.0), r"finite values in \[0, 1\].*2.0"),
        (torch.full((3, 4, 4), -0.5), r"finite values in \[0, 1\].*-0.5"),
        (torch.full((3, 4, 4), torch.nan), r"finite values in \[0, 1\].*nan"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_image(wrong, 8, 8)


# fit_pose_maps, resize_pose_maps, pose_window


def test_fit_pose_maps_pads_with_zeros():
    maps = torch.tensor([[[[0.25, 0.5]], [[0.75, 1.0]]]])  # one frame of 1 x 2
    fitted = fit_pose_maps(maps, 4, 2)
    assert torch.equal(fitted[0, 0], torch.tensor([[0, 0], [0.25, 0.5], [0, 0], [0, 0]]))
    assert torch.equal(fitted[0, 1], torch.tensor([[0, 0], [0.75, 1.0], [0, 0], [0, 0]]))
    doubled = fit_pose_maps(maps, 2, 4)
    assert torch.equal(doubled[0, 0], torch.tensor([[0.25, 0.25, 0.5, 0.5]] * 2))


def test_photo_and_poses_are_fitted_alike():
    body = np.zeros((30, 50, 3), dtype=np.uint8)
    body[6:24, 10:40] = (255, 255, 1)
    fitted_pose = fit_pose_maps(iuv_to_pose_map(Image.fromarray(body))[None], 64, 48)[0, 0] > 0.5
    photo = np.where(body[..., 2:] > 0, 255, 0).astype(np.uint8).repeat(3, axis=2)
    fitted_photo = fit_image(Image.fromarray(photo), 64, 48)[0] > 0
    for axis in (0, 1):
        pose, photo = fitted_pose.any(axis).nonzero().flatten(), fitted_photo.any(axis).nonzero().flatten()
        assert abs(pose[0] - photo[0]) <= 1 and abs(pose[-1] - photo[-1]) <= 1  # one pixel of rounding


def test_resize_pose_maps_is_nearest_and_not_nearest_exact():
    maps = torch.arange(6.0).view(1, 1, 1, 6).expand(1, 2, 3, 6)
    assert torch.equal(resize_pose_maps(maps, 3, 3)[0, 0, 0], torch.tensor([0.0, 2.0, 4.0]))  # exact: 1, 3, 5
    assert torch.equal(resize_pose_maps(maps, 3, 4)[0, 0, 0], torch.tensor([0.0, 1.0, 3.0, 4.0]))  # floor(1.5 i)
    assert resize_pose_maps(maps, 3, 6) is maps


def test_pose_window_by_hand():
    maps = torch.stack([torch.full((2, 1, 1), float(i)) for i in range(4)])
    maps[:, 1] += 10  # V
    assert pose_window(maps, 1).flatten().tolist() == [0, 10, 0, 10, 1, 11, 2, 12, 3, 13]
    assert pose_window(maps, 3).flatten().tolist() == [1, 11, 2, 12, 3, 13, 3, 13, 3, 13]
    assert pose_window(maps, 0, radius=1).flatten().tolist() == [0, 10, 0, 10, 1, 11]
    assert pose_window(maps, 2, radius=0).flatten().tolist() == [2, 12]
    assert pose_window(maps[:1], 0).shape == (10, 1, 1)


def test_pose_functions_refuse_wrong_input():
    maps = torch.zeros(3, 2, 4, 4)
    for function in (fit_pose_maps, resize_pose_maps):
        with pytest.raises(ValueError, match=r"`pose_maps`.*\(2, 4, 4\)"):
            function(maps[0], 2, 2)
    with pytest.raises(ValueError, match=r"`pose_maps`.*\(3, 3, 4, 4\)"):
        pose_window(torch.zeros(3, 3, 4, 4), 0)
    with pytest.raises(ValueError, match="`pose_maps`.*ndarray"):
        fit_pose_maps(maps.numpy(), 2, 2)
    for index in (-1, 3):
        with pytest.raises(ValueError, match=f"`index` .* 3 frames; got {index}"):
            pose_window(maps, index)
    with pytest.raises(ValueError, match="`radius`.*-1"):
        pose_window(maps, 0, radius=-1)


# encode_reference


def test_encode_reference_is_clip_of_the_whole_canvas_and_the_posterior_mean():
    components = get_dummy_components()
    vae, encoder, extractor = components["vae"], components["image_encoder"], components["feature_extractor"]
    photo = get_dummy_image()
    with torch.no_grad():
        embeds, latents = encode_reference(fit_image(photo, HEIGHT, WIDTH)[None], vae, encoder, extractor)
        # transformers' processor also squeezes to a square, since its centre crop is off
        expected = encoder(**extractor(images=photo, return_tensors="pt"))
        pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None] / 255 * 2 - 1
        mean = vae.encode(pixels).latent_dist.mean
    assert embeds.shape == (1, NUM_IMAGE_TOKENS, IMAGE_EMBED_DIM)
    assert torch.allclose(embeds, expected.last_hidden_state, atol=1e-5)
    assert latents.shape == (1, LATENT_CHANNELS, LATENT_HEIGHT, LATENT_WIDTH)
    assert torch.allclose(latents, mean * 0.18215, atol=1e-5)


def test_clip_pixel_values_by_hand():
    extractor = get_dummy_components()["feature_extractor"]
    pixel_values = torch.stack([torch.full((3, 8, 6), -1.0), torch.full((3, 8, 6), 1.0)])
    black, white = clip_pixel_values(pixel_values, IMAGE_SIZE, extractor)
    mean, std = torch.tensor(extractor.image_mean), torch.tensor(extractor.image_std)
    assert black.shape == (3, IMAGE_SIZE, IMAGE_SIZE)
    assert torch.allclose(black[:, 0, 0], -mean / std) and torch.allclose(white[:, -1, -1], (1 - mean) / std)


@pytest.mark.parametrize("height, width", [(640, 512), (512, 640), (448, 448)])
def test_a_feature_extractor_that_crops_sees_only_the_middle(height, width):
    """The crop equals that of transformers' processor at the method's sizes, where it crops whole pixels."""
    extractor = CLIPImageProcessor(size={"shortest_edge": 224}, crop_size=224)
    photo = get_dummy_image(0, height, width)
    cropped = clip_pixel_values(fit_image(photo, height, width)[None], 224, extractor)
    torch.testing.assert_close(cropped, extractor(images=photo, return_tensors="pt").pixel_values, atol=1e-6, rtol=0)
    extractor.do_center_crop = False
    whole = clip_pixel_values(fit_image(photo, height, width)[None], 224, extractor)
    assert torch.equal(whole, cropped) == (height == width)


def test_encode_reference_maps_the_image_range_only_for_the_vae():
    components = get_dummy_components()
    parts = components["vae"], components["image_encoder"], components["feature_extractor"]
    pixel_values = fit_image(get_dummy_image(), HEIGHT, WIDTH)[None]
    with torch.no_grad():
        embeds, latents = encode_reference(pixel_values, *parts)
        other_embeds, other_latents = encode_reference(pixel_values, *parts, image_range=(0.0, 1.0))
        expected = parts[0].encode((pixel_values + 1) / 2).latent_dist.mean * 0.18215
    assert torch.equal(embeds, other_embeds)
    assert torch.allclose(other_latents, expected, atol=1e-5) and not torch.allclose(other_latents, latents, atol=1e-3)


def test_gradients_reach_the_encoders_through_encode_reference():
    components = get_dummy_components()
    vae, encoder, adapter = components["vae"], components["image_encoder"], components["adapter"]
    pixel_values = torch.stack([fit_image(get_dummy_image(seed), HEIGHT, WIDTH) for seed in range(2)])
    embeds, latents = encode_reference(pixel_values, vae, encoder, components["feature_extractor"])
    adapter(embeds, latents).square().mean().backward()
    for module in (encoder.embeddings.patch_embedding, encoder.encoder.layers[0].mlp.fc1, vae.encoder.conv_in):
        assert module.weight.grad.abs().max() > 0
    assert adapter.vae_projection.weight.grad.abs().max() > 0


# DreamPoseAdapter


def test_a_new_adapter_returns_the_clip_tokens_unchanged():
    torch.manual_seed(0)
    adapter = DreamPoseAdapter()
    assert adapter.vae_projection.weight.shape == (768, 1280) and adapter.token_mixer.weight.shape == (50, 54)
    assert torch.equal(adapter.token_mixer.weight, torch.eye(50, 54)) and not adapter.token_mixer.bias.any()
    tokens, latents = torch.randn(2, 50, 768), torch.randn(2, 4, 80, 64)
    assert torch.equal(adapter(tokens, latents), tokens)


@pytest.mark.parametrize("latent_size", [(20, 16), (10, 8), (31, 17), (6, 4)])
def test_adapter_by_hand_at_any_size(latent_size):
    torch.manual_seed(0)
    adapter = DreamPoseAdapter(128, 65, latent_channels=8, pooled_height=10, pooled_width=8)
    torch.nn.init.normal_(adapter.token_mixer.weight)
    torch.nn.init.normal_(adapter.token_mixer.bias)
    tokens, latents = torch.randn(2, 65, 128), torch.randn(2, 8, *latent_size)
    states = adapter(tokens, latents)
    assert states.shape == (2, 65, 128)
    if latent_size == (20, 16):
        pooled = F.max_pool2d(latents, 2).flatten(2)  # 2 x 2, as in the paper
        vae_tokens = torch.einsum("dp,bcp->bcd", adapter.vae_projection.weight, pooled) + adapter.vae_projection.bias
        expected = torch.einsum("ot,btd->bod", adapter.token_mixer.weight, torch.cat([tokens, vae_tokens], 1))
        assert torch.allclose(states, expected + adapter.token_mixer.bias[:, None], atol=1e-4)


def test_adapter_saves_and_loads(tmp_path):
    adapter = get_dummy_components()["adapter"]
    adapter.save_pretrained(tmp_path)
    loaded = DreamPoseAdapter.from_pretrained(tmp_path)
    assert (tmp_path / "diffusion_pytorch_model.safetensors").is_file()
    assert {k: v for k, v in loaded.config.items() if not k.startswith("_")} == {
        k: v for k, v in adapter.config.items() if not k.startswith("_")
    }
    for name, value in adapter.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


# Documentation


@pytest.mark.parametrize("documented", [DreamPosePipeline, DreamPoseAdapter])
def test_class_docstrings_list_the_arguments_of_init(documented):
    section = inspect.cleandoc(documented.__doc__).split("Args:\n")[1]
    names = re.findall(r"^    (\w+) \(", section, re.MULTILINE)
    assert names == list(inspect.signature(documented.__init__).parameters)[1:]


def test_the_file_may_be_executed_again():
    source = inspect.getsource(pipeline_dreampose)
    assert not re.search(r"is(instance|subclass)\([^)]*DreamPose", source) and not re.search(r"super\(\w", source)
    assert not re.search(r"^\s*(from|import)\s+\.", source, re.MULTILINE)
    assert source.count("\n") <= 1623


def test_iuv_pictures_of_the_tests_are_valid():
    pose_map = iuv_to_pose_map(get_dummy_iuv())
    assert pose_map.shape == (2, HEIGHT, WIDTH) and 0 <= pose_map.min() and 0.9 < pose_map.max() <= 1
