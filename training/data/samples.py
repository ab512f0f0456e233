# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Opening prepared data sets by name, and making training samples from them."""

import os
from pathlib import Path

import datasets
from accelerate import Accelerator
from datasets.naming import camelcase_to_snakecase

from pipeline_dreampose import DreamPosePipeline
from training.data.frame_pairs import FramePairs, LatentShape, Picture, decode_safely
from training.data.frame_stream import EndlessFrameStream, FrameStream, take_videos
from training.data.latent_cache import FrameEncoders, LatentCache, LatentFramePairs, precompute_latents
from training.data.pair_settings import PairSettings
from training.data.parquet_files import (
    READ_ERRORS,
    check_columns,
    content_digest,
    damaged_file,
    data_dir,
    find_files,
)
from training.data.procedural_fashion import ProceduralFashion, load_procedural_fashion
from training.engine.hub_access import why_unreachable
from training.engine.messages import one_line, shorten


PROCEDURAL = "procedural"
# End of the error for training data without the split of `--validation_steps`.
NO_VALIDATION = "Or train without validation: `--validation_steps none`."


def load_prepared(
    name: str, split: str, streaming: bool = False, hint: str = ""
) -> datasets.Dataset | datasets.IterableDataset:
    """Load one split of a prepared data set: one row per frame, with at least the columns of `FEATURES`.

    The fingerprint of a folder's rows depends on the bytes of its files alone, so a copy of the folder has the same.

    Args:
        name (`str`): Folder of parquet files, id on the Hub, `"procedural"` or `"procedural/CONFIG"` (drawn on first
            use and kept in the cache of `datasets`).
        split (`str`): `"train"`, `"validation"` or `"test"`.
        streaming (`bool`, *optional*, defaults to `False`): Read or draw rows as they are needed; store nothing.
        hint (`str`, *optional*): End of the message if there is no such split.
    Raises:
        ValueError: If `name` names no data set, or a column is missing or has the wrong type.
    """
    config_name = _drawn_config(name)
    if config_name is not None:
        if streaming:
            return ProceduralFashion(config_name=config_name).as_streaming_dataset(split=split)
        return load_procedural_fashion(config_name, split)
    if os.path.isdir(name):
        return _load_folder(name, split, streaming, hint)
    rule = "The data set must be a folder of parquet files or an id on the Hub"
    reason = "it is a file" if os.path.isfile(name) else _why_missing(name)
    if reason is not None:
        raise ValueError(f"{rule}, got {shorten(name)}: {reason}.")
    try:
        rows = datasets.load_dataset(path=name, split=split, streaming=streaming)
    except (*READ_ERRORS, datasets.exceptions.DatasetsError) as error:
        reason = f"{one_line(error.__cause__ or error)} {hint}".strip()
        raise ValueError(f"{rule}, with a split {split!r}, got {name!r}: {reason}") from error
    return _with_pictures(rows, name)


def _drawn_config(name: str) -> str | None:
    """Return the configuration of `ProceduralFashion` that a data set's name means, or `None` if it means another."""
    family, _, config_name = name.partition("/")
    if family != PROCEDURAL or Path(name).exists():
        return None
    known = sorted(ProceduralFashion.builder_configs)
    if config_name and config_name not in known:
        raise ValueError(f"The data set must be one of {known} after `{PROCEDURAL}/`, got {config_name!r}.")
    return config_name or ProceduralFashion.DEFAULT_CONFIG_NAME


def count_frames(name: str, split: str, hint: str = "") -> tuple[int, int]:
    """Return the numbers of clips and frames of a split, without drawing it; arguments are of [`load_prepared`]."""
    config_name = _drawn_config(name)
    if config_name is not None:
        config = ProceduralFashion.builder_configs[config_name]
        return config.num_clips(split), config.num_clips(split) * config.num_frames
    rows = load_prepared(name, split, hint=hint)
    return len(set(rows["video_id"])), len(rows)


def _why_missing(name: str) -> str | None:
    """Return why no data set of the Hub has this name, or `None` if one may; see [`why_unreachable`]."""
    namespace, _, last = name.rpartition("/")
    if not last:  # of which `datasets` makes no folder's name
        return why_unreachable(name, "dataset")
    folder = f"{namespace}___{camelcase_to_snakecase(last)}" if namespace else camelcase_to_snakecase(last)
    if os.path.isdir(os.path.join(datasets.config.HF_DATASETS_CACHE, folder)):
        return None
    return why_unreachable(name, "dataset")


def _load_folder(folder: str, split: str, streaming: bool, hint: str) -> datasets.Dataset | datasets.IterableDataset:
    files = find_files(folder, split, hint)
    # The description is part of the key under which `datasets` keeps rows, which else contains only the files' times.
    content = "streamed" if streaming else content_digest(files)
    source = {"path": "parquet", "data_dir": data_dir(folder), "split": split, "description": content}
    try:
        rows = _with_pictures(datasets.load_dataset(**source, streaming=streaming), folder)
    except (*READ_ERRORS, datasets.exceptions.DatasetsError) as error:
        file, reason = damaged_file(files) or (folder, one_line(error.__cause__ or error, 200))
        raise ValueError(f"The data set must have files that can be loaded, got {str(file)!r}: {reason}") from error
    return rows if streaming else rows.cast_column("iuv", Picture(), new_fingerprint=content)


def _with_pictures(
    rows: datasets.Dataset | datasets.IterableDataset, name: str
) -> datasets.Dataset | datasets.IterableDataset:
    """Check the columns, and mark `image` and `iuv` for decoding, also in files of other tools."""
    if rows.features is None:  # `FrameStream` checks such a stream
        return rows
    check_columns(rows.features, repr(name))
    if isinstance(rows, datasets.Dataset):
        return decode_safely(rows)
    for column in ("image", "iuv"):
        if not isinstance(rows.features[column], datasets.Image):
            rows = rows.cast_column(column, datasets.Image())
    return rows


def open_training(
    accelerator: Accelerator,
    pipeline: DreamPosePipeline,
    source: tuple[str, LatentShape, int, PairSettings],
    streaming: bool = False,
    latent_cache_dir: str | None = None,
    train_image_encoder: bool = False,
) -> FramePairs | EndlessFrameStream:
    """Open the training split in memory, as a stream, or from a latent cache.

    `source` are the arguments of [`open_samples`]; the others are those of [`open_stream`] and [`cache_samples`].
    """
    if streaming:
        return open_stream(accelerator, *source)
    if latent_cache_dir is None:
        return open_samples(*source)
    samples = open_samples(*source, keeps_poses=False)  # the cache reads each pose map once
    return cache_samples(accelerator, pipeline, samples, latent_cache_dir, train_image_encoder)


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
    rows = load_prepared(name, "validation", streaming, hint=NO_VALIDATION)
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
