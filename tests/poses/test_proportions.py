"""Redrawing of a driver's limbs in other proportions, on drawn figures whose truth is exact."""

from dataclasses import replace

import numpy as np
import pytest

from training.data.procedural_fashion import ProceduralFashionConfig
from training.data.procedural_scene import render_clip
from training.poses.proportions import Piece, Proportions, plan, redraw


CONFIG = ProceduralFashionConfig(name="figure")
SUBJECT = replace(CONFIG.subject("test", 0), arm_length=1.2)
SHORT_ARMS = Proportions({"upper_arm": 0.6, "lower_arm": 0.6}, {}, {}, {})


def turned(subject, yaw):
    """Draw a standing body at 160 x 128 pixels whose arms hang at its sides."""
    motion = CONFIG.motion("test", 0)
    still = {name: 0 * getattr(motion, name) for name in ("root_x", "arm_raise", "arm_swing", "elbow", "leg_swing")}
    motion = replace(motion, yaw=np.full_like(motion.yaw, yaw), **still)
    return render_clip(subject, motion, 160, 128, [0])[0].iuv


def missing(iuv, truth):
    """Return the share of a true body's torso and upper legs that a picture leaves empty."""
    body = np.isin(truth[..., 2], (1, 2, 7, 8, 9, 10))
    return (iuv[..., 2] == 0)[body].mean()


@pytest.mark.parametrize("yaw", [-1.2, 1.2, 1.57])
def test_what_an_arm_hid_is_drawn_if_the_arm_is_shorter(yaw):
    frame, truth = turned(SUBJECT, yaw), turned(replace(SUBJECT, arm_length=0.72), yaw)
    pieces = plan(frame, SHORT_ARMS, 1.0, np.zeros(2))
    assert missing(redraw(frame, pieces, 160, 128), truth) < 0.05
    drawn = redraw(frame, pieces, 160, 128, complete=False)
    assert missing(drawn, truth) > 0.1
    assert np.array_equal(drawn, np.where(drawn[..., 2:] > 0, redraw(frame, pieces, 160, 128), 0)), (
        "nothing is replaced"
    )


@pytest.mark.parametrize("yaw", [0.0, 1.2])
def test_a_limb_is_looked_for_only_where_it_can_be(monkeypatch, yaw):
    frame = turned(SUBJECT, yaw)
    wide = Proportions(
        {"torso": 1.2}, {"torso": np.array([1.5, 1.2, 0.8, 1.3, 1.6]), "upper_leg": np.ones(1) * 0.7}, {}, {}
    )
    pieces = plan(frame, wide.then(SHORT_ARMS), 1.1, np.array([-5.5, 3.2]))
    boxes = [redraw(frame, pieces, 160, 128, complete) for complete in (False, True)]
    monkeypatch.setattr(Piece, "reach", lambda piece, spans, height, width: (slice(0, height), slice(0, width)))
    for drawn, complete in zip(boxes, (False, True)):
        np.testing.assert_array_equal(drawn, redraw(frame, pieces, 160, 128, complete))
