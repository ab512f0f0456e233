"""Pictures and poses get the same geometry: a drawn figure stays where its UV is."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from pipeline_dreampose import fit_image, fit_pose_maps, iuv_to_pose_map, resize_pose_maps
from training.data.random_crops import read_cells, read_labels, read_levels, shown_box, to_pixel_values


SKIN, WALL = (200, 80, 120), (20, 240, 60)
CANVASES = [(512, 640), (320, 256), (448, 448)]
SIZES = [(512, 640), (256, 256), (576, 720), (720, 1280), (1116, 600)]


def draw_figure(width, height):
    """Draw a head and a body in one colour on a wall of another, and the same figure as IUV."""
    image, iuv = Image.new("RGB", (width, height), WALL), Image.new("RGB", (width, height))
    for picture, color in ((image, SKIN), (iuv, (120, 200, 2))):
        draw = ImageDraw.Draw(picture)
        draw.ellipse((0.4 * width, 0.08 * height, 0.6 * width, 0.3 * height), fill=color)
        draw.polygon([(f * width, g * height) for f, g in ((0.3, 0.3), (0.7, 0.3), (0.8, 0.95), (0.25, 0.9))], color)
    return image, iuv


def iou(a, b):
    return (a & b).sum().item() / (a | b).sum().item()


def silhouette(pixel_values):
    """Mask of the pixels of a fitted picture whose colour is nearer to the skin than to the wall."""
    colors = torch.tensor([SKIN, WALL])[:, :, None, None] / 127.5 - 1
    return (pixel_values - colors[0]).norm(dim=0) < (pixel_values - colors[1]).norm(dim=0)


@pytest.mark.parametrize("fit", ["whole", "crop"])
@pytest.mark.parametrize("canvas", CANVASES)
def test_silhouettes_of_target_and_poses_coincide(canvas, fit):
    rng = np.random.default_rng(0)
    shares = []
    for size, min_crop_scale in itertools.product(SIZES, (1.0, 0.5)):
        image, iuv = draw_figure(*size)
        box = shown_box(size, canvas, fit, min_crop_scale, rng.uniform(size=3))
        target = silhouette(fit_image(image.crop(box), canvas[1], canvas[0]))
        shares.append(iou(read_cells(iuv, box, canvas, canvas).any(dim=0), target))
        cells = (canvas[0] // 8, canvas[1] // 8)
        at_cells = resize_pose_maps(target.float().expand(1, 2, -1, -1), cells[1], cells[0])[0, 0] > 0
        # At latent size a single cell of the outline counts: there are only a few hundred cells.
        assert iou(read_cells(iuv, box, canvas, cells).any(dim=0), at_cells) >= 0.96
    assert min(shares) >= 0.98


@pytest.mark.parametrize("size", [(64, 80), (80, 64), (100, 37)])
def test_cells_are_those_of_the_whole_map(size):
    """Reading only the kept pixels equals fitting the map and resizing it, bit for bit."""
    codes = np.random.default_rng(1).integers(0, 25, (size[1], size[0], 3), dtype=np.uint8)
    iuv = Image.fromarray(codes)
    for box in ((0, 0, *size), (3, 5, size[0] - 8, size[1] - 1)):
        maps = fit_pose_maps(iuv_to_pose_map(iuv.crop(box))[None], 80, 64)
        assert torch.equal(read_cells(iuv, box, (64, 80), (16, 20)), resize_pose_maps(maps, 20, 16)[0])


@pytest.mark.parametrize("size", [(64, 80), (80, 64), (100, 37)])
def test_labels_are_those_of_the_fitted_map(size):
    codes = np.random.default_rng(1).integers(0, 25, (size[1], size[0], 3), dtype=np.uint8)
    iuv = Image.fromarray(codes)
    for box in ((0, 0, *size), (3, 5, size[0] - 8, size[1] - 1)):
        fitted = read_labels(iuv, box, (64, 80))
        assert fitted.mode == "RGB" and fitted.size == (64, 80)
        expected = fit_pose_maps(iuv_to_pose_map(iuv.crop(box))[None], 80, 64)[0]
        assert torch.equal(iuv_to_pose_map(fitted), expected)
    assert read_labels(iuv, (0, 0, *size), size).tobytes() == iuv.tobytes()


def test_labels_by_hand():
    picture = Image.fromarray(np.array([[1, 2], [3, 4]], np.uint8))
    expected = [[0, 1, 1, 2, 2, 0], [0, 1, 1, 2, 2, 0], [0, 3, 3, 4, 4, 0], [0, 3, 3, 4, 4, 0]]
    fitted = read_labels(picture, (0, 0, 2, 2), (6, 4))
    assert fitted.mode == "L" and np.asarray(fitted).tolist() == expected
    assert np.asarray(read_labels(fitted, (1, 0, 5, 4), (2, 2))).tolist() == [[1, 2], [3, 4]]


def test_boxes_by_hand():
    assert shown_box((300, 200), (64, 80)) == (0, 0, 300, 200)
    # 200 high at 4:5 is 160 wide, in the middle of 300.
    assert shown_box((300, 200), (64, 80), "crop") == (70, 0, 230, 200)
    # Whole, a canvas is 300 wide and 375 high; half of it is 150 by 188, at the left and at the bottom.
    assert shown_box((300, 200), (64, 80), "whole", 0.5, (0.0, 0.0, 1.0)) == (0, 12, 150, 200)
    assert shown_box((300, 200), (64, 80), "whole", 0.5, (0.8, 1.0, 1.0)) == (30, 0, 300, 200)
    assert shown_box((300, 200), (64, 80), "crop", 0.5, (0.0, 1.0, 0.0)) == (220, 0, 300, 100)
    assert shown_box((300, 200), (64, 80), "crop", 0.5, (1.0, 1.0, 0.0)) == (140, 0, 300, 200)


def test_boxes_stay_inside_and_fill_the_canvas_as_far_as_they_can():
    rng = np.random.default_rng(2)
    for size, canvas, fit in itertools.product(SIZES, CANVASES, ("whole", "crop")):
        for draws in rng.uniform(size=(20, 3)):
            left, top, right, bottom = shown_box(size, canvas, fit, 0.4, draws)
            assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]
            has_canvas_aspect = (right - left) / (bottom - top) == pytest.approx(canvas[0] / canvas[1], rel=0.02)
            shows_a_whole_side = right - left == size[0] or bottom - top == size[1]
            assert has_canvas_aspect or (fit == "whole" and shows_a_whole_side)


def test_colours_are_left_alone():
    image, _ = draw_figure(576, 720)
    box = shown_box(image.size, (512, 640), "whole", 0.5, (0.2, 0.5, 0.5))
    pixels = (fit_image(image.crop(box), 640, 512) * 127.5 + 127.5).round().to(torch.uint8).flatten(1).T
    colors, counts = pixels.unique(dim=0, return_counts=True)
    # The filter mixes only the edge between the two colours.
    shown = {tuple(color): count for color, count in zip(colors.tolist(), counts.tolist())}
    assert shown[SKIN] + shown[WALL] > 0.96 * len(pixels)


def test_pictures_without_iuv_are_refused():
    with pytest.raises(ValueError, match="`iuv` must be an RGB picture, got mode 'L'"):
        read_cells(Image.new("L", (8, 8)), (0, 0, 8, 8), (8, 8), (2, 2))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
@pytest.mark.parametrize("size", [(24, 32), (30, 30)], ids=["of the canvas", "to be fitted"])
def test_levels_become_the_pixel_values_that_the_plug_in_makes(mode, size):
    bands = {"RGB": 3, "L": 1, "RGBA": 4}[mode]
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], bands), dtype=np.uint8)
    picture = Image.fromarray(values.squeeze())
    assert picture.mode == mode
    for box in ((0, 0, *size), (2, 3, 18, 27)):
        levels = read_levels(picture, box, (24, 32))
        assert levels.dtype == torch.uint8 and levels.shape == (3, 32, 24)
        assert torch.equal(to_pixel_values(levels), fit_image(picture.crop(box), 32, 24))


def test_transparent_pictures_are_laid_over_white():
    picture = Image.new("RGB", (24, 32), (10, 20, 30))
    picture.info["transparency"] = (10, 20, 30)  # a PNG can mark a colour as transparent
    levels = read_levels(picture, (0, 0, 24, 32), (24, 32))
    assert torch.equal(to_pixel_values(levels), fit_image(picture, 32, 24)) and levels.min() == 255
