import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny_components import NUM_FRAMES, get_dummy_image, get_dummy_iuv
from training.metrics import evaluation_page
from training.metrics.baselines import to_tensor
from training.metrics.clip_records import ClipRecord
from training.metrics.clips import Clip


@pytest.fixture
def clip():
    return Clip(
        name="<walk> & turn",
        reference=get_dummy_image(0),
        iuv=[get_dummy_iuv(i) for i in range(NUM_FRAMES)],
        frame_indices=[1, 3],
        targets=[get_dummy_image(1), get_dummy_image(3)],
        run_indices=[1, 2, 3],
        run_targets=[get_dummy_image(i) for i in (1, 2, 3)],
    )


def levels(seeds):
    return to_tensor([get_dummy_image(i) for i in seeds]).mul(255).round().byte()


@pytest.fixture
def record():
    pictures = {
        "own": levels((7, 8)),
        "warp": levels((8, 9)),
        "run own": levels((5, 6, 7)),
        "run warp": levels((6, 7, 8)),
    }
    return ClipRecord({"model": {"psnr": 20.0, "ssim": 0.5, "l1": 0.25, "temporal_error": 0.125}}, pictures=pictures)


def make_results():
    def figure(mean, error):
        return {"mean": mean, "standard_error": error, "n": 2}

    rows = {
        "model": {"psnr": figure(20.0, 1.0), "l1": figure(0.1, 0.01), "hair_l1": figure(None, None)},
        "copy of the reference": {"psnr": figure(15.0, 1.0), "l1": figure(0.05, 0.01)},
    }
    return {
        "rows": rows,
        "model_minus_row": {"copy of the reference": {"psnr": figure(5.0, 1.0), "l1": figure(0.05, 0.01)}},
        "notes": {"lpips": "left out: <no network>"},
        "settings": {"model": "a&b", "dataset": "procedural", "split": "test", "num_clips": 2},
        "scheduler": "DDIMScheduler", "versions": {}, "machine": {}, "seconds": 1.0,
    }  # fmt: skip


class Reader(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(page)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def films(page):
    for tag, attributes in page.tags:
        if "film" in attributes.get("class", "").split():
            data = re.search(r"url\(data:image/(\w+);base64,([^)]+)\)", attributes["style"])
            yield attributes["aria-label"], Image.open(io.BytesIO(base64.b64decode(data[2]))), attributes["style"]


def test_the_page_shows_the_clips_side_by_side(clip, record):
    page = Reader(evaluation_page.render_page(make_results(), [evaluation_page.view_clip(clip, record)]))
    shown = {label: (np.asarray(strip), style) for label, strip, style in films(page)}
    assert list(shown) == [
        "reference", "pose", "target", "prediction", "error ×3", "warped reference", "its error ×3",
    ]  # fmt: skip
    np.testing.assert_array_equal(shown["reference"][0], get_dummy_image(0))
    for label, make, seeds in (
        ("pose", get_dummy_iuv, (1, 2, 3)),
        ("target", get_dummy_image, (1, 2, 3)),
        ("prediction", get_dummy_image, (5, 6, 7)),
        ("warped reference", get_dummy_image, (6, 7, 8)),
    ):
        strip, style = shown[label]
        np.testing.assert_array_equal(strip, np.concatenate([np.asarray(make(i)) for i in seeds], axis=1))
        assert "steps(3, jump-none)" in style and "background-size: 300% 100%" in style
    error = np.abs(np.asarray(get_dummy_image(5), int) - np.asarray(get_dummy_image(1), int)) * 3
    np.testing.assert_array_equal(shown["error ×3"][0][:, :24], error.clip(max=255))
    assert "animation" not in shown["reference"][1]
    line = "frames 1, 3: psnr 20.00, ssim 0.500, l1 0.250; shown are frames 1 to 3: temporal error 0.1250"
    assert "<walk> & turn" in page.text and line in page.text


def test_without_consecutive_frames_the_targets_are_shown(clip, record):
    for name in ("run own", "run warp"):
        del record.pictures[name]
    view = evaluation_page.view_clip(clip, record)
    assert view.line == "frames 1, 3: psnr 20.00, ssim 0.500, l1 0.250" and len(view.panels["prediction"]) == 2
    np.testing.assert_array_equal(view.panels["prediction"][1], get_dummy_image(8))


def test_the_page_stands_alone(clip, record):
    page = Reader(evaluation_page.render_page(make_results(), [evaluation_page.view_clip(clip, record)]))
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe"}
    assert not [attributes for _, attributes in page.tags if {"src", "href"} & set(attributes)]
    assert all(style.count("url(") == 1 for _, _, style in films(page))


def test_the_page_has_the_figures_and_says_what_they_mean():
    page = Reader(evaluation_page.render_page(make_results(), []))
    for words in (
        "20.00 ± 1.00",
        "psnr ↑",
        "l1 ↓",
        "left out: <no network>",
        "a&b on procedural, test",
        "DDIMScheduler",
    ):
        assert words in page.text
    assert "hair" not in page.text, "no clip has a figure of it"
    marks = [attributes.get("class") for tag, attributes in page.tags if tag == "td" and attributes.get("class")]
    assert marks == ["better", "worse"], "5 dB more, and more error"


def test_differences_within_two_standard_errors_are_not_coloured():
    results = make_results()
    results["model_minus_row"]["copy of the reference"]["psnr"]["standard_error"] = 2.6
    page = Reader(evaluation_page.render_page(results, []))
    assert [a.get("class") for tag, a in page.tags if tag == "td" and a.get("class")] == ["worse"]


@pytest.mark.parametrize(("height", "shown", "kind"), [(80, 240, "png"), (200, 200, "png"), (640, 320, "jpeg")])
def test_small_pictures_are_enlarged_and_large_ones_fitted(height, shown, kind):
    panel = evaluation_page._panel("target", [Image.new("RGB", (height * 4 // 5, height))])
    assert f"width: {shown * 4 // 5}px; height: {shown}px" in panel and f"data:image/{kind};" in panel
    assert ('class="film small"' in panel) == (height == 80)


def test_the_picture_shows_the_last_target_of_each_clip(clip, record):
    picture = evaluation_page.draw_pictures([clip, clip], [record, record], scale=1)
    found = np.asarray(picture)[-32:]
    expected = [get_dummy_image(0), get_dummy_iuv(3), get_dummy_image(3), get_dummy_image(8)]
    for column, image in enumerate(expected):
        np.testing.assert_array_equal(found[:, column * 28 : column * 28 + 24], np.asarray(image))
    assert torch.is_tensor(record.pictures["own"]) and picture.width == 4 * 28 - 4


def test_every_value_of_the_page_is_escaped():
    results = make_results()
    results["settings"] = dict.fromkeys(results["settings"], "<script>alert(1)</script>")
    results["rows"]["<script>"] = results["rows"]["model"]
    results["notes"]["<script>"] = results["scheduler"] = results["versions"]["<script>"] = "<script>"
    assert "<script" not in evaluation_page.render_page(results, [])
