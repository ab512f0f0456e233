import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.subjects.trials import draw_photos
from tests.tiny_components import get_dummy_image, get_dummy_iuv
from training.data.procedural_fashion import ProceduralFashion, ProceduralFashionConfig
from training.data.procedural_figure import chart_coordinates
from training.metrics.warping import SIDES, UV_TOLERANCE, inner_body, match_surface, take_from_photos, warp_photo


def picture(pixels):
    return Image.fromarray(np.array(pixels, dtype=np.uint8))


def unique_iuv(parts, seed=0):
    """Draw an IUV picture whose points all differ."""
    order = np.random.default_rng(seed).permutation(parts.size).reshape(parts.shape)
    return picture(np.stack([order // 16 * 16, order % 16 * 16, parts], axis=-1) * (parts > 0)[..., None])


def test_each_pixel_takes_the_nearest_of_its_part():
    iuv, photo_iuv, photo = get_dummy_iuv(1, 9, 8), get_dummy_iuv(2, 12, 10), np.asarray(get_dummy_image(3, 12, 10))
    match = match_surface(iuv, photo_iuv, chunk_size=2)
    v, u, i = np.moveaxis(np.asarray(photo_iuv).astype(float).reshape(-1, 3), -1, 0)
    for y in range(9):
        for x in range(8):
            point = np.asarray(iuv)[y, x].astype(float)
            assert match.is_body[y, x] == (point[2] > 0)
            same = np.flatnonzero(i == point[2])
            if point[2] == 0 or len(same) == 0:
                assert match.distance[y, x] == torch.inf
                continue
            distances = np.hypot(v - point[0], u - point[1])[same] / 255
            assert match.distance[y, x].item() == pytest.approx(distances.min(), abs=1e-5)
            assert int(match.index[y, x]) == same[distances.argmin()]
            assert match.is_unseen[y, x] == (distances.min() > UV_TOLERANCE)
    assert match.is_unseen.any() and (match.is_body & ~match.is_unseen).any() and photo.shape == (12, 10, 3)


def test_a_person_who_only_stepped_aside_is_met_exactly():
    parts = np.zeros((16, 12), int)
    parts[3:13, 1:6] = 2
    parts[3:5, 2:4] = 24
    photo_iuv, photo = unique_iuv(parts), get_dummy_image(0, 16, 12)
    iuv = picture(np.roll(np.asarray(photo_iuv), 5, axis=1))
    match = match_surface(iuv, photo_iuv)
    warped = warp_photo(photo, photo_iuv, match).mul(255).round().permute(1, 2, 0).numpy()
    moved = np.roll(parts > 0, 5, axis=1)
    np.testing.assert_array_equal(warped[moved], np.roll(np.asarray(photo), 5, axis=1)[moved])
    assert not match.is_unseen.any() and match.distance[match.is_body].max() < 1e-6


def test_pixels_outside_the_body():
    photo_parts = np.zeros((8, 8), int)
    photo_parts[2:5, 1:3] = 2
    pixels = np.full((8, 8, 3), 200)
    pixels[photo_parts > 0], pixels[6, 6] = 40, 90  # the body, and a hem beyond it
    photo, photo_iuv = picture(pixels), unique_iuv(photo_parts)
    nobody = picture(np.zeros((8, 8, 3)))
    warped = warp_photo(photo, photo_iuv, match_surface(nobody, photo_iuv)).mul(255).round()
    assert (warped[:, photo_parts > 0] == 200).all(), "nobody stands there twice"
    assert (warped[:, 6, 6] == 90).all(), "hems stay where they were"
    assert (warped[:, :2] == 200).all()


def test_a_side_that_the_photo_does_not_show_is_painted_by_the_other_one():
    photo_parts = np.zeros((6, 6), int)
    photo_parts[1], photo_parts[2] = 2, 9
    photo_iuv, photo = unique_iuv(photo_parts), get_dummy_image(1, 6, 6)
    frame = np.asarray(photo_iuv).copy()
    frame[1, :, 2] = 1  # the back of the torso has the front's U and V
    frame[2] = 255 - frame[2]
    frame[2, :, 2] = 7  # the back of the right thigh has both mirrored
    frame[4, :] = (9, 9, 15)  # the photo shows no upper arm
    match = match_surface(picture(frame), photo_iuv)
    warped = warp_photo(photo, photo_iuv, match).mul(255).round().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(warped[1:3], np.asarray(photo)[1:3])
    mean = np.asarray(photo).astype(float)[1:3].reshape(-1, 3).mean(axis=0)
    np.testing.assert_allclose(warped[4], np.broadcast_to(mean.round(), (6, 3)), atol=1)
    assert match.is_unseen[1:3].all() and match.is_unseen[4].all() and match.distance[1].eq(torch.inf).all()


@pytest.mark.parametrize(
    "name",
    ["torso"] + [f"{p}_{s}" for p in ("upper_leg", "lower_leg", "upper_arm", "lower_arm") for s in ("left", "right")],
)
def test_the_sides_are_those_of_the_charts(name):
    rng = np.random.default_rng(0)
    phi, t = rng.uniform(-1.4, 1.4, 20), rng.uniform(0, 1, 20)
    front, back = chart_coordinates(name, phi, t), chart_coordinates(name, np.pi - phi, t)
    entry = next(sides for sides in SIDES if sides[0] == front[0][0])
    assert entry[1] == back[0][0]
    for value, other, is_turned in zip(front[1:], back[1:], entry[2:], strict=True):
        np.testing.assert_allclose(1 - other if is_turned else other, value)


def test_the_photo_of_a_drawn_figure_hides_the_back():
    frames = ProceduralFashion(config_name="tiny").config.clip("test", 2, 2, [0, 1, 8])  # frame 8 from behind
    photo, soon, back = (Image.fromarray(frame.iuv) for frame in frames)
    shares = []
    for iuv in (photo, soon, back):
        match = match_surface(iuv, photo)
        shares.append(match.is_unseen.sum() / match.is_body.sum())
    assert shares[0] == 0 and shares[1] < 0.02 and shares[2] > 0.8


def test_sizes_must_agree():
    match = match_surface(get_dummy_iuv(0, 9, 8), get_dummy_iuv(1, 9, 8))
    with pytest.raises(ValueError, match=r"`photo`, `photo_iuv` and `match` must have one size .*\(10, 8\)"):
        warp_photo(get_dummy_image(0, 10, 8), get_dummy_iuv(1, 9, 8), match)


def test_the_body_is_read_from_the_photo_that_shows_it():
    """In the pose of the photo of the back, the whole body comes from that photo; the front shows little of it."""
    config = ProceduralFashionConfig(name="small", height=80, width=64)
    front, back = (
        (Image.fromarray(photo.image), Image.fromarray(photo.iuv)) for photo in draw_photos(config, "validation", 3, 2)
    )
    is_body = torch.from_numpy(np.asarray(back[1])[..., 2] > 0)
    truth = torch.from_numpy(np.asarray(back[0]).copy()).permute(2, 0, 1) / 255
    pixels, distance = take_from_photos([front, back], back[1])
    assert (distance[is_body] == 0).all() and (distance[~is_body] > 1).all()
    assert torch.equal(pixels[:, is_body], truth[:, is_body])
    _, distance = take_from_photos([front], back[1])
    assert (distance <= UV_TOLERANCE).sum() < 0.5 * is_body.sum(), "the front shows little of it"


def test_the_inner_body_lacks_the_outermost_pixels():
    parts = np.zeros((5, 6), dtype=np.uint8)
    parts[1:5, 1:5] = 3  # it touches the lower border, behind which nothing is known
    inner = np.asarray(inner_body(unique_iuv(parts)))
    assert np.argwhere(inner[..., 2] > 0).tolist() == [[2, 2], [2, 3], [3, 2], [3, 3], [4, 2], [4, 3]]
    assert (inner[inner[..., 2] == 0] == 0).all()
