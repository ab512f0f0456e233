"""The latent cache: equal to direct encoding, resumable, memory-mapped, and refused for other data or models."""

import copy
import json
import os
import pickle
import re

import datasets
import pytest
import torch
from torch.utils.data import DataLoader

from pipeline_dreampose import DreamPosePipeline
from tests.tiny_components import get_dummy_components
from training.data import latent_cache
from training.data.frame_pairs import BadRow, FramePairs, LatentShape
from training.data.latent_cache import FrameEncoders, LatentCache, LatentFramePairs, cache_facts, precompute_latents
from training.data.pair_settings import PairSettings
from training.models.denoiser import Denoiser, StageOneLoss


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(latent_cache, "SHARD_ROWS", 10)  # 36 rows: four shards, the last of six


def encoders_of(pipeline, train_image_encoder=False):
    return FrameEncoders(pipeline.vae, pipeline.image_encoder, pipeline.feature_extractor, train_image_encoder)


def shards(folder):
    return sorted(path.name for path in folder.glob("*.safetensors"))


@pytest.mark.parametrize("train_image_encoder", [False, True])
@pytest.mark.parametrize("settings", [{}, {"reference_frames": "first", "fit": "crop"}])
def test_samples_equal_those_of_direct_encoding(dataset, pipeline, shape, tmp_path, settings, train_image_encoder):
    direct = FramePairs(dataset, shape, 1, PairSettings(**settings))
    folder = precompute_latents(tmp_path, direct, encoders_of(pipeline, train_image_encoder), batch_size=4)
    assert len(shards(folder)) == 4 and {path.name for path in folder.iterdir()} == {*shards(folder), "facts.json"}
    cached = LatentFramePairs(dataset, shape, 1, direct.settings, LatentCache(folder))
    assert direct.pose_memo is not None and cached.pose_memo is None, "the cache already holds the poses"
    assert FramePairs(dataset, shape, 1, direct.settings, keeps_poses=False).pose_memo is None
    Denoiser(pipeline.unet, pipeline.adapter, pipeline.image_encoder, train_image_encoder)
    loss = StageOneLoss(pipeline, None, shape)
    for position in (0, 17, 40):
        batch = loss.encode_batch({name: value[None] for name, value in direct[position].items()})
        sample = cached[position]
        assert ("clip_pixel_values" in sample) == train_image_encoder
        assert ("image_embeds" in sample) != train_image_encoder
        assert set(loss.null_reference) <= set(sample)
        for name, value in sample.items():
            # Latents and tokens are kept in fp16, whose step at 1 is 2^-10.
            torch.testing.assert_close(value, batch[name][0], rtol=2e-3, atol=2e-3, msg=name)


def test_a_killed_build_resumes_with_the_missing_shards(dataset, pipeline, shape, tmp_path, monkeypatch):
    pairs, encoders = FramePairs(dataset, shape, 0), encoders_of(pipeline)
    whole = precompute_latents(tmp_path / "whole", pairs, encoders)
    save_file, encoded = latent_cache.save_file, []

    def killed_while_writing(tensors, path):
        if len(encoded) == 2:
            path.write_bytes(b"half of it")
            raise KeyboardInterrupt
        encoded.append(path)
        save_file(tensors, path)

    monkeypatch.setattr(latent_cache, "save_file", killed_while_writing)
    with pytest.raises(KeyboardInterrupt):
        precompute_latents(tmp_path / "parts", pairs, encoders)
    parts = tmp_path / "parts" / whole.name
    assert shards(parts) == shards(whole)[:2]
    match = "`folder` must be a finished latent cache, but .* lacks .*shard-00002-of-00004"
    with pytest.raises(ValueError, match=match):
        LatentCache(parts)
    for leftover in parts.glob(".*.partial"):
        os.utime(leftover, (0, 0))  # long ago, so that no process can still be writing it

    def count(tensors, path):
        encoded.append(path)
        save_file(tensors, path)

    monkeypatch.setattr(latent_cache, "save_file", count)
    assert precompute_latents(tmp_path / "parts", pairs, encoders) == parts
    assert len(encoded) == 4, "the two complete ones were not encoded again"
    assert sorted(os.listdir(parts)) == sorted(os.listdir(whole)), "nothing remains of the half-written one"
    assert all((parts / name).read_bytes() == (whole / name).read_bytes() for name in shards(whole))
    precompute_latents(tmp_path / "parts", pairs, encoders)
    assert len(encoded) == 4


def test_two_trainings_that_start_together_make_one_cache(dataset, pipeline, shape, tmp_path, monkeypatch):
    """While one has written a shard under its partial name, the other makes the whole cache with the same process
    number, as on another machine."""
    pairs, encoders = FramePairs(dataset, shape, 0), encoders_of(pipeline)
    save_file = latent_cache.save_file

    def save_beside_another(tensors, path):
        save_file(tensors, path)
        monkeypatch.setattr(latent_cache, "save_file", save_file)
        precompute_latents(tmp_path, pairs, encoders)

    monkeypatch.setattr(latent_cache, "save_file", save_beside_another)
    folder = precompute_latents(tmp_path, pairs, encoders)
    assert {path.name for path in folder.iterdir()} == {*shards(folder), "facts.json"} and len(shards(folder)) == 4


def test_processes_share_the_shards(dataset, pipeline, shape, tmp_path):
    pairs, encoders = FramePairs(dataset, shape, 0), encoders_of(pipeline)
    alone = precompute_latents(tmp_path / "alone", pairs, encoders)
    shared = precompute_latents(tmp_path / "shared", pairs, encoders, process_index=1, num_processes=2)
    assert shards(shared) == shards(alone)[1::2]
    precompute_latents(tmp_path / "shared", pairs, encoders, process_index=0, num_processes=2)
    assert all((shared / name).read_bytes() == (alone / name).read_bytes() for name in shards(alone))


def test_building_holds_one_shard(dataset, pipeline, shape, tmp_path, monkeypatch):
    """When a shard is written, no tensor of an earlier one is alive."""
    import weakref

    alive, save_file = [], latent_cache.save_file

    def watch(tensors, path):
        assert not any(reference() is not None for reference in alive)
        alive.extend(weakref.ref(value) for value in tensors.values())
        save_file(tensors, path)

    monkeypatch.setattr(latent_cache, "save_file", watch)
    precompute_latents(tmp_path, FramePairs(dataset, shape, 0), encoders_of(pipeline))
    assert len(alive) >= 4 * 5


@pytest.mark.parametrize("size, expected", [((640, 512), [2, 2, 1]), ((320, 256), [5]), ((1280, 1280), [1] * 5)])
def test_the_pixels_of_a_batch_to_encode_are_bounded(dataset, pipeline, tmp_path, monkeypatch, size, expected):
    sizes, shape = [], LatentShape.of(pipeline.vae, *size)

    def encode(encoders, pixel_values):
        assert pixel_values.shape[2:] == size
        sizes.append(len(pixel_values))
        return {"mean": torch.zeros(len(pixel_values), 1)}

    monkeypatch.setattr(FrameEncoders, "encode_pictures", encode)
    precompute_latents(tmp_path, FramePairs(dataset.select(range(5)), shape, 0), encoders_of(pipeline))
    assert sizes == expected


def anonymous_bytes():
    """Return the memory of this process that is not mapped from files."""
    with open("/proc/self/status") as file:
        return 1024 * int(re.search(r"RssAnon:\s+(\d+) kB", file.read()).group(1))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="only Linux distinguishes mapped memory")
def test_reading_maps_the_files(tmp_path):
    """Reading a whole 64 MB shard allocates less than a tenth of that."""
    rows = 256
    facts = {"num_rows": rows, "shard_rows": rows, "scaling_factor": 1.0}
    tensors = {"mean": torch.ones(rows, 2**17, dtype=torch.float16), "std": torch.ones(rows, 2, dtype=torch.float16)}
    latent_cache.save_file(tensors, tmp_path / "shard-00000-of-00001.safetensors")
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    del tensors
    cache = LatentCache(tmp_path)
    cache.posterior(0)
    before = anonymous_bytes()
    assert sum(cache.posterior(row)[0].sum().item() for row in range(rows)) == rows * 2**17
    assert anonymous_bytes() - before < 6e6


def test_worker_processes_read_the_same(dataset, pipeline, shape, tmp_path):
    pairs = FramePairs(dataset, shape, 0)
    cache = LatentCache(precompute_latents(tmp_path, pairs, encoders_of(pipeline)))
    cached = LatentFramePairs(dataset, shape, 0, pairs.settings, cache)
    alone = [cached[position] for position in range(8)]
    for position, sample in zip(range(8), DataLoader(cached, batch_size=None, num_workers=2)):
        assert all(torch.equal(sample[name], value) for name, value in alone[position].items())
    assert len(pickle.dumps(cache)) < 4096, "another process maps the files itself"


def test_another_model_size_code_or_data_set_is_another_cache(dataset, pipeline, shape, tmp_path, monkeypatch):
    pairs, encoders = FramePairs(dataset, shape, 0), encoders_of(pipeline)
    folder = precompute_latents(tmp_path, pairs, encoders)
    assert precompute_latents(folder, pairs, encoders) == folder, "the folder of the cache itself is accepted"
    others = {
        "height": (FramePairs(dataset, LatentShape.of(pipeline.vae, 40, 64), 0), encoders),
        "fit": (FramePairs(dataset, shape, 0, PairSettings(fit="crop")), encoders),
        "reference_frames": (FramePairs(dataset, shape, 0, PairSettings(reference_frames="first")), encoders),
        "rows": (FramePairs(dataset.select(range(12)), shape, 0), encoders),
        "image_encoder": (pairs, encoders_of(pipeline, True)),
        "vae": (pairs, encoders_of(DreamPosePipeline(**get_dummy_components(seed=1)))),
    }
    for name, (other_pairs, other_encoders) in others.items():
        with pytest.raises(ValueError, match=f"`latent_cache_dir` must keep the settings of .*{name} .*, now "):
            precompute_latents(folder, other_pairs, other_encoders)
        facts = cache_facts(other_pairs, other_encoders)
        assert latent_cache.cache_folder(tmp_path, facts) != folder
    with monkeypatch.context() as patch:
        patch.setattr(latent_cache, "CODE_VERSION", latent_cache.CODE_VERSION + 1)
        with pytest.raises(ValueError, match="`latent_cache_dir` must keep .*code_version 1, now 2"):
            precompute_latents(folder, pairs, encoders)
    # Settings that change no encoding share the cache.
    same = FramePairs(dataset, shape, 5, PairSettings(max_reference_distance=2, noise_offset=0.1, pose_radius=1))
    assert latent_cache.cache_folder(tmp_path, cache_facts(same, encoders)) == folder


def test_random_crops_are_refused(dataset, pipeline, shape, tmp_path):
    settings = PairSettings(min_crop_scale=0.8)
    message = "`min_crop_scale` must be 1 with `latent_cache_dir`, since each crop has its own latents, got 0.8"
    with pytest.raises(ValueError, match=message):
        precompute_latents(tmp_path, FramePairs(dataset, shape, 0, settings), encoders_of(pipeline))
    with pytest.raises(ValueError, match=message):
        LatentFramePairs(dataset, shape, 0, settings, cache=None)


@pytest.fixture(scope="module")
def spoilt(dataset):
    """Two videos of six frames with a truncated picture, one of another size than its map, a picture instead of a map,
    and a truncated map."""
    undecoded = datasets.Image(decode=False)
    rows = list(dataset.cast_column("image", undecoded).cast_column("iuv", undecoded).select(range(12)))
    rows[1]["image"]["bytes"] = rows[1]["image"]["bytes"][:100]
    rows[3]["image"] = dataset[3]["image"].resize((32, 40))
    rows[5]["iuv"] = {"bytes": rows[5]["image"]["bytes"], "path": None}
    rows[6]["iuv"]["bytes"] = rows[6]["iuv"]["bytes"][:100]
    return datasets.Dataset.from_list(rows, features=dataset.features)


def test_flags_say_how_a_bad_row_can_still_be_used(spoilt, pipeline, shape, tmp_path):
    with pytest.raises(BadRow, match="got frame 1 of video '.*': its `image` cannot be read"):
        precompute_latents(tmp_path, FramePairs(spoilt, shape, 0), encoders_of(pipeline))
    settings = PairSettings(bad_rows="skip")
    pairs = FramePairs(spoilt, shape, 0, settings)
    cache = LatentCache(precompute_latents(tmp_path, pairs, encoders_of(pipeline), batch_size=4))
    bad = {name: [row for row in range(12) if not cache.flag(row, name)] for name in latent_cache.FLAGS}
    assert bad == {"has_picture": [1], "has_map": [5, 6], "is_target": [1, 3, 5, 6]}
    with pytest.raises(BadRow, match="got frame 1 of video '.*': it was bad when the latent cache was made"):
        LatentFramePairs(spoilt, shape, 0, PairSettings(), cache).read_reference(1)


@pytest.mark.parametrize("pose_radius", [0, 1])
@pytest.mark.parametrize("reference_frames", ["any", "first"])
def test_the_cache_skips_the_same_bad_rows(spoilt, pipeline, shape, tmp_path, reference_frames, pose_radius):
    settings = PairSettings(pose_radius, reference_frames, bad_rows="skip")
    direct = FramePairs(spoilt, shape, 0, settings)
    cache = LatentCache(precompute_latents(tmp_path, direct, encoders_of(pipeline)))
    cached = LatentFramePairs(spoilt, shape, 0, settings, cache)
    for row in range(len(spoilt)):
        assert is_bad(cached.read_target, row) == is_bad(direct.read_target, row), row
    for row in range(len(spoilt)) if reference_frames == "any" else (0, 6):
        assert is_bad(cached.read_reference, row) == is_bad(direct.read_reference, row), row
    num_skipped = 0
    for position in range(3 * len(spoilt)):
        expected, sample = direct[position], cached[position]
        assert sample["num_bad_rows"] == expected["num_bad_rows"], position
        torch.testing.assert_close(sample["pose_window"], expected["pose_window"], rtol=0, atol=1 / 255)
        num_skipped += expected["num_bad_rows"]
    assert num_skipped > 0


def is_bad(read, row):
    try:
        read(row)
    except BadRow:
        return True
    return False


def test_a_folder_without_a_cache_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`folder` must be a latent cache, got .* which has no facts.json"):
        LatentCache(tmp_path)


def test_encoders_in_another_precision_need_another_cache(pipeline):
    """A cache made in float32 does not serve encoders in half precision, which round their outputs."""
    exact = copy.deepcopy(pipeline.vae).half().float()
    others = (pipeline.image_encoder, pipeline.feature_extractor)
    in_float, in_half = (FrameEncoders(vae, *others).facts() for vae in (exact, copy.deepcopy(exact).half()))
    assert {name for name in in_float if in_float[name] != in_half[name]} == {"vae"}
