"""Procedural fashion data: determinism, exact UV, occlusion, and cloth that depends only on motion."""

import dataclasses

import numpy as np
import pytest

from training.data.procedural_fashion import (
    SPLITS,
    ProceduralFashion,
    ProceduralFashionConfig,
    load_procedural_fashion,
    sample_subject,
)
from training.data.procedural_figure import (
    BACKGROUND,
    BODY,
    CLOTH,
    HAIR,
    Canvas,
    Tube,
    chart_coordinates,
    pattern_paint,
)
from training.data.procedural_scene import Motion, render_clip, simulate_loose


CONFIG = ProceduralFashionConfig(name="smoke", height=80, width=64, num_frames=6)


def make_subject(**changes):
    return dataclasses.replace(sample_subject(np.random.default_rng(3)), **changes)


def make_motion(num_frames=9, **changes):
    zeros, pairs = np.zeros(num_frames), np.zeros((num_frames, 2))
    still = dict.fromkeys(("yaw", "root_x", "root_y"), zeros)
    still |= dict.fromkeys(("arm_raise", "arm_swing", "elbow", "leg_swing", "knee"), pairs)
    return Motion(**(still | changes))


def test_clips_are_deterministic_and_splits_share_nothing():
    first, again = (CONFIG.clip("train", 1, 1) for _ in range(2))
    assert all(np.array_equal(a.image, b.image) and np.array_equal(a.iuv, b.iuv) for a, b in zip(first, again))
    other_seed = dataclasses.replace(CONFIG, seed=1).clip("train", 1, 1)
    assert not np.array_equal(first[0].image, other_seed[0].image)
    looks = {repr(CONFIG.subject(split, index)) for split in SPLITS for index in range(20)}
    yaws = {CONFIG.motion(split, index).yaw.tobytes() for split in SPLITS for index in range(20)}
    assert len(looks) == len(yaws) == 60


def test_rows_of_the_builder(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    dataset = load_procedural_fashion("smoke", "test", cache_dir=str(tmp_path))
    assert len(dataset) == 3 * 6 and set(dataset["split"]) == {"test"}
    row = dataset[7]
    assert (row["video_id"], row["frame_index"]) == ("test-000001", 1)
    drawn = CONFIG.clip("test", 1, 1, [1])[0]
    for column in ("image", "iuv", "layers"):
        assert np.array_equal(np.asarray(row[column]), getattr(drawn, column)), column


@pytest.mark.parametrize("index", range(6))
def test_iuv_covers_the_body_inside_the_picture(index):
    clip = CONFIG.clip("train", index, index)
    for frame in clip:
        part, u, v = (frame.iuv[..., channel] for channel in (2, 1, 0))
        body = part > 0
        assert part.max() <= 24 and (u[body] >= 1).all() and (v[body] >= 1).all()
        assert not u[~body].any() and not v[~body].any()
        # The silhouette of the body, even under loose layers, lies inside that of the picture.
        assert (frame.layers[body] != BACKGROUND).all()
        # Pixels without a layer show the background.
        background = np.rint(CONFIG.subject("train", index).background * 255)
        assert (frame.image[frame.layers == BACKGROUND] == background).all()
    assert {1, 2} & set(np.unique(np.stack([frame.iuv[..., 2] for frame in clip])))


def test_the_silhouette_is_that_of_the_body_drawn_alone():
    # Without loose layers, the silhouettes of IUV and body are equal.
    subject = make_subject(bottom="trousers", hair_length=0.0)
    for frame in render_clip(subject, make_motion(yaw=np.linspace(0, 6, 9)), 80, 64):
        centre_is_body = frame.iuv[..., 2] > 0
        assert set(np.unique(frame.layers)) == {BACKGROUND, BODY}
        assert (frame.layers[centre_is_body] == BODY).all()
        # Pixels that the body only touches are in the picture but not in IUV; they lie on its outline.
        grazed = (frame.layers == BODY) & ~centre_is_body
        inner = centre_is_body[1:-1, 1:-1] & centre_is_body[2:, 1:-1] & centre_is_body[:-2, 1:-1]
        assert grazed.sum() < centre_is_body.sum() / 2 and inner.any()
        neighbours = np.zeros_like(grazed)
        for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)):
            neighbours |= np.roll(centre_is_body, (dy, dx), (0, 1))
        assert (neighbours[grazed]).mean() > 0.98


def test_texture_stays_at_its_uv_over_a_turn():
    # Without light, a colour is exactly that of the texture.
    subject = make_subject(
        bottom="trousers", hair_length=0.0, sleeve=2, top_pattern="checks", bottom_pattern="vertical"
    )
    clip = render_clip(subject, make_motion(13, yaw=np.linspace(0, 2 * np.pi, 13)), 160, 128, shaded=False)
    seen: dict[tuple, list] = {}
    for frame in clip:
        inside = frame.iuv[1:-1, 1:-1, 2]
        # Only pixels whose neighbours have the same part and colour, so that no edge mixes colours.
        flat = np.ones(inside.shape, bool)
        for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2)):
            window = slice(dy, dy + inside.shape[0]), slice(dx, dx + inside.shape[1])
            flat &= (frame.iuv[window][..., 2] == inside) & (frame.image[window] == frame.image[1:-1, 1:-1]).all(-1)
        flat &= inside > 0
        for code, color in zip(frame.iuv[1:-1, 1:-1][flat], frame.image[1:-1, 1:-1][flat]):
            seen.setdefault((code[2], code[1] // 8, code[0] // 8), []).append(color.astype(int))
    spread = [np.ptp(np.array(colors), 0).max() for colors in seen.values() if len(colors) > 3]
    assert len(spread) > 200
    # A cell of 8 x 8 codes may contain the border of two colours; every other cell shows one colour in all views.
    assert np.mean(np.array(spread) <= 2) > 0.75
    assert len({tuple(colors[0]) for colors in seen.values()}) >= 4


def test_turning_by_a_whole_circle_gives_the_same_frame():
    subject = make_subject()
    a, b = render_clip(subject, make_motion(2, yaw=np.array([0.4, 0.4 + 2 * np.pi])), 80, 64, [0, 1])
    assert np.array_equal(a.iuv, b.iuv)


def test_same_poses_and_another_motion_differ_in_hem_and_hair_only():
    subject = make_subject(bottom="skirt", hair_length=0.25, skirt_length=0.3)
    time = np.arange(9) - 4.0
    left, right = (
        render_clip(subject, make_motion(root_x=sign * 0.02 * time**3 / 8), 80, 64, [4])[0] for sign in (1, -1)
    )
    assert np.array_equal(left.iuv, right.iuv)
    differs = (left.image != right.image).any(-1)
    loose = np.isin(left.layers, (CLOTH, HAIR)) | np.isin(right.layers, (CLOTH, HAIR))
    assert differs.sum() > 50
    # A pixel of the outline mixes a loose layer with its neighbour, so one more pixel around counts as loose.
    grown = loose.copy()
    for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        grown |= np.roll(loose, (dy, dx), (0, 1))
    assert (grown[differs]).all()


def test_cloth_hangs_still_without_motion_and_lags_behind_a_push():
    still = simulate_loose(make_motion(20))
    assert all(np.abs(values).max() == 0 for values in still.values())
    pushed = simulate_loose(make_motion(60, root_x=0.02 * np.clip(np.arange(60) - 5.0, 0, 3)))
    assert pushed["hem"][6] < 0, "a push to the left leaves the hem behind on the right"
    assert np.abs(pushed["hem"][-5:]).max() < 1e-3, "and the hem comes to rest"


def test_every_motion_sets_the_cloth_swinging():
    config = ProceduralFashion(config_name="tiny").config
    for index in range(40):
        motion = config.motion("validation", index)
        assert 0.03 < np.ptp(simulate_loose(motion)["hem"][motion.pre_roll :]) <= 0.26, index


def test_nearer_tubes_hide_farther_ones():
    canvas = Canvas(20, 20, np.ones(3))
    near, far = (
        Tube("torso", np.array([0, 0.3, z]), np.array([0, 0.7, z]), (0.2, 0.2), (0.1, 0.1), 0.0,
             pattern_paint("plain", np.full((2, 3), shade), 2, 1))
        for z, shade in ((0.5, 0.25), (-0.5, 0.75))
    )  # fmt: skip
    canvas.draw(near, BODY, shaded=False)
    canvas.draw(far, BODY, shaded=False)
    image, _, layers = canvas.finish()
    assert image[10, 10].tolist() == [64] * 3 and layers[10, 10] == BODY and layers[0, 0] == BACKGROUND


@pytest.mark.parametrize(
    "name, phi, t, expected",
    [
        ("torso", 0.0, 0.25, (2, 0.25, 0.5)),  # front, U grows downwards
        ("torso", np.pi / 4, 0.5, (2, 0.5, 0.25)),  # V falls towards the person's left
        ("torso", np.pi, 0.5, (1, 0.5, 0.5)),  # back
        ("torso", 3 * np.pi / 4, 0.5, (1, 0.5, 0.25)),
        ("upper_leg_right", 0.0, 0.25, (9, 0.75, 0.5)),  # U grows upwards in front
        ("upper_leg_left", -np.pi / 4, 0.0, (10, 1.0, 0.75)),  # V grows to the inside
        ("head", np.pi / 2, 0.0, (24, 0.5, 1.0)),  # left half, U from the face to the back
        ("head", -np.pi / 4, 1.0, (23, 0.75, 0.12)),
        ("hand_left", 0.0, 0.3, (4, 0.5, 0.3)),
    ],
)
def test_chart_coordinates_by_hand(name, phi, t, expected):
    part, u, v = chart_coordinates(name, np.array([phi]), np.array([t]))
    assert (part[0], round(float(u[0]), 6), round(float(v[0]), 6)) == expected


def test_a_counterpart_has_the_clips_iuv_and_the_other_looks():
    own, counterpart = CONFIG.clip("test", 0, 0), CONFIG.counterpart("test", 1, 0)
    assert all(np.array_equal(a.iuv, b.iuv) for a, b in zip(own, counterpart))
    assert np.array_equal(counterpart[0].image[0, 0], np.rint(CONFIG.subject("test", 1).background * 255))


@pytest.mark.slow
def test_several_processes_draw_the_same_rows(tmp_path):
    one, two = (
        load_procedural_fashion("smoke", "train", num_proc=n, cache_dir=str(tmp_path / str(n))) for n in (None, 2)
    )
    assert one["video_id"] == two["video_id"] and one["frame_index"] == two["frame_index"]
    assert all(a.tobytes() == b.tobytes() for a, b in zip(one["image"], two["image"]))


def test_the_default_frames_are_drawn_at_twice_the_size_of_the_small_configurations():
    """Each of their pixels shows the same scene, so that four of the larger frame's average to one of the smaller."""
    tiny, *small = (ProceduralFashion(config_name=name).config for name in (None, "half", "smoke"))
    large = tiny.clip("test", 1, 1, [4])[0]
    assert large.image.shape == large.iuv.shape == (160, 128, 3) and large.layers.shape == (160, 128)
    for config in small:
        frame = dataclasses.replace(config, num_frames=tiny.num_frames).clip("test", 1, 1, [4])[0]
        averages = large.image.reshape(80, 2, 64, 2, 3).mean((1, 3))
        assert np.abs(averages - frame.image).mean() < 2


def test_a_new_drawing_is_never_read_from_an_old_cache(tmp_path, monkeypatch):
    folders = [ProceduralFashion(config_name="smoke", cache_dir=str(tmp_path)).cache_dir for _ in range(2)]
    changed = tmp_path / "procedural_scene.py"
    changed.write_text("other code")
    monkeypatch.setattr("training.data.procedural_scene.__file__", str(changed))
    folders.append(ProceduralFashion(config_name="smoke", cache_dir=str(tmp_path)).cache_dir)
    assert folders[0] == folders[1] != folders[2]


def test_bad_arguments():
    with pytest.raises(ValueError, match="`split` must be one of .* got 'dev'"):
        load_procedural_fashion("smoke", "dev")
    with pytest.raises(ValueError, match="`frame_indices` must lie in"):
        render_clip(make_subject(), make_motion(), 80, 64, [9])
    with pytest.raises(ValueError, match="`supersampling` must be odd"):
        Canvas(8, 8, np.ones(3), supersampling=2)
    with pytest.raises(ValueError, match="`kind` must be plain"):
        pattern_paint("tartan", np.zeros((2, 3)), 2, 1)(np.zeros(1), np.zeros(1))
