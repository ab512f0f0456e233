# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""The samples of a stage-2 run: a subject's photos, with those of others where there is a prior."""

import os
from dataclasses import replace

import datasets
from accelerate import Accelerator

from pipeline_dreampose import DreamPosePipeline
from training.data.frame_pairs import LatentShape
from training.data.pair_settings import PairSettings
from training.data.samples import open_samples
from training.subject.photos import SubjectPairs, find_photos, load_photos, make_iuv_pictures


def check_photos(instance_data_dir: str | os.PathLike, densepose: str | None) -> None:
    """Raise a `ValueError` for a folder that no run can have; with a `densepose`, IUV pictures may be missing."""
    (load_photos if densepose is None else find_photos)(instance_data_dir)


def open_photos(
    accelerator: Accelerator, instance_data_dir: str | os.PathLike, densepose: str | None, person: str
) -> datasets.Dataset:
    """The photos; if there is a DensePose, the main process makes the IUV pictures that are missing first.

    Args:
        accelerator (`Accelerator`): Of the run.
        instance_data_dir (`str` or `os.PathLike`): Folder of the photos.
        densepose, person (`str`): As [`make_iuv_pictures`] takes them; `None` to make none.
    """
    if densepose is not None:
        with accelerator.main_process_first():
            for path in make_iuv_pictures(instance_data_dir, densepose, accelerator.device, person):
                print(f"Wrote {path}.")
    return load_photos(instance_data_dir)


def open_pairs(
    pipeline: DreamPosePipeline,
    photos: datasets.Dataset,
    seed: int,
    settings: PairSettings,
    prior_dataset: str | None,
    prior_prob: float,
) -> SubjectPairs:
    """The samples of both phases, at the pipeline's own size.

    Args:
        pipeline (`DreamPosePipeline`): That is trained.
        photos (`datasets.Dataset`): From [`open_photos`].
        seed (`int`): Of all draws.
        settings (`PairSettings`): How photos become a sample; the prior's pictures are shown whole, and its rows that
            cannot be used are passed over.
        prior_dataset (`str`, *optional*): Prepared data set of other subjects.
        prior_prob (`float`): Its share.
    """
    shape = LatentShape.of(pipeline.vae, pipeline.config.default_height, pipeline.config.default_width)
    prior = None
    if prior_dataset is not None:
        try:
            whole = replace(settings, min_crop_scale=1.0, bad_rows="skip")
            prior = open_samples(prior_dataset, shape, seed, whole, keeps_poses=False)
        except ValueError as error:
            raise ValueError(f"`prior_dataset` cannot be taken. {error}") from error
    return SubjectPairs(photos, shape, seed, settings, prior, prior_prob)
