# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Parquet files of a prepared folder: their splits, a check of their columns, and a digest of their bytes.

The check of columns also serves data sets that are no folder, and it is the same for mapped and streamed ones.
"""

import glob
import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from pyarrow import parquet

from training.data.frame_pairs import FEATURES
from training.engine.messages import one_line, shorten
from training.media.settings_file import read_json, write_json


# Raised by a file that cannot be read, or whose columns cannot be cast.
READ_ERRORS = (OSError, TypeError, ValueError, NotImplementedError, pa.ArrowException)
_RULE = f"The data set must have rows with the columns {', '.join(FEATURES)}"
_TEXT, _BYTES = ("string", "large_string"), ("binary", "large_binary")


def column_problem(features: datasets.Features) -> str | None:
    """Say which column of a training row is missing or has the wrong type; return `None` if all are right."""
    missing = [name for name in FEATURES if name not in features]
    if missing:
        return f"lacks {missing}"
    types = features.arrow_schema
    rules = {
        "video_id": ("text", _is_value(features["video_id"], *_TEXT)),
        "frame_index": ("whole numbers", pa.types.is_integer(types.field("frame_index").type)),
        "image": ("pictures", _is_picture(features["image"])),
        "iuv": ("pictures", _is_picture(features["iuv"])),
    }
    for name, (kind, is_right) in rules.items():
        if not is_right:
            return f"has {types.field(name).type} in `{name}`, which must hold {kind}"
    return None


def check_columns(features: datasets.Features, rows: str) -> None:
    """Raise a `ValueError` if rows with these features are no training rows; `rows` is their name in the message."""
    problem = column_problem(features)
    if problem is not None:
        raise ValueError(f"{_RULE}, but {rows} {problem}.")


def _is_value(feature: Any, *dtypes: str) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype in dtypes


def _is_picture(feature: Any) -> bool:
    """Return whether a column holds encoded pictures: as `datasets` writes them, or as other tools do."""
    if isinstance(feature, dict):
        has_path = "path" not in feature or _is_value(feature["path"], *_TEXT, "null")
        return has_path and _is_value(feature.get("bytes"), *_BYTES)
    return isinstance(feature, datasets.Image) or _is_value(feature, *_BYTES)


def escape(folder: str) -> str:
    """Return a folder as `datasets` takes it, which reads a path as a pattern: with `[`, `*` and `?` escaped."""
    return glob.escape(str(Path(folder).resolve())) if glob.has_magic(str(Path(folder).resolve())) else folder


def data_dir(folder: str) -> str:
    """Return a folder with the same files that `datasets` can list: for most the same, else links in its cache.

    If a path holds `[`, `*` or `?`, `datasets` finds its files only by listing everything beside the folder.
    """
    whole = Path(folder).resolve()
    if not glob.has_magic(str(whole)):
        return folder
    links = Path(datasets.config.HF_DATASETS_CACHE) / "folders" / hashlib.sha256(str(whole).encode()).hexdigest()[:32]
    files = {path.relative_to(whole): path for path in whole.rglob("*") if path.is_file()}
    for link in [path for path in links.rglob("*") if path.is_symlink() and path.relative_to(links) not in files]:
        link.unlink(missing_ok=True)
    for name, path in files.items():
        (links / name).parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):  # of an earlier run, or of another process
            (links / name).symlink_to(path)
    return escape(str(links))


def find_files(folder: str, split: str, hint: str = "") -> list[Path]:
    """Return the parquet files of a split in the order of `datasets`, which finds the splits in the files' names.

    Only the last bytes of the files, which hold their types, are read. `hint` ends the message if there is no such
    split.

    Raises:
        ValueError: If the folder has no such split or leaves a parquet file without one, or if a file cannot be read
            or holds no training rows. The message names the file.
    """
    source = data_dir(folder)
    try:
        by_split = datasets.load_dataset_builder("parquet", data_dir=source).config.data_files
    except (*READ_ERRORS, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"The data set must be a folder of parquet files, got {folder!r}: {error}") from error
    base, listed = Path(folder).resolve(), Path(source).resolve()
    splits = {str(name): [base / Path(file).relative_to(listed) for file in files] for name, files in by_split.items()}
    found = shorten({name: str(files[0].relative_to(base)) for name, files in splits.items()})
    used = {file for files in splits.values() for file in files}
    for path in sorted(base.rglob("*.parquet")):
        if path not in used and not _is_hidden(path.relative_to(base)):
            raise ValueError(
                f"The data set must have a split for each file, as `train/NAME.parquet` has, got {folder!r}, where"
                f" {str(path.relative_to(base))!r} has none beside {found}."
            )
    if split not in splits:
        raise ValueError(
            f"The data set must have the split {split!r}, got {folder!r} with {found}. {_how_to_make(split)}"
            f" {hint}".strip()
        )
    _check_files(splits[split], base)
    return splits[split]


def _how_to_make(split: str) -> str:
    other = "train" if split != "train" else "validation"
    by_hand = f"put some clips into `{split}/NAME.parquet` and the others into `{other}/NAME.parquet`."
    if split not in ("validation", "test"):
        return f"To make it, {by_hand}"
    return f"To make it, prepare the clips anew with `prepare_dataset.py --{split}_clips N`, or {by_hand}"


def _is_hidden(path: Path) -> bool:
    """Return whether `datasets` ignores a file because of its name or its folder's name."""
    return any(part.startswith((".", "__")) for part in path.parts)


def _check_files(files: Sequence[Path], base: Path) -> None:
    problems = {file: problem for file in files if (problem := _file_problem(file)) is not None}
    if not problems:
        return
    (file, problem), *_ = problems.items()
    folders = {base / path.relative_to(base).parts[0] for path in files if path.parent != base}
    whole = sorted(folder for folder in folders if not any(folder in path.parents for path in problems))
    hint = f" Give {str(whole[0])!r}, whose files are right." if whole else ""
    raise ValueError(f"{_RULE}, but {str(file.relative_to(base))!r} in {str(base)!r} {problem}.{hint}")


def _file_problem(file: Path) -> str | None:
    try:
        with parquet.ParquetFile(file) as opened:
            features, num_rows = datasets.Features.from_arrow_schema(opened.schema_arrow), opened.metadata.num_rows
    except READ_ERRORS as error:
        return f"is no whole parquet file ({one_line(error, 200)})"
    return "has no rows" if num_rows == 0 else column_problem(features)


def damaged_file(files: Sequence[Path]) -> tuple[Path, str] | None:
    """Read files whole, and return the first that cannot be read, with the reason."""
    for file in files:
        try:
            with parquet.ParquetFile(file) as opened:
                for _ in opened.iter_batches():
                    pass
        except READ_ERRORS as error:
            return file, one_line(error, 200)
    return None


def content_digest(files: Sequence[Path]) -> str:
    """Return a digest of the bytes of files in their order; their names and times do not matter.

    Each file is read whole, since parquet files seldom hold checksums, but only once: its digest is kept in the cache
    of `datasets`. Beside the file, it would need a folder that can be written, and `datasets` would take it for rows.
    """
    return hashlib.sha256("".join(map(_file_digest, files)).encode()).hexdigest()[:32]


def _file_digest(file: Path) -> str:
    name, found = hashlib.sha256(str(file).encode()).hexdigest()[:32], file.stat()
    record = Path(datasets.config.HF_DATASETS_CACHE) / "file_digests" / f"{name}.json"
    # Unlike the time of the content, that of the last change cannot be set: a file's replacement has another.
    times = {"mtime": found.st_mtime_ns, "ctime": found.st_ctime_ns}
    facts = {"path": str(file), "size": found.st_size, **times}
    try:
        known = read_json(record, "record", "digest")
        if known == facts | {"digest": known["digest"]}:
            return known["digest"]
    except ValueError:
        pass  # nothing is kept yet, or it is damaged
    with open(file, "rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    try:
        write_json(record, facts | {"digest": digest})
    except OSError:
        pass  # the cache cannot be written, so the file is read again next time
    return digest
