# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Detections from DensePose output (detectron2's dumps and both TorchScript exports), and following one person.

A detection holds one person's I, U and V at the size of its box. A clip is a list of lists of detections.
Legend: `N` detections, `P` 25 part channels, `H W` pixels, boxes (left, top, right, bottom) in pixels.
"""

import itertools
import os
import pickletools
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from torch.serialization import safe_globals

from training.engine.messages import shorten
from training.media.pictures import MAX_PIXELS, natural_order
from training.poses.clip_settings import PERSON_RULES, PoseSettings
from training.poses.gaps import insert_missing


_DUMP_CLASSES = ("DensePoseChartResult", "DensePoseChartResultWithConfidences")
_LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # of torch.save before its ZIP files
_NUM_CODES = 25
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
# U and V are in [0, 1], but DensePose regresses them freely, so some lie outside. Levels up to 255 are another scale.
_MAX_UV = 10
# What to do about the classes that other dumps hold, by a part of the class's name.
_ADVICE = {
    "DensePoseResult": "a detectron2 of 2020 or later writes `DensePoseChartResult`",
    "Embedding": "models of continuous surface embeddings (CSE) have no U and V: use a chart model (densepose_rcnn_*)",
    "numpy": "save scores and boxes as tensors, as `apply_net.py dump` does",
}


@dataclass(frozen=True)
class Detection:
    """One detected person.

    `box` (left, top, right, bottom) is in whole pixels, right and bottom exclusive. `iuv` has the size of the box,
    uint8 `[H, W, 3]` as V, U, I. `score` is in [0, 1].
    """

    box: tuple[int, int, int, int]
    iuv: np.ndarray
    score: float

    @property
    def area(self) -> int:
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)


def _to_iuv(parts: torch.Tensor, u: torch.Tensor, v: torch.Tensor) -> np.ndarray:
    """Stack parts, U and V `[H, W]` as uint8 `[H, W, 3]` (V, U, I). U and V of a body start at 1: 0 means nobody."""
    body = parts > 0
    levels = [(value.clamp(0, 1) * 255).round().clamp(min=1) * body for value in (v, u)]
    return torch.stack([*levels, parts], dim=-1).byte().cpu().numpy()


def detections_from_charts(boxes: torch.Tensor, scores: torch.Tensor | None, *charts: torch.Tensor) -> list[Detection]:
    """Turn a chart head's output into detections: boxes `[N, 4]` in pixels and, where known, scores `[N]` (else 1).

    The four charts are coarse scores `[N, 2, h, w]` of background and body, fine scores `[N, P, h, w]` of the parts
    (part 0 is the background), and U and V `[N, P, h, w]`. They are resized to the box.
    `I = argmax(fine) * (argmax(coarse) > 0)`; U and V come from the channel of each pixel's part.
    """
    detections = []
    for box, score, *of_person in zip(boxes, torch.ones(len(boxes)) if scores is None else scores, *charts):
        _check_box(box)
        left, top, right, bottom = (int(round(float(value))) for value in box)
        right, bottom = max(right, left + 1), max(bottom, top + 1)
        _check_size(bottom - top, right - left)
        resize = partial(F.interpolate, size=(bottom - top, right - left), mode="bilinear", align_corners=False)
        coarse, fine, *uv = (resize(chart[None].float())[0] for chart in of_person)
        parts = fine.argmax(0) * (coarse.argmax(0) > 0)
        u, v = (chart.gather(0, parts[None])[0] for chart in uv)
        detections.append(Detection((left, top, right, bottom), _to_iuv(parts, u, v), float(score)))
    return detections


def detections_from_torchscript(output: Mapping[str, torch.Tensor] | Sequence[torch.Tensor]) -> list[Detection]:
    """Return the detections in one picture from the output of either TorchScript export.

    Raises:
        ValueError: If `output` is neither a dict with `pred_boxes`, `scores` and `pred_densepose_*` nor a tuple of
            boxes, coarse, fine, U and V.
    """
    if isinstance(output, Mapping):
        charts = (f"pred_densepose_{name}" for name in ("coarse_segm", "fine_segm", "u", "v"))
        names = ("pred_boxes", "scores", *charts)
        missing = [name for name in names if name not in output]
        if missing:
            raise ValueError(f"`output` of a DensePose export must have {names}, but lacks {missing}.")
        return detections_from_charts(*(output[name] for name in names))
    if not isinstance(output, Sequence) or len(output) != 5:
        raise ValueError(
            "`output` of a DensePose export must be a dict or a tuple of boxes, coarse, fine, U and V, got "
            f"{type(output).__name__}{f' of {len(output)}' if isinstance(output, Sequence) else ''}."
        )
    boxes, *charts = output
    return detections_from_charts(boxes, None, *charts)


def _check_box(box: torch.Tensor) -> None:
    if box.shape != (4,) or not torch.isfinite(box).all():
        raise ValueError(f"`boxes` must be finite, four numbers each, got {shorten(box.tolist())}.")


def _check_size(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise ValueError(f"`boxes` must have up to {MAX_PIXELS} pixels, got one of {height} x {width}.")


class _ChartResult:
    """Stand-in for detectron2's result classes, which only hold `labels` [H,W] and `uv` [2,H,W]."""


def read_dump(
    path: str | os.PathLike, max_gap: int = PoseSettings.max_gap
) -> list[tuple[str | None, list[Detection]]]:
    """Read a `.pkl` of detectron2's `apply_net.py dump`; only tensors and its result classes are unpickled.

    Returns:
        `list`: File name and detections of each picture, in the order of the numbers in the names. A number that the
            names leave out gives `None` and no detections.
    Raises:
        ValueError: If the file is not such a dump, holds anything else (no code in it is run) or numbers out of their
            range, its pictures are in several folders or listed twice, or their names leave out more than `max_gap`
            numbers in a row.
    """
    if not os.path.isfile(path):  # opening a pipe would wait
        reason = "which is not a file" if os.path.exists(path) else "which does not exist"
        raise ValueError(f"`path` must be a file, got {shorten(str(path))}, {reason}.")
    allowed = [(_ChartResult, f"densepose.structures.chart_result.{name}") for name in _DUMP_CLASSES]
    allowed += [(_ChartResult, f"densepose.structures.{name}") for name in _DUMP_CLASSES]
    try:
        with safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about the pickle's protocol
            entries = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the file may hold anything
        raise _not_a_dump(path, _why_not_a_dump(path, error)) from error
    try:
        frames = _read_dump_entries(entries)
    except ValueError as error:
        raise _not_a_dump(path, str(error)) from error
    folders = sorted({str(Path(name).parent) for name, _ in frames})
    if len(folders) > 1:
        raise ValueError(
            f"`path` must be a dump of one clip, got pictures from {len(folders)} folders: {', '.join(folders[:3])}"
            f"{', ...' if len(folders) > 3 else ''}. Run `apply_net.py dump` once per folder."
        )
    frames = sorted(frames, key=lambda frame: natural_order(Path(frame[0])))
    names = [name for name, _ in frames]
    return insert_missing(names, frames, max_gap, missing=(None, []), argument="path", source=path)


def _not_a_dump(path: str | os.PathLike, reason: str) -> ValueError:
    return ValueError(
        "`path` must be a dump of detectron2's `apply_net.py` that holds only tensors and chart results, got "
        f"{Path(path).name!r}: {reason}"
    )


def _why_not_a_dump(path: str | os.PathLike, error: Exception) -> str:
    """Name the class that a file holds instead of tensors and chart results."""
    end = "."
    with open(path, "rb") as file:
        head = file.read(16)
        file.seek(0)
        if head.startswith(b"PK") or _LEGACY_MAGIC in head:  # `torch.save` wrote it
            # torch's message is advice on how to run the code in the file.
            reason = str(error).partition("WeightsUnpickler error: ")[2] or str(error)
            found = re.search(r"GLOBAL ([\w.]+)", reason)
            if not found:
                return " ".join(reason.split())[:200]
            name, kind = found[1], "it holds"
        else:
            name, kind = _class_in_pickle(file), "it is a plain pickle, not one that `torch.save` wrote, of"
            end = ". `apply_net.py dump` writes the right file."
    if name is None:
        return f"`torch.save` did not write it{end}"
    advice = next((f"; {text}" for part, text in _ADVICE.items() if part in name), "")
    return f"{kind} {name[:100]}{advice}{end}"


def _class_in_pickle(file: BinaryIO) -> str | None:
    """Return a class that a pickle names, preferably of DensePose, without unpickling it; `None` for another file."""
    names, texts = [], []
    try:
        for operation, value, _ in itertools.islice(pickletools.genops(file), 100_000):
            if operation.name == "GLOBAL":
                names.append(value.replace(" ", "."))
            elif operation.name == "STACK_GLOBAL":  # takes the last two texts
                names.append(".".join(texts[-2:]))
            elif isinstance(value, str):
                texts.append(value)
    except (ValueError, MemoryError, OverflowError):
        return None
    usual = ("_codecs", "collections", "torch")
    names.sort(key=lambda name: (not name.startswith("densepose"), name.startswith(usual)))
    return names[0] if names else "plain data"


def _read_dump_entries(entries: Any) -> list[tuple[str, list[Detection]]]:
    """Return file name and detections of each picture. A `ValueError` says what an entry lacks."""
    if not isinstance(entries, (list, tuple)):
        raise ValueError(f"it holds one {type(entries).__name__}, not a list with one entry per picture.")
    frames = []
    for index, entry in enumerate(entries):
        try:
            if not isinstance(entry, Mapping):
                raise ValueError(f"it must be a dict, got {shorten(entry)}.")
            name = _get(entry, "file_name")
            if not isinstance(name, str) or not 0 < len(name) < 4096:
                raise ValueError(f"`file_name` must be the path of a picture, got {shorten(name)}.")
            frames.append((name, _read_people(entry)))
        except ValueError as error:
            raise ValueError(f"entry {index}: {error}") from error
    return frames


def _get(entry: Mapping[str, Any], name: str, owner: str = "it") -> Any:
    if name not in entry:
        raise ValueError(f"{owner} lacks `{name}`.")
    return entry[name]


def _read_people(entry: Mapping[str, Any]) -> list[Detection]:
    scores = _read_numbers(entry, "scores", "one number per person", ())
    if len(scores) == 0:
        return []  # without a person, detectron2 writes no `pred_densepose`
    boxes = _read_numbers(entry, "pred_boxes_XYXY", "four numbers per person", (4,))
    results = _get(entry, "pred_densepose")
    if not isinstance(results, (list, tuple)) or not len(results) == len(boxes) == len(scores):
        got = f"{len(results)} results" if isinstance(results, (list, tuple)) else shorten(results)
        raise ValueError(
            f"`pred_densepose` must have one result per person, got {got} for {len(scores)} scores and {len(boxes)}"
            " boxes."
        )
    return [_read_person(box, float(score), result) for box, score, result in zip(boxes, scores, results)]


def _read_numbers(entry: Mapping[str, Any], name: str, rule: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return finite numbers `[N, *shape]` of an entry."""
    value = _get(entry, name)
    try:
        numbers = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"`{name}` must hold {rule}, got {shorten(value)}.") from error
    numbers = numbers.reshape(0, *shape) if numbers.shape[:1] == (0,) else numbers
    if not _is_plain(numbers, _FLOATS + _INTEGERS) or numbers.shape[1:] != shape or numbers.ndim == 0:
        raise ValueError(f"`{name}` must hold {rule}, got {numbers.dtype} {list(numbers.shape)}.")
    if not torch.isfinite(numbers).all():
        raise ValueError(f"`{name}` must be finite, got {shorten(numbers.tolist())}.")
    return numbers


def _is_plain(value: Any, dtypes: Sequence[torch.dtype]) -> bool:
    """Return whether a value is a tensor of one of the data types that holds its numbers in memory."""
    is_tensor = isinstance(value, torch.Tensor)
    return is_tensor and value.dtype in dtypes and value.layout == torch.strided and not value.is_meta


def _read_person(box: torch.Tensor, score: float, result: Any) -> Detection:
    labels, uv = (_get(getattr(result, "__dict__", {}), name, "a result") for name in ("labels", "uv"))
    is_plain = _is_plain(labels, _INTEGERS) and _is_plain(uv, _FLOATS)
    if not is_plain or labels.ndim != 2 or not labels.numel() or uv.shape != (2, *labels.shape):
        got = " and ".join(
            f"{value.dtype} {list(value.shape)}" if isinstance(value, torch.Tensor) else shorten(value)
            for value in (labels, uv)
        )
        raise ValueError(f"`labels` and `uv` must be integers [H, W] and floats [2, H, W], got {got}.")
    _check_size(*labels.shape)
    if not 0 <= labels.min() <= labels.max() < _NUM_CODES:
        raise ValueError(
            f"`labels` must be part codes 0..{_NUM_CODES - 1}, got {int(labels.min())}..{int(labels.max())}."
        )
    if not uv.abs().max() <= _MAX_UV:  # also for NaN
        raise ValueError(f"`uv` must be U and V, about 0 to 1, got {float(uv.min()):g}..{float(uv.max()):g}.")
    left, top = (int(float(value)) for value in box[:2])
    height, width = labels.shape
    return Detection((left, top, left + width, top + height), _to_iuv(labels, *uv.float()), score)


def paste(detection: Detection, height: int, width: int) -> np.ndarray:
    """Paste a detection into an empty IUV picture, clipped to it: uint8 `[height, width, 3]` as V, U, I."""
    left, top, right, bottom = detection.box
    canvas = np.zeros((height, width, 3), np.uint8)
    rows, columns = slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width))
    if rows.start < rows.stop and columns.start < columns.stop:
        canvas[rows, columns] = detection.iuv[
            rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
        ]
    return canvas


def box_iou(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two boxes, in [0, 1]."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    intersection = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return intersection / (sum(areas) - intersection)


def follow_person(
    clip: Iterable[Sequence[Detection]], height: int, width: int, rule: str = "largest"
) -> list[Detection | None]:
    """Choose one person in the first frame that shows anybody, and follow this person through the clip.

    In each later frame, choose the detection that overlaps most with the expected box: the last box, moved on by its
    last movement, so that people who cross are not swapped. If none overlaps, compare with the last box itself.

    `rule` chooses the `"largest"` box, the best `"score"` (the first detection if an export has no scores) or the box
    nearest to the `"centre"` of the frames of `height` x `width` pixels.

    Returns:
        `list[Detection | None]`: One item per frame, `None` where the person is not found.
    Raises:
        ValueError: If `rule` is unknown.
    """
    if rule not in PERSON_RULES:
        raise ValueError(f"`rule` must be one of {PERSON_RULES}, got {rule!r}.")
    ranks = {
        "largest": lambda d: d.area,
        "score": lambda d: d.score,
        "centre": lambda d: -np.hypot(d.box[0] + d.box[2] - width, d.box[1] + d.box[3] - height),
    }
    chosen, last, velocity, gap = [], None, np.zeros(4), 1
    for detections in clip:
        found = None
        if last is None:
            found = max(detections, key=ranks[rule], default=None)
        else:
            for expected in (last + gap * velocity, last):  # the person may have stopped in a gap
                overlaps = [box_iou(detection.box, expected) for detection in detections]
                if found is None and max(overlaps, default=0) > 0:
                    found = detections[int(np.argmax(overlaps))]
        chosen.append(found)
        if found is None:
            gap += last is not None
            continue
        box = np.array(found.box, float)
        if last is not None:
            # Only the centre's movement counts: opening the arms widens a box without moving the person.
            movement = ((box - last)[:2] + (box - last)[2:]) / 2 / gap
            velocity = np.tile(movement, 2)
        last, gap = box, 1
    return chosen
