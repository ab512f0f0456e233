# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Prepared data sets by name: a folder of parquet files, an id on the Hub, or `procedural`."""

from pathlib import Path

import datasets

from training.data.procedural_fashion import ProceduralFashion, load_procedural_fashion


PROCEDURAL = "procedural"
COLUMNS = ("video_id", "frame_index", "image", "iuv")


def load_prepared(name: str, split: str, streaming: bool = False) -> datasets.Dataset | datasets.IterableDataset:
    """Load one split of a prepared data set, one row a frame.

    Args:
        name (`str`): Folder of parquet files, id on the Hub, `"procedural"` or `"procedural/CONFIG"` (drawn on first
            use and kept in the cache of `datasets`).
        split (`str`): `"train"`, `"validation"` or `"test"`.
        streaming (`bool`, *optional*, defaults to `False`): Keep nothing on the disk: read, or draw, rows as they are
            asked for.
    Returns:
        `datasets.Dataset` or `datasets.IterableDataset`: With at least `video_id`, `frame_index`, `image` and `iuv`.
    Raises:
        ValueError: If `name` names no data set or a column is missing.
    """
    family, _, config_name = name.partition("/")
    if family == PROCEDURAL and not Path(name).exists():
        known = sorted(ProceduralFashion.builder_configs)
        if config_name and config_name not in known:
            raise ValueError(f"The data set must be one of {known} behind `{PROCEDURAL}/`, got {config_name!r}.")
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
    missing = [column for column in COLUMNS if column not in (dataset.column_names or COLUMNS)]
    if missing:
        raise ValueError(f"The data set must have the columns {COLUMNS}, but {name!r} lacks {missing}.")
    return dataset
