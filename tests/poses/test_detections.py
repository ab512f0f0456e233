import functools
import os
import pickle
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from training.data.procedural_fashion import ProceduralFashionConfig
from training.poses.detections import (
    Detection,
    box_iou,
    detections_from_charts,
    detections_from_torchscript,
    follow_person,
    paste,
    read_dump,
)


@pytest.fixture(scope="module")
def drawn_iuv():
    """The IUV of a drawn figure, [80, 64, 3] as V, U, I."""
    return ProceduralFashionConfig(name="figure", height=80, width=64).clip("test", 0, 0, [0])[0].iuv


def charts_of(iuv):
    """Output of a chart head that is certain of one box, at the box's size: coarse, fine, U and V."""
    v, u, parts = torch.from_numpy(iuv).permute(2, 0, 1)
    fine = torch.nn.functional.one_hot(parts.long(), 25).permute(2, 0, 1)[None].float()
    coarse = torch.stack([parts == 0, parts > 0])[None].float()
    # Only the channel of a pixel's part holds its value; the others hold a wrong one.
    u, v = (torch.where(fine > 0, value.float() / 255, 0.5) for value in (u, v))
    return coarse, fine, u, v


def test_charts_become_the_figure_that_they_were_drawn_from(drawn_iuv):
    height, width = drawn_iuv.shape[:2]
    boxes = torch.tensor([[10.0, 20.0, 10.0 + width, 20.0 + height]])
    (detection,) = detections_from_charts(boxes, torch.tensor([0.9]), *charts_of(drawn_iuv))
    assert detection.box == (10, 20, 10 + width, 20 + height) and detection.score == pytest.approx(0.9)
    np.testing.assert_array_equal(detection.iuv[..., 2], drawn_iuv[..., 2])
    assert np.abs(detection.iuv.astype(int) - drawn_iuv).max() <= 1


def test_a_coarse_background_overrides_every_part(drawn_iuv):
    coarse, fine, u, v = charts_of(drawn_iuv)
    coarse[..., :40, :] = torch.tensor([1.0, 0.0])[None, :, None, None]
    (detection,) = detections_from_charts(torch.tensor([[0.0, 0.0, 64.0, 80.0]]), None, coarse, fine, u, v)
    assert not detection.iuv[:40].any()
    np.testing.assert_array_equal(detection.iuv[40:, :, 2], drawn_iuv[40:, :, 2])


def test_both_exports_give_the_same_detections(drawn_iuv):
    boxes, scores = torch.tensor([[3.0, 4.0, 67.0, 84.0]]), torch.tensor([1.0])
    charts = charts_of(drawn_iuv)
    names = ("coarse_segm", "fine_segm", "u", "v")
    as_dict = {"pred_boxes": boxes, "scores": scores}
    as_dict |= {f"pred_densepose_{name}": chart for name, chart in zip(names, charts, strict=True)}
    (one,) = detections_from_torchscript(as_dict)
    (two,) = detections_from_torchscript((boxes, *charts))
    assert one.box == two.box and one.score == two.score
    np.testing.assert_array_equal(one.iuv, two.iuv)
    nobody = (torch.zeros(0, 4), torch.zeros(0, 2, 7, 7), *[torch.zeros(0, 25, 7, 7)] * 3)
    assert detections_from_torchscript(nobody) == []
    with pytest.raises(ValueError, match=r"must have .* but lacks \['scores'\]"):
        detections_from_torchscript({name: value for name, value in as_dict.items() if name != "scores"})
    with pytest.raises(ValueError, match="a dict or a tuple of boxes.* got tuple of 2"):
        detections_from_torchscript((boxes, scores))


def pickled(**options):
    """Return a function that writes a plain pickle and takes the arguments of `torch.save`."""

    def save(value, path):
        with open(path, "wb") as file:
            pickle.dump(value, file, **options)

    return save


@pytest.fixture
def save_dump(monkeypatch, tmp_path):
    """Write a dump as detectron2 does; its classes exist only while the dump is written."""

    def save(entries_of, name="densepose.structures.chart_result.DensePoseChartResult", write=torch.save):
        @dataclass
        class Result:
            labels: torch.Tensor
            uv: torch.Tensor

        Result.__module__, _, Result.__qualname__ = name.rpartition(".")
        module = types.ModuleType(Result.__module__)
        setattr(module, Result.__qualname__, Result)
        with monkeypatch.context() as patch:
            for package in ("densepose", *(module.__name__[:i] for i, c in enumerate(module.__name__) if c == ".")):
                patch.setitem(sys.modules, package, types.ModuleType(package))
            patch.setitem(sys.modules, module.__name__, module)
            write(entries_of(Result), tmp_path / "dump.pkl")
        return tmp_path / "dump.pkl"

    return save


def test_a_dump_is_read_without_detectron2(save_dump, drawn_iuv):
    v, u, parts = torch.from_numpy(drawn_iuv).permute(2, 0, 1)

    def entries(result):
        person = result(labels=parts, uv=torch.stack([u, v]).float() / 255)
        found = {"scores": torch.tensor([0.75]), "pred_boxes_XYXY": torch.tensor([[5.6, 7.2, 69.7, 87.1]])}
        nobody = {"scores": torch.zeros(0), "pred_boxes_XYXY": torch.zeros(0, 4)}
        return [{"file_name": "10.png", **nobody}, {"file_name": "9.png", "pred_densepose": [person], **found}]

    (name, (detection,)), empty = read_dump(save_dump(entries))
    assert name == "9.png" and empty == ("10.png", []), "sorted by the numbers in the names"
    assert detection.box == (5, 7, 5 + 64, 7 + 80) and detection.score == 0.75
    np.testing.assert_array_equal(detection.iuv, drawn_iuv)


def entry(result, name="0.png", labels=None, uv=None, box=(0.0, 0.0, 4.0, 4.0), scores=None):
    labels = torch.zeros(4, 4, dtype=torch.int64) if labels is None else labels
    uv = torch.zeros(2, *labels.shape) if uv is None else uv
    scores = torch.tensor([0.5]) if scores is None else scores
    people = {"scores": scores, "pred_boxes_XYXY": torch.tensor([box]), "pred_densepose": [result(labels, uv)]}
    return {"file_name": name, **people}


RIGHT = "`apply_net.py dump` writes the right file."
CHART = "densepose.structures.chart_result.DensePoseChartResult"
OLD, CSE = "densepose.data.structures.DensePoseResult", "densepose.structures.cse.DensePoseEmbeddingPredictorOutput"


@pytest.mark.parametrize(
    ("name", "write", "scores", "reason"),
    [
        (OLD, torch.save, None, f"it holds {OLD}; a detectron2 of 2020 or later"),
        (CSE, torch.save, None, f"it holds {CSE}; models of .*CSE.* have no U and V"),
        (CHART, torch.save, np.array([0.5]), "it holds numpy._*core.multiarray._reconstruct; save scores"),
        (CHART, torch.save, [np.float32(0.5)], "it holds numpy._*core.multiarray.scalar; save scores"),
        *(
            (CHART, pickled(protocol=n), None, f"a plain pickle, not one that `torch.save` wrote, of {CHART}. {RIGHT}")
            for n in (0, 2, 5)
        ),
        (OLD, pickled(), None, f"a plain pickle, not one that `torch.save` wrote, of {OLD}; a detectron2"),
    ],
)
def test_the_class_that_a_dump_holds_is_named(save_dump, name, write, scores, reason):
    path = save_dump(lambda result: [entry(result, scores=scores)], name, write)
    with pytest.raises(ValueError, match=f"`path` must be a dump of .* got 'dump.pkl': .*{reason}") as error:
        read_dump(path)
    assert "\x1b" not in str(error.value) and "weights_only" not in str(error.value) and len(str(error.value)) < 350


def test_a_dump_in_torch_s_old_format_is_read(save_dump):
    write = functools.partial(torch.save, _use_new_zipfile_serialization=False)
    assert read_dump(save_dump(lambda result: [entry(result)], write=write))[0][0] == "0.png"
    path = save_dump(lambda result: [entry(result)], OLD, write)
    with pytest.raises(ValueError, match=f"it holds {OLD}; a detectron2"):
        read_dump(path)


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        ({"labels": torch.full((4, 4), 25)}, "`labels` must be part codes 0..24, got 25..25"),
        ({"labels": torch.full((4, 4), -1)}, "`labels` must be part codes 0..24, got -1..-1"),
        (
            {
                "labels": torch.zeros(1, dtype=torch.int64).expand(20000, 20000),
                "uv": torch.zeros(1).expand(2, 20000, 20000),
            },
            "up to 89478485 pixels, got one of 20000 x 20000",
        ),
        ({"labels": torch.zeros(4, 4)}, r"integers \[H, W\] and floats \[2, H, W\], got torch.float32 \[4, 4\]"),
        ({"labels": torch.zeros(0, 4, dtype=torch.int64)}, r"must be integers \[H, W\] .* got torch.int64 \[0, 4\]"),
        ({"labels": torch.zeros(4, 4, dtype=torch.complex64)}, r"must be integers .* got torch.complex64 \[4, 4\]"),
        ({"labels": [[1, 2]], "uv": torch.zeros(2, 1, 2)}, r"must be integers .* got \[\[1, 2\]\] and torch.float32"),
        ({"uv": torch.zeros(2, 3, 4)}, r"got torch.int64 \[4, 4\] and torch.float32 \[2, 3, 4\]"),
        ({"uv": torch.full((2, 4, 4), float("nan"))}, "`uv` must be U and V, about 0 to 1, got nan..nan"),
        ({"uv": torch.full((2, 4, 4), float("inf"))}, "`uv` must be U and V, about 0 to 1, got inf..inf"),
        ({"uv": torch.full((2, 4, 4), 200.0)}, "`uv` must be U and V, about 0 to 1, got 200..200"),
        ({"uv": torch.zeros(2, 4, 4, dtype=torch.complex64)}, r"and floats \[2, H, W\], .* torch.complex64"),
        ({"uv": torch.zeros(2, 4, 4, dtype=torch.uint8)}, r"and floats \[2, H, W\], .* torch.uint8"),
        ({"uv": torch.zeros(2, 4, 4).to_sparse()}, r"and floats \[2, H, W\], got"),
        ({"box": (float("nan"), 0.0, 4.0, 4.0)}, r"`pred_boxes_XYXY` must be finite, got \[\[nan, 0.0"),
        ({"box": (float("inf"), 0.0, 4.0, 4.0)}, r"`pred_boxes_XYXY` must be finite, got \[\[inf, 0.0"),
        ({"box": (0.0, 0.0)}, r"`pred_boxes_XYXY` must hold four numbers per person, got torch.float32 \[1, 2\]"),
        ({"box": (0.0, 0.0, 4.0)}, r"`pred_boxes_XYXY` must hold four numbers per person, got torch.float32 \[1, 3\]"),
        ({"box": (0.0, 0.0, 4.0, 4j)}, "`pred_boxes_XYXY` must hold four numbers per person, got torch.complex64"),
        ({"scores": torch.tensor([float("nan")])}, r"`scores` must be finite, got \[nan\]"),
        ({"scores": torch.tensor([[0.5]])}, r"`scores` must hold one number per person, got torch.float32 \[1, 1\]"),
        ({"scores": torch.tensor(0.5)}, r"`scores` must hold one number per person, got torch.float32 \[\]"),
        ({"scores": 5}, r"`scores` must hold one number per person, got torch.int64 \[\]"),
        ({"scores": "high"}, "`scores` must hold one number per person, got 'high'"),
        (
            {"scores": torch.tensor([0.5, 0.4])},
            "`pred_densepose` must have one .* got 1 results for 2 scores and 1 boxes",
        ),
        ({"name": 7}, "entry 0: `file_name` must be the path of a picture, got 7"),
        ({"name": "9" * 5000}, "entry 0: `file_name` must be the path of a picture, got '9999"),
    ],
)
def test_bad_values_in_a_dump_are_refused(save_dump, faults, reason):
    with pytest.raises(ValueError, match=f"`path` must be a dump of .* got 'dump.pkl': .*{reason}"):
        read_dump(save_dump(lambda result: [entry(result, **faults)]))


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        (5, "it holds one int, not a list with one entry per picture"),
        ({"a": torch.zeros(1)}, "it holds one dict, not a list"),
        ([5], "entry 0: it must be a dict, got 5"),
        ([{}], "entry 0: it lacks `file_name`"),
        ([{"file_name": "0.png"}], "entry 0: it lacks `scores`"),
        ([{"file_name": "0.png", "scores": None}], "entry 0: `scores` must hold one number per person, got None"),
        ([{"file_name": "0.png", "scores": [10**30]}], "entry 0: `scores` must hold one number per person, got"),
        (
            [{"file_name": "0.png", "scores": []}, {"file_name": "1.png", "scores": [1]}],
            "entry 1: it lacks `pred_boxes",
        ),
        ([{"file_name": "0.png", "scores": [1], "pred_boxes_XYXY": [[0, 0, 1, 1]]}], "entry 0: it lacks `pred_densep"),
        (
            [{"file_name": "0.png", "scores": [1], "pred_boxes_XYXY": [[0, 0, 1, 1]], "pred_densepose": 3}],
            "entry 0: `pred_densepose` must have one result per person, got 3 for 1 scores and 1 boxes",
        ),
        (
            [{"file_name": "0.png", "scores": [1], "pred_boxes_XYXY": [[0, 0, 1, 1]], "pred_densepose": [3]}],
            "entry 0: a result lacks `labels`",
        ),
    ],
)
def test_what_an_entry_lacks_is_named(tmp_path, entries, reason):
    torch.save(entries, tmp_path / "dump.pkl")
    with pytest.raises(ValueError, match=f"`path` must be a dump of .* got 'dump.pkl': {reason}"):
        read_dump(tmp_path / "dump.pkl")


def test_u_and_v_slightly_outside_their_range_are_clipped(save_dump):
    uv = torch.tensor([-0.2, 1.3])[:, None, None].expand(2, 4, 4)
    path = save_dump(lambda result: [entry(result, labels=torch.ones(4, 4, dtype=torch.int64), uv=uv)])
    ((_, (detection,)),) = read_dump(path)
    assert detection.iuv[..., 1].max() == 1 and detection.iuv[..., 0].min() == 255


def test_a_dump_that_is_no_file_is_refused_at_once(tmp_path):
    (tmp_path / "folder.pkl").mkdir()
    os.mkfifo(tmp_path / "pipe.pkl")
    for name, reason in (
        ("folder.pkl", "which is not a file"),
        ("pipe.pkl", "which is not a file"),
        ("x" * 300 + ".pkl", "which does not exist"),
    ):
        with pytest.raises(ValueError, match=f"`path` must be a file, got .*, {reason}"):
            read_dump(tmp_path / name)


def test_a_picture_that_a_dump_lists_twice_is_refused(save_dump):
    for names in (["0.png", "0.png"], ["a.png", "a.png"], ["0.png", "1.png", "1.png"]):
        path = save_dump(lambda result: [entry(result, name) for name in names])
        with pytest.raises(ValueError, match="`path` must have one file per frame, got .* twice"):
            read_dump(path)


def test_a_dump_over_several_folders_is_refused(save_dump):
    path = save_dump(lambda result: [entry(result, f"clips/{folder}/0.png") for folder in "abcd"])
    with pytest.raises(
        ValueError, match="a dump of one clip, got pictures from 4 folders: clips/a, clips/b, clips/c, ..."
    ):
        read_dump(path)


def test_numbers_that_a_dump_leaves_out_show_nobody(save_dump):
    path = save_dump(lambda result: [entry(result, f"f/{number}.png") for number in (3, 1, 0)])
    assert [name for name, _ in read_dump(path, 1)] == ["f/0.png", "f/1.png", None, "f/3.png"]
    with pytest.raises(ValueError, match="`path` must be consecutive frames, .* got no frames 2..2 after 'f/1.png'"):
        read_dump(path, 0)


def test_huge_boxes_of_an_export_are_refused():
    boxes, charts = (
        torch.tensor([[0.0, 0.0, 20000.0, 20000.0]]),
        (torch.zeros(1, 2, 7, 7), *[torch.zeros(1, 25, 7, 7)] * 3),
    )
    with pytest.raises(ValueError, match="`boxes` must have up to 89478485 pixels, got one of 20000 x 20000"):
        detections_from_torchscript((boxes, *charts))
    with pytest.raises(ValueError, match="`boxes` must be finite"):
        detections_from_torchscript((boxes * float("nan"), *charts))


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_hostile_dump_is_refused_and_nothing_of_it_runs(save_dump, tmp_path):
    trace = tmp_path / "trace"
    for hostile in (Hostile(trace), {"file_name": "0.png", "scores": Hostile(trace)}):
        path = save_dump(lambda result: [hostile])
        with pytest.raises(ValueError, match="must be a dump of detectron2's .* got 'dump.pkl': "):
            read_dump(path)
    assert not trace.exists()
    assert b"touch" in path.read_bytes()
    function, arguments = hostile["scores"].__reduce__()
    function(*arguments)
    assert trace.exists(), "the code in the file does nothing, so the test proves nothing"


def test_other_files_are_no_dump(save_dump, tmp_path):
    (tmp_path / "text.pkl").write_text("no dump")
    for path in (tmp_path / "text.pkl", save_dump(lambda result: {"a": torch.zeros(1)})):
        with pytest.raises(ValueError, match="`path` must be a dump of detectron2's"):
            read_dump(path)
    with pytest.raises(ValueError, match="`path` must be a file, got .*missing.pkl"):
        read_dump(tmp_path / "missing.pkl")


def test_a_box_beyond_the_picture_is_clipped():
    iuv = np.arange(4 * 3 * 3, dtype=np.uint8).reshape(4, 3, 3)
    canvas = paste(Detection((-1, 3, 2, 7), iuv, 1.0), 5, 6)
    expected = np.zeros((5, 6, 3), np.uint8)
    expected[3:5, 0:2] = iuv[0:2, 1:3]
    np.testing.assert_array_equal(canvas, expected)
    assert not paste(Detection((9, 9, 12, 13), iuv, 1.0), 5, 6).any()


def test_box_iou_by_hand():
    assert box_iou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert box_iou((0, 0, 2, 2), (2, 0, 4, 2)) == 0 and box_iou((0, 0, 2, 2), (0, 0, 2, 2)) == 1


def person(left, code, width=20, height=60, score=0.9):
    iuv = np.full((height, width, 3), code, np.uint8)
    return Detection((left, 20, left + width, 20 + height), iuv, score)


def codes(chosen):
    return [None if detection is None else int(detection.iuv[0, 0, 2]) for detection in chosen]


@pytest.mark.parametrize(("rule", "code"), [("largest", 1), ("score", 2), ("centre", 3)])
def test_the_rule_chooses_the_person(rule, code):
    people = [person(0, 1, height=70), person(90, 2, score=0.95), person(45, 3, score=0.5)]
    assert codes(follow_person([people[::-1]], 100, 110, rule)) == [code]
    with pytest.raises(ValueError, match="`rule` must be one of .* got 'first'"):
        follow_person([people], 100, 110, "first")


def test_people_who_cross_are_not_swapped():
    clip = []
    for i in range(11):
        people = [person(8 * i, 1, height=62), person(80 - 8 * i, 2)]
        clip.append(people if i % 2 else people[::-1])
    assert codes(follow_person(clip, 100, 110)) == [1] * 11
    clip[4], clip[5] = [person(48, 2)], []
    assert codes(follow_person(clip[:4] + clip[5:], 100, 110))[:6] == [1, 1, 1, 1, None, 1]


def test_somebody_who_stops_in_a_gap_is_found_again():
    clip = [[person(0, 1)], [person(12, 1)], *[[]] * 6, [person(14, 1), person(40, 2)]]
    assert codes(follow_person(clip, 100, 110))[-1] == 1


def test_frames_before_the_first_person_and_without_any_are_gaps():
    clip = [[], [person(10, 4)], [], [person(12, 4)], [person(90, 5)]]
    assert codes(follow_person(clip, 100, 110)) == [None, 4, None, 4, None]
    assert follow_person([[], []], 100, 110) == [None, None]
