# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""The IUV pictures that a subject's photos lack, by DensePose, each written beside its photo."""

import os
from pathlib import Path

import torch
from PIL import Image

from training.media.settings_file import partial_path
from training.poses.detections import PERSON_RULES, follow_person, paste
from training.poses.estimator import DensePoseEstimator
from training.subject.photos import find_photos, iuv_path_of, open_photo


def make_iuv_pictures(
    instance_data_dir: str | os.PathLike,
    densepose: str | os.PathLike,
    device: str | torch.device = "cpu",
    person: str = PERSON_RULES[0],
) -> list[Path]:
    """Write `<stem>_iuv.png` beside each photo that has none; those that are there are kept.

    Args:
        instance_data_dir (`str` or `os.PathLike`): Folder of the photos.
        densepose (`str` or `os.PathLike`): TorchScript DensePose, here or on the Hub; not loaded if none is missing.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Where it runs.
        person (`str`, *optional*, defaults to `"largest"`): Whose of several people, one of `PERSON_RULES`.
    Returns:
        `list[Path]`: What was written.
    Raises:
        ValueError: If there is no photo, one cannot be read, `densepose` is no DensePose, or it finds nobody in some
            photos, all of which are named; the others' pictures are written.
    """
    missing = [photo for photo in find_photos(instance_data_dir) if not iuv_path_of(photo).is_file()]
    estimator = DensePoseEstimator(densepose, device) if missing else None
    written, empty = [], []
    for photo in missing:
        image = open_photo(photo)
        (detection,) = follow_person([estimator(image)], image.height, image.width, person)
        if detection is None:
            empty.append(str(photo))
            continue
        path = iuv_path_of(photo)
        partial = partial_path(path)
        Image.fromarray(paste(detection, image.height, image.width)).save(partial, "PNG")
        os.replace(partial, path)
        written.append(path)
    if empty:
        raise ValueError(f"`instance_data_dir` must hold photos of a person; DensePose finds nobody in {empty}.")
    return written
