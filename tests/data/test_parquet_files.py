"""Prepared folders: other tools' files are read, a bad file is named, and rows are known by their files' bytes."""

import hashlib
import io
import os
import shutil

import datasets
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from tests.tiny_components import get_dummy_image, get_dummy_iuv
from training.data.frame_pairs import FramePairs, LatentShape
from training.data.frame_stream import FrameStream
from training.data.latent_cache import FrameEncoders, cache_facts, precompute_latents
from training.data.pair_settings import PairSettings
from training.data.samples import load_prepared, open_held_out


SHAPE = LatentShape(4, 8, 6, 32, 24)


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def png(picture):
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def columns(num_frames=3, seed=0):
    """Return the columns of a clip as another tool would write them: pictures are raw bytes."""
    return {
        "video_id": [f"clip-{seed}"] * num_frames,
        "frame_index": list(range(num_frames)),
        "image": [png(get_dummy_image(seed + i)) for i in range(num_frames)],
        "iuv": [png(get_dummy_iuv(i)) for i in range(num_frames)],
    }


def write(path, metadata=False, **changes):
    """Write a parquet file with these columns changed, or left out if `None`; `metadata` is that of `datasets`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = {"video_id": [path.stem] * 3}
    table = pa.table({name: values for name, values in (columns() | names | changes).items() if values is not None})
    if metadata:
        features = {"image": datasets.Image(), "iuv": datasets.Image(), "frame_index": datasets.Value("int32")}
        features = datasets.Features({"video_id": datasets.Value("string")} | features)
        datasets.Dataset(table).cast(features).to_parquet(str(path))
    else:
        parquet.write_table(table, path)
    return path


def samples_of(folder, streaming):
    rows = load_prepared(str(folder), "train", streaming)
    if streaming:
        return list(FrameStream(rows, SHAPE, 0))
    pairs = FramePairs(rows, SHAPE, 0, PairSettings(), keeps_poses=False)
    return [pairs[position] for position in range(len(pairs))]


def structs(names, image):
    return [{name: {"bytes": value, "path": None, "width": 24}[name] for name in names} for value in image]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("names", [None, ("bytes",), ("bytes", "path"), ("path", "bytes"), ("bytes", "path", "width")])
def test_pictures_of_other_tools_are_those_of_datasets(tmp_path, names, streaming):
    plain = columns()
    changes = {} if names is None else {name: structs(names, plain[name]) for name in ("image", "iuv")}
    write(tmp_path / "own" / "train" / "a.parquet", metadata=True)
    write(tmp_path / "other" / "train" / "a.parquet", **changes)
    expected, found = (samples_of(tmp_path / name, streaming) for name in ("own", "other"))
    for one, other in zip(expected, found, strict=True):
        assert all(torch.equal(other[name], value) for name, value in one.items())
    features = load_prepared(str(tmp_path / "other"), "train", streaming).features
    assert isinstance(features["image"], datasets.Image) and isinstance(features["iuv"], datasets.Image)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("column", "values", "problem"),
    [
        ("video_id", [1, 2, 3], "int64 in `video_id`, which must hold text"),
        ("video_id", [["a"]] * 3, r"list<.*string> in `video_id`, which must hold text"),
        ("video_id", [{"a": 1}] * 3, r"struct<a: int64> in `video_id`, which must hold text"),
        ("video_id", pa.nulls(3), "null in `video_id`, which must hold text"),
        ("frame_index", ["0", "1", "2"], "string in `frame_index`, which must hold whole numbers"),
        ("frame_index", [0.0, 1.0, 2.0], "double in `frame_index`, which must hold whole numbers"),
        ("frame_index", [{"a": 0}] * 3, "struct<a: int64> in `frame_index`, which must hold whole numbers"),
        ("frame_index", [[0]] * 3, r"list<.*int64> in `frame_index`, which must hold whole numbers"),
        ("frame_index", pa.nulls(3), "null in `frame_index`, which must hold whole numbers"),
        ("image", [1, 2, 3], "int64 in `image`, which must hold pictures"),
        ("image", ["a.png"] * 3, "string in `image`, which must hold pictures"),
        ("image", pa.nulls(3), "null in `image`, which must hold pictures"),
        ("image", [[[0, 1], [2, 3]]] * 3, r"list<.*int64>> in `image`, which must hold pictures"),
        ("iuv", [{"colour": 1}] * 3, "struct<colour: int64> in `iuv`, which must hold pictures"),
        ("iuv", [{"bytes": 1, "path": "a"}] * 3, "struct<bytes: int64, path: string> in `iuv`, which must hold pict"),
        ("iuv", None, r"lacks \['iuv'\]"),
    ],
)
def test_a_column_of_the_wrong_type_is_named_with_its_file(tmp_path, column, values, problem, streaming):
    write(tmp_path / "train" / "a.parquet")
    write(tmp_path / "train" / "b.parquet", **{column: values})
    match = f"^The data set must have rows with the columns video_id, .*, but 'train/b.parquet' in '.*' .*{problem}"
    with pytest.raises(ValueError, match=match) as refused:
        samples_of(tmp_path, streaming)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("column", ["video_id", "frame_index"])
def test_a_row_without_a_name_is_refused(tmp_path, column, streaming):
    write(tmp_path / "train" / "a.parquet", **{column: [*columns()[column][:2], None]})
    with pytest.raises(ValueError, match="`dataset` must have `video_id` and `frame_index` in each row, got .*None"):
        samples_of(tmp_path, streaming)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kept", [0, 5, -200])
def test_a_truncated_file_is_named(tmp_path, kept, streaming):
    write(tmp_path / "train" / "a.parquet")
    half = write(tmp_path / "train" / "b.parquet")
    half.write_bytes(half.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"but 'train/b.parquet' in '.*' is no whole parquet file \(.*\)") as refused:
        samples_of(tmp_path, streaming)
    assert "Give " not in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("streaming", "match"),
    [
        (False, "^The data set must have files that can be loaded, got '.*/train/b.parquet': "),
        (True, "^`stream` must have files that can be read, but its shard 2 of 2 cannot: "),
    ],
)
def test_a_file_with_a_damaged_middle_is_named(tmp_path, streaming, match):
    write(tmp_path / "train" / "a.parquet")
    damaged = write(tmp_path / "train" / "b.parquet")
    content = bytearray(damaged.read_bytes())
    content[4:60] = b"\xff" * 56  # the header of the first page
    damaged.write_bytes(content)
    with pytest.raises(ValueError, match=match):
        samples_of(tmp_path, streaming)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_file_without_rows_is_named(tmp_path, streaming):
    write(tmp_path / "a.parquet", **{name: pa.array(v).slice(0, 0) for name, v in columns().items()})
    with pytest.raises(ValueError, match="but 'a.parquet' in '.*' has no rows"):
        samples_of(tmp_path, streaming)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("other", ["records/train/a.json", "annotations/frames/train/a.parquet"])
def test_the_folder_above_the_rows_says_which_folder_has_them(tmp_path, other, streaming):
    write(tmp_path / "ubc" / "frames" / "train" / "a.parquet")
    path = tmp_path / "ubc" / other
    path.parent.mkdir(parents=True)
    write(path, image=None) if path.suffix == ".parquet" else path.write_text("{}")
    with pytest.raises(ValueError, match=f"but '{other}' in '.*/ubc' .* Give '.*/ubc/frames', whose files are right"):
        samples_of(tmp_path / "ubc", streaming)
    assert len(samples_of(tmp_path / "ubc" / "frames", streaming)) == 3


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_file_that_gets_no_split_is_named(tmp_path, split, streaming):
    for name in ("my-test-01", "b"):
        write(tmp_path / f"{name}.parquet")
    match = "must have a split for each file, .* where 'b.parquet' has none beside {'test': 'my-test-01.parquet'}"
    with pytest.raises(ValueError, match=match):
        load_prepared(str(tmp_path), split, streaming)
    for name in ("my-test-01", "b"):
        write(tmp_path / "sorted" / "train" / f"{name}.parquet")
    assert len(samples_of(tmp_path / "sorted", streaming)) == 6, "the folder decides, not the name"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["a [x]", "[!b]*", "link?"])
def test_a_folder_whose_name_reads_like_a_pattern_is_found(tmp_path, name, streaming, monkeypatch):
    folder = tmp_path / name
    if name == "link?":
        folder.symlink_to(tmp_path / "behind [it]", target_is_directory=True)
        (tmp_path / "behind [it]").mkdir()
    write(folder / "frames" / "train" / "walk [1].parquet")
    write(tmp_path / "a x" / "frames" / "train" / "other.parquet")
    assert len(samples_of(folder / "frames", streaming)) == 3
    monkeypatch.chdir(folder)
    assert len(samples_of("frames", streaming)) == 3
    (folder / "frames" / "train" / "walk [1].parquet").unlink()
    write(folder / "frames" / "train" / "a.parquet")
    assert {sample["video_id"] for sample in load_prepared("frames", "train", streaming)} == {"a"}


def test_what_lies_beside_a_folder_that_reads_like_a_pattern_is_not_listed(tmp_path, monkeypatch):
    write(tmp_path / "a [x]" / "frames" / "train" / "a.parquet")
    (tmp_path / "beside").mkdir()
    listed, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path=".": listed.append(str(path)) or scandir(path))
    assert len(load_prepared(str(tmp_path / "a [x]" / "frames"), "train")) == 3
    assert listed and not any(path.endswith("beside") for path in listed)


@pytest.mark.parametrize("streaming", [False, True])
def test_training_data_without_validation_says_how_to_make_it_or_go_without(tmp_path, streaming):
    write(tmp_path / "train.parquet")
    match = (
        "must have the split 'validation', got '.*' with {'train': 'train.parquet'}. To make it, prepare the clips"
        " anew with `prepare_dataset.py --validation_clips N`, or put some clips into"
    )
    with pytest.raises(ValueError, match=match) as refused:
        open_held_out(str(tmp_path), SHAPE, 0, PairSettings(), streaming, 1)
    assert "`validation/NAME.parquet`" in str(refused.value)
    assert str(refused.value).endswith("`--validation_steps none`.")
    write(tmp_path / "made" / "train" / "a.parquet")
    write(tmp_path / "made" / "validation" / "b.parquet")
    assert len(open_held_out(str(tmp_path / "made"), SHAPE, 0, PairSettings(), streaming, 1)) == 3


@pytest.fixture(scope="module")
def encoders(pipeline):
    return FrameEncoders(pipeline.vae, pipeline.image_encoder, pipeline.feature_extractor)


def pairs_of(folder, rows=slice(None)):
    data = load_prepared(str(folder), "train")
    return FramePairs(data.select(range(len(data))[rows]), SHAPE, 0, PairSettings(), keeps_poses=False)


def test_a_copied_or_touched_data_set_has_the_same_latents(tmp_path, encoders, monkeypatch):
    for name in ("a", "b"):
        write(tmp_path / "first" / "train" / f"{name}.parquet", **columns(seed=ord(name)))
    folder = precompute_latents(tmp_path / "latents", pairs_of(tmp_path / "first"), encoders)
    monkeypatch.setattr(FrameEncoders, "encode_pictures", lambda *_: pytest.fail("a picture was encoded again"))
    shutil.copytree(tmp_path / "first", tmp_path / "copy")
    assert precompute_latents(tmp_path / "latents", pairs_of(tmp_path / "copy"), encoders) == folder
    os.utime(tmp_path / "first" / "train" / "a.parquet", (1, 1))
    assert precompute_latents(tmp_path / "latents", pairs_of(tmp_path / "first"), encoders) == folder
    some, whole = (cache_facts(pairs_of(tmp_path / "copy", slice(stop)), encoders) for stop in (3, None))
    assert some["rows"] != whole["rows"], "a part of the rows is another data set"


def test_other_pictures_under_the_same_name_have_other_latents(tmp_path, encoders):
    path, stored = tmp_path / "data" / "train" / "a.parquet", []
    folders = []
    for seed in (5, 6):
        write(path, image=[png(get_dummy_image(seed)).ljust(9000, b"\0")] * 3)
        os.utime(path, (10**9, 10**9))
        stored.append((path.stat().st_size, path.stat().st_mtime_ns))
        pairs = pairs_of(tmp_path / "data")
        assert pairs.columns["image"][0]["image"].tobytes() == get_dummy_image(seed).tobytes()
        folders.append(precompute_latents(tmp_path / "latents", pairs, encoders))
    assert stored[0] == stored[1], "neither size nor time shows the change"
    assert folders[0] != folders[1]


def test_a_file_is_read_for_its_digest_once(tmp_path, monkeypatch):
    path, read, digest = write(tmp_path / "data" / "train.parquet"), [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: read.append(file.name) or digest(file, name))
    first, again = (load_prepared(str(tmp_path / "data"), "train")._fingerprint for _ in range(2))
    assert first == again and read == [str(path)]
    (record,) = (tmp_path / "cache" / "file_digests").iterdir()
    record.write_text("{")
    assert load_prepared(str(tmp_path / "data"), "train")._fingerprint == first and len(read) == 2
    assert [file.name for file in (tmp_path / "data").iterdir()] == ["train.parquet"], "nothing is written beside it"
