"""Alignment of a driver's poses with the body in a photo, on drawn figures whose truth is exact."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline_dreampose import align_pose_maps, iuv_to_pose_map
from training.data.procedural_fashion import ProceduralFashionConfig
from training.data.procedural_scene import render_clip
from training.poses.alignment import align_poses


CONFIG = ProceduralFashionConfig(name="figure")
SUBJECT, MOTION = CONFIG.subject("test", 0), CONFIG.motion("test", 0)
INDICES = (0, 4, 9, 15)


def draw(subject=SUBJECT, motion=MOTION, indices=INDICES, factor=1):
    """Draw IUV pictures at a multiple of 80 x 64 pixels."""
    return [frame.iuv for frame in render_clip(subject, motion, 80 * factor, 64 * factor, indices)]


def align(frames, photo, mode="place"):
    aligned = align_poses([Image.fromarray(frame) for frame in frames], Image.fromarray(photo), mode)
    assert [(picture.mode, picture.size) for picture in aligned] == [("RGB", photo.shape[1::-1])] * len(frames)
    return [np.asarray(picture) for picture in aligned]


def paste(frame, top, left, height=300, width=300):
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[top : top + frame.shape[0], left : left + frame.shape[1]] = frame
    return canvas


DRAWN, NOBODY = Image.fromarray(draw(indices=(0,))[0]), Image.new("RGB", (64, 80))


def overlap(frames, others):
    """Return the share of pixels of the same part among those of either body, over all frames."""
    a, b = (np.stack(pictures)[..., 2] for pictures in (frames, others))
    return ((a == b) & (a > 0)).sum() / ((a > 0) | (b > 0)).sum()


def feet(frame):
    return np.flatnonzero(np.isin(frame[..., 2], (5, 6)).any(1)).max()


@pytest.fixture(scope="module")
def own():
    return draw()


@pytest.fixture(scope="module")
def filmed():
    """The photo's own body, nearer the camera and elsewhere."""
    return [paste(frame, 40, 20) for frame in draw(factor=3)]


@pytest.mark.parametrize("mode", ["place", "body"])
def test_the_photos_own_body_comes_back(own, filmed, mode):
    for frames in (own, filmed):
        for aligned, true in zip(align(frames, own[0], mode), own, strict=True):
            around = np.pad(true[..., 2], 1)
            near = np.stack([around[y : y + 80, x : x + 64] for y in range(3) for x in range(3)])
            assert (near == aligned[..., 2]).any(0).all(), "no part moves by more than a pixel"
    assert overlap(align(filmed, own[0], mode), own) > 0.93


def test_the_motion_stays(own):
    walk = [paste(draw(indices=[0], factor=2)[0], 20, 10 + 10 * k) for k in range(4)]
    aligned = align(walk, own[0])
    middles = [np.nonzero(frame[..., 2])[1].mean() for frame in aligned]
    np.testing.assert_allclose(np.diff(middles), 5, atol=0.6)
    nearer = [paste(draw(indices=[0], factor=k)[0], 0, 0, 320, 256) for k in (2, 3, 4)]
    photo = paste(own[0], 0, 0, 200, 200)
    heights = [np.ptp(np.flatnonzero(frame[..., 2].any(1))) for frame in align(nearer, photo)]
    np.testing.assert_allclose(np.divide(heights, heights[0]), [1, 1.5, 2], atol=0.08)


def test_frames_in_other_poses_do_not_decide(own, filmed):
    """The first frame alone is placed as it is in a clip of turned bodies and raised arms."""
    assert np.abs(align(filmed, own[0])[0].astype(int) - align(filmed[:1], own[0])[0]).mean() < 1
    backwards = align(filmed[::-1], own[0])[::-1]
    assert overlap(backwards, own) > 0.93


def test_feet_stand_on_the_photos_ground(own):
    long_legs = [paste(frame, 10, 10, 400, 300) for frame in draw(replace(SUBJECT, leg_length=0.8), factor=3)]
    for mode in ("place", "body"):
        assert abs(feet(align(long_legs, own[0], mode)[0]) - feet(own[0])) <= 1, mode


def test_body_gives_the_photos_widths_and_lengths(own):
    driver = replace(SUBJECT, shoulder=SUBJECT.shoulder * 1.25, waist=SUBJECT.waist * 1.3, limb=SUBJECT.limb * 0.75,
                     arm_length=0.8, leg_length=0.8, torso_length=1.1)  # fmt: skip
    filmed = [paste(frame, 20, 10, 400, 300) for frame in draw(driver, factor=4)]
    place, body = (align(filmed, own[0], mode) for mode in ("place", "body"))
    assert overlap(body, own) > 0.75 > 0.6 > overlap(place, own)
    for frame, source in zip(body, filmed, strict=True):
        points = {tuple(point) for point in source.reshape(-1, 3)}
        assert {tuple(point) for point in frame.reshape(-1, 3)} <= points, "U and V are those of the surface"
        assert holes(frame) == 0


def test_body_finds_the_photos_frame_again_once_the_bodies_are_alike():
    """While the proportions differ, a frame that stands elsewhere agrees best with the photo."""
    subject, motion = CONFIG.subject("test", 10), CONFIG.motion("test", 10)
    off = {"shoulder": 0.86, "waist": 0.7, "hip": 0.87, "limb": 0.85, "arm_length": 0.88, "leg_length": 0.74}
    driver = replace(subject, torso_length=0.7, **{name: getattr(subject, name) * by for name, by in off.items()})
    indices = (0, 1, 2, 3, 4, 6, 8, 12)
    filmed = [paste(frame, 30, 30, 360, 300) for frame in draw(driver, motion, indices, factor=3)]
    true = draw(subject, motion, indices)
    assert overlap(align(filmed, true[0], "body"), true) > 0.8


@pytest.mark.parametrize("lengths", [0.75, 1.3])
def test_a_driver_of_other_lengths_steps_as_far(lengths):
    """A step is measured by the head, not by the torso, whose length is among what differs."""
    still = {name: 0 * getattr(MOTION, name) for name in ("yaw", "leg_swing", "arm_swing", "elbow", "knee", "root_y")}
    walk = replace(
        MOTION, root_x=np.linspace(-0.15, 0.15, len(MOTION.root_x)), arm_raise=0 * MOTION.arm_raise, **still
    )
    driver = replace(SUBJECT, torso_length=lengths, leg_length=lengths)
    true, filmed = draw(motion=walk), [paste(frame, 60, 30, 400, 300) for frame in draw(driver, walk, factor=3)]
    aligned = align(filmed, true[0], "body")
    middles, expected = ([np.nonzero(frame[..., 2])[1].mean() for frame in frames] for frames in (aligned, true))
    np.testing.assert_allclose(middles, expected, atol=0.5)


def holes(frame):
    """Count the background pixels that the torso surrounds above, below, left and right."""
    torso = np.isin(frame[..., 2], (1, 2))
    sides = [
        np.flip(np.logical_or.accumulate(np.flip(torso, axis) if back else torso, axis), axis if back else ())
        for axis in (0, 1) for back in (False, True)
    ]  # fmt: skip
    return (np.all(sides, axis=0) & (frame[..., 2] == 0)).sum()


@pytest.mark.parametrize("mode", ["place", "body"])
def test_a_frame_without_a_body_stays_empty(own, filmed, mode):
    aligned = align([filmed[0], 0 * filmed[0], filmed[2]], own[0], mode)
    assert not aligned[1].any() and overlap(aligned[::2], own[::2]) > 0.93


def test_a_body_that_the_frame_cuts_is_placed_by_what_it_shows(own, filmed):
    aligned = align([frame[:210] for frame in filmed], own[0])
    rows = slice(0, 50)
    assert overlap([frame[rows] for frame in aligned], [frame[rows] for frame in own]) > 0.9
    assert not any(frame[60:].any() for frame in aligned), "what is cut off stays cut off"


def test_a_photo_from_behind_is_met_by_the_frame_from_behind():
    turned = replace(MOTION, yaw=np.linspace(0, np.pi, len(MOTION.yaw)), root_x=0 * MOTION.root_x)
    back, last = draw(motion=turned, indices=[15])[0], len(MOTION) - 1
    filmed = [paste(frame, 40, 20) for frame in draw(motion=turned, indices=[0, 8, last], factor=3)]
    assert overlap(align(filmed, back)[2:], [back]) > 0.93
    with pytest.warns(UserWarning, match="silhouette, which is less exact: no frame shows the side"):
        placed = align(filmed[:1], back)[0]
    top, bottom = (np.flatnonzero(frame[..., 2].any(1))[[0, -1]] for frame in (placed, back))
    np.testing.assert_allclose(top, bottom, atol=1)


def test_pose_maps_are_placed_by_their_silhouette(own, filmed):
    maps = torch.stack([iuv_to_pose_map(frame) for frame in filmed])
    with pytest.warns(UserWarning, match="silhouette, which is less exact: pose maps have no part codes"):
        placed = align_poses(maps, Image.fromarray(own[0]), "place")
    assert placed.shape == (len(filmed), 2, 80, 64) and placed.dtype == maps.dtype
    body, true = placed.sum(1)[0] > 0, torch.from_numpy(own[0][..., 2] > 0)
    assert (body & true).sum() / (body | true).sum() > 0.9
    with pytest.raises(ValueError, match="`mode` must be 'place' for pose maps, which have no part codes"):
        align_poses(maps, Image.fromarray(own[0]), "body")


def test_several_people_give_a_warning(own, filmed):
    two = [np.concatenate([frame, frame], 1) for frame in filmed]
    with pytest.warns(UserWarning, match="`poses` shows several people, who are aligned as if they were one"):
        align(two, own[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        align(filmed, own[0], "body")


def test_wrong_input_is_refused(own, filmed):
    picture, empty = Image.fromarray(own[0]), Image.new("RGB", (64, 80))
    with pytest.raises(ValueError, match=r"`mode` must be one of \('place', 'body'\), got 'none'"):
        align_poses([picture], picture, "none")
    with pytest.raises(ValueError, match="`photo_iuv` must show a body"):
        align_poses([picture], empty, "place")
    with pytest.raises(ValueError, match="`poses` must show a body in at least one frame"):
        align_poses([empty], picture, "body")
    with pytest.raises(
        ValueError, match=r"`poses\[0\]` must hold DensePose part codes 0..24 in its blue channel; got 255"
    ):
        align_poses([Image.new("RGB", (64, 80), "white")], picture, "place")
    with pytest.raises(ValueError, match="`photo_iuv` must be an RGB IUV picture .*; got mode 'L'"):
        align_poses([picture], picture.convert("L"), "place")


def test_the_plug_in_alone_places_pictures_and_maps_as_the_command_does():
    photo, *filmed = draw(indices=(0,)) + [paste(frame, 40, 90) for frame in draw(factor=2)]
    pictures = [Image.fromarray(frame) for frame in filmed]
    placed = align_pose_maps(pictures, Image.fromarray(photo))
    assert placed.shape == (4, 2, 80, 64) and placed.dtype == torch.float32
    assert torch.equal(placed, torch.stack([iuv_to_pose_map(frame) for frame in align(filmed, photo)]))
    maps = torch.stack([iuv_to_pose_map(frame) for frame in filmed])
    with pytest.warns(UserWarning, match="placed by its silhouette, .*: pose maps have no part codes"):
        from_maps = align_pose_maps(maps, Image.fromarray(photo))
    body, expected = from_maps.any(1), placed.any(1)
    assert (body & expected).sum() / (body | expected).sum() > 0.8


@pytest.mark.parametrize(
    "poses, photo, message",
    [
        ([NOBODY], DRAWN, "`poses` must show a body in at least one frame; got none"),
        ([DRAWN], NOBODY, "`photo_iuv` must show a body; got a picture without one"),
        ([DRAWN, DRAWN.convert("L")], DRAWN, r"`poses\[1\]` must be an RGB IUV picture"),
        ([DRAWN], None, "`photo_iuv` must be an RGB picture or an 8 bit array .* got <class 'NoneType'>"),
        ([DRAWN, DRAWN.resize((128, 160), 0)], DRAWN, r"`poses` must all have the same size; got .*160, 128"),
        (DRAWN, DRAWN, "`poses` must be a tensor or a list of IUV images; got <class 'PIL.Image.Image'>"),
        (torch.zeros(3, 80, 64), DRAWN, r"`poses` must be floating point with the shape \(F, 2, H, W\)"),
        (torch.ones(1, 2, 80, 64, dtype=torch.uint8), DRAWN, "`poses` must be floating point"),
        (torch.full((1, 2, 80, 64), 255.0), DRAWN, r"`poses` must lie in \[0, 1\] and be finite"),
    ],
)
def test_poses_that_cannot_be_placed_are_refused(poses, photo, message):
    with pytest.raises(ValueError, match=message):
        align_pose_maps(poses, photo)
