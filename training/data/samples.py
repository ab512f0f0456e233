# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Opening prepared data sets by name, and making training samples from them."""

from pathlib import Path

import datasets
from accelerate import Accelerator

from pipeline_dreampose import DreamPosePipeline
from training.data.frame_pairs import FEATURES, FramePairs, LatentShape, decode_safely
from training.data.frame_stream import EndlessFrameStream, FrameStream, take_videos
from training.data.latent_cache import FrameEncoders, LatentCache, LatentFramePairs, precompute_latents
from training.data.pair_settings import PairSettings
from training.data.procedural_fashion import ProceduralFashion, load_procedural_fashion


PROCEDURAL = "procedural"


def load_prepared(name: str, split: str, streaming: bool = False) -> datasets.Dataset | datasets.IterableDataset:
    """Load one split of a prepared data set: one row per frame, with at least the columns of `FEATURES`.

    Args:
        name (`str`): Folder of parquet files, id on the Hub, `"procedural"` or `"procedural/CONFIG"` (drawn on first
            use and kept in the cache of `datasets`).
        split (`str`): `"train"`, `"validation"` or `"test"`.
        streaming (`bool`, *optional*, defaults to `False`): Read or draw rows as they are needed; store nothing.
    Raises:
        ValueError: If `name` names no data set or a column is missing.
    """
    family, _, config_name = name.partition("/")
    if family == PROCEDURAL and not Path(name).exists():
        known = sorted(ProceduralFashion.builder_configs)
        if config_name and config_name not in known:
            raise ValueError(f"The data set must be one of {known} after `{PROCEDURAL}/`, got {config_name!r}.")
        config_name = config_name or ProceduralFashion.DEFAULT_CONFIG_NAME
        if streaming:
            return ProceduralFashion(config_name=config_name).as_streaming_dataset(split=split)
        return load_procedural_fashion(config_name, split)
    where = {"path": "parquet", "data_dir": name} if Path(name).is_dir() else {"path": name}
    try:
        dataset = datasets.load_dataset(**where, split=split, streaming=streaming)
    except (OSError, ValueError, datasets.exceptions.DatasetNotFoundError) as error:
        raise ValueError(
            f"The data set must be a folder of parquet files or an id on the Hub, with a split {split!r}, got"
            f" {name!r}: {error}"
        ) from error
    missing = [column for column in FEATURES if column not in (dataset.column_names or FEATURES)]
    if missing:
        raise ValueError(f"The data set must have the columns {tuple(FEATURES)}, but {name!r} lacks {missing}.")
    try:
        return dataset if streaming else decode_safely(dataset)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(f"The data set must have pictures in `image` and `iuv`, got {name!r}: {error}") from error


def open_samples(
    name: str, shape: LatentShape, seed: int, settings: PairSettings, keeps_poses: bool = True
) -> FramePairs:
    """Open the training split as samples; the arguments are those of `FramePairs`."""
    return FramePairs(load_prepared(name, "train"), shape, seed, settings, keeps_poses)


def open_stream(
    accelerator: Accelerator, name: str, shape: LatentShape, seed: int, settings: PairSettings
) -> EndlessFrameStream:
    """Open this process's part of the streamed training split; the arguments are those of `FrameStream`."""
    place = {"process_index": accelerator.process_index, "num_processes": accelerator.num_processes}
    return EndlessFrameStream(FrameStream(load_prepared(name, "train", True), shape, seed, settings, **place))


def open_held_out(
    name: str, shape: LatentShape, seed: int, settings: PairSettings, streaming: bool, num_videos: int
) -> FramePairs:
    """Open the validation split; if streaming, only its first `num_videos` videos, held in memory."""
    rows = load_prepared(name, "validation", streaming)
    return FramePairs(take_videos(rows, num_videos) if streaming else rows, shape, seed, settings, keeps_poses=False)


def cache_samples(
    accelerator: Accelerator, pipeline: DreamPosePipeline, samples: FramePairs, folder: str, train_image_encoder: bool
) -> LatentFramePairs:
    """Return the same samples from a latent cache; all processes together encode what it lacks.

    The cache is `folder` or a folder in it. With `train_image_encoder` it keeps the image encoder's input, since the
    output changes.
    """
    encoders = FrameEncoders(pipeline.vae, pipeline.image_encoder, pipeline.feature_extractor, train_image_encoder)
    place = {"process_index": accelerator.process_index, "num_processes": accelerator.num_processes}
    cache = precompute_latents(folder, samples, encoders, **place)
    accelerator.wait_for_everyone()
    return LatentFramePairs(samples.dataset, samples.shape, samples.seed, samples.settings, LatentCache(cache))
