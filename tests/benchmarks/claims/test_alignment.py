"""The drivers of the alignment benchmark, and its figures."""

import numpy as np
import pytest

from benchmarks.claims import alignment, drivers
from training.data.procedural_fashion import ProceduralFashionConfig
from training.data.procedural_scene import render_clip


CONFIG = ProceduralFashionConfig(name="figure", height=20, width=16, num_frames=3)


def test_a_driver_is_whole_at_another_size_and_place():
    subject, motion = CONFIG.subject("test", 0), CONFIG.motion("test", 0)
    truth = render_clip(subject, motion, 20, 16)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        body = drivers.proportions_off(subject, drivers.WIDTHS + drivers.LENGTHS, rng)
        factors = [getattr(body, name) / getattr(subject, name) for name in drivers.WIDTHS + drivers.LENGTHS]
        assert all(0.1 <= abs(factor - 1) <= 0.3 for factor in factors)
        for driver in (subject, body):
            frames = np.stack([np.asarray(picture) for picture in drivers.film(driver, motion, 16, 20, rng)])
            edges = np.ones(frames.shape[1:3], bool)
            edges[1:-1, 1:-1] = False
            assert not frames[:, edges].any(), "nothing is cut off"
            heights = [np.ptp(np.flatnonzero(f[..., 2].any(1))) + 1 for f in (frames[0], truth[0].iuv)]
            assert driver is body or 0.55 < heights[0] / (drivers.PIXELS * heights[1]) < 1.25


def test_figures_are_compared_with_the_subjects_own_poses():
    def subject(own, placed):
        figures = [{"psnr": value, "silhouette_iou": 0.5} for value in (own, placed)]
        return {"own poses": {"": figures[0]}} | {case: {"place": figures[1]} for case in drivers.CASES}

    rows = alignment.summarize({"0": subject(25.0, 24.0), "1": subject(23.0, 21.0)})
    assert rows["own poses"][""]["psnr_lost"]["mean"] == 0
    assert rows["same body"]["place"]["psnr_lost"]["mean"] == pytest.approx(1.5)
    assert rows["same body"]["place"]["psnr"]["mean"] == pytest.approx(22.5)
