# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Opening a subject's photos, and the training samples of stage 2 made from them and from a prior data set."""

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
    """Raise a `ValueError` if the photos cannot be used; IUV pictures may be missing if there is a `densepose`."""
    (load_photos if densepose is None else find_photos)(instance_data_dir)


def open_photos(
    accelerator: Accelerator, instance_data_dir: str | os.PathLike, densepose: str | None, person: str
) -> datasets.Dataset:
    """Load the photos. With a `densepose`, the main process first makes the missing IUV pictures.

    `densepose` and `person` are those of [`make_iuv_pictures`].
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
    """Build the samples of both phases at the pipeline's default size.

    Args:
        pipeline (`DreamPosePipeline`): The pipeline to train.
        photos (`datasets.Dataset`): From [`open_photos`].
        seed (`int`): Seed of all random draws.
        settings (`PairSettings`): How photos become samples. Pictures of the prior are never cropped, and its bad rows
            are skipped.
        prior_dataset (`str`, *optional*): Prepared data set of other subjects.
        prior_prob (`float`): Its share of the samples.
    """
    shape = LatentShape.of(pipeline.vae, pipeline.config.default_height, pipeline.config.default_width)
    prior = None
    if prior_dataset is not None:
        try:
            whole = replace(settings, min_crop_scale=1.0, bad_rows="skip")
            prior = open_samples(prior_dataset, shape, seed, whole, keeps_poses=False)
        except ValueError as error:
            raise ValueError(f"`prior_dataset` cannot be used. {error}") from error
    return SubjectPairs(photos, shape, seed, settings, prior, prior_prob)
