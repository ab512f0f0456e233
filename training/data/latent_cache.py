# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Latent cache: outputs of stage 1's frozen encoders, computed once and stored in shards on disk.

At full size the VAE's encodings are half the cost of a training step (two of 1.41 TFLOP, and a UNet pass of 1.04).
Neither building a cache nor training with it holds more than one shard in memory. Rows are recognised by the data
set's fingerprint, which for a folder of parquet files is a digest of their bytes, see [`load_prepared`].

FOLDER/facts.json                          everything that the encodings depend on
FOLDER/shard-00000-of-00012.safetensors    encodings of 1024 rows; the file appears when it is complete

Legend as in `frame_pairs`; `n` rows of a shard, `m` of them that may be a reference, `T D` number and width of tokens,
`S` side of the image encoder's square.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm.auto import tqdm
from transformers import CLIPImageProcessor, CLIPVisionModel

from pipeline_dreampose import clip_pixel_values, encode_pixels, pose_window
from training.data.frame_pairs import BadRow, FramePairs, LatentShape
from training.data.pair_settings import PairSettings
from training.media.settings_file import has_settings, partial_path, read_json, remove_leftovers, write_json


FACTS_NAME = "facts.json"
SHARD_ROWS = 1024
# Version of the code that fits pictures and maps for the encoders. Raise it when its results change, so that existing
# caches are not used any longer.
CODE_VERSION = 1
# Whether a row can be a reference, be in a target's window, and be a target (its picture has the size of its map).
FLAGS = ("has_picture", "has_map", "is_target")
_DIGEST_LENGTH = 16


def pictures_at_a_time(height: int, width: int) -> int:
    """Return the number of pictures to encode at a time: at least one, and together at most two pictures of 512x640.

    The VAE needs 0.8 GB for a picture of 512x640 in float32.
    """
    return max(1, 2 * 512 * 640 // (height * width))


def _digest_weights(module: nn.Module) -> str:
    """Return a hexadecimal digest of a module's weights and their data types."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        values = tensor.detach().float().cpu().contiguous().numpy()
        digest.update(f"{name} {tensor.dtype} ".encode() + values.tobytes())
    return digest.hexdigest()[:_DIGEST_LENGTH]


@dataclass(frozen=True)
class FrameEncoders:
    """The models whose outputs a cache keeps; if the image encoder trains, the cache keeps its input instead."""

    vae: AutoencoderKL
    image_encoder: CLIPVisionModel
    feature_extractor: CLIPImageProcessor
    train_image_encoder: bool = False

    def facts(self) -> dict[str, Any]:
        """Return everything that the models' outputs depend on, for JSON."""
        return {
            "vae": _digest_weights(self.vae),
            "scaling_factor": self.vae.config.scaling_factor,
            "image_encoder": None if self.train_image_encoder else _digest_weights(self.image_encoder),
            "image_size": self.image_encoder.config.image_size,
            "image_mean": list(self.feature_extractor.image_mean),
            "image_std": list(self.feature_extractor.image_std),
            "do_center_crop": self.feature_extractor.do_center_crop,
        }

    @torch.no_grad()
    def encode_pictures(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the unscaled mean and standard deviation of the posterior of [B,3,H,W], in fp16 on the CPU."""
        posterior = encode_pixels(pixel_values.to(self.vae.device), self.vae)
        return {"mean": posterior.mean.half().cpu(), "std": posterior.std.half().cpu()}

    @torch.no_grad()
    def encode_references(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the image encoder's tokens of [B,3,H,W], in fp16 on the CPU, or its input in 8 bit if it trains."""
        squares = clip_pixel_values(pixel_values, self.image_encoder.config.image_size, self.feature_extractor)
        if self.train_image_encoder:
            mean, std = (_per_channel(getattr(self.feature_extractor, name)) for name in ("image_mean", "image_std"))
            return {"clip_squares": (squares * std + mean).mul(255).round().byte()}
        encoder = self.image_encoder
        return {"image_embeds": encoder(squares.to(encoder.device, encoder.dtype)).last_hidden_state.half().cpu()}


def cache_facts(pairs: FramePairs, encoders: FrameEncoders) -> dict[str, Any]:
    """Return everything that a cache depends on, for JSON: rows, sizes, how pictures are fitted, the models.

    Raises:
        ValueError: If samples show random crops, which no cache can hold.
    """
    pairs.settings.check_cacheable()
    chosen = {name: getattr(pairs.settings, name) for name in ("reference_frames", "fit")}
    rows = {"rows": pairs.dataset._fingerprint, "num_rows": len(pairs), "shard_rows": SHARD_ROWS, "flags": list(FLAGS)}
    rows["code_version"] = CODE_VERSION
    return rows | asdict(pairs.shape) | chosen | encoders.facts()


def cache_folder(latent_cache_dir: str | os.PathLike, facts: dict[str, Any]) -> Path:
    """Return `latent_cache_dir` itself if it is a cache, or else a folder in it named by a digest of the facts.

    Raises:
        ValueError: If it is a cache of other rows, sizes or models; the error names the facts that differ.
    """
    if has_settings(Path(latent_cache_dir) / FACTS_NAME, facts, "latent_cache_dir"):
        return Path(latent_cache_dir)
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return Path(latent_cache_dir) / f"latents-{digest[:_DIGEST_LENGTH]}"


def precompute_latents(
    latent_cache_dir: str | os.PathLike,
    pairs: FramePairs,
    encoders: FrameEncoders,
    batch_size: int | None = None,
    process_index: int = 0,
    num_processes: int = 1,
) -> Path:
    """Encode every row once, or after an interruption only the missing shards, and return the cache's folder.

    `latent_cache_dir` is a folder of caches or the folder of this one. The model encodes `batch_size` pictures at a
    time, by default [`pictures_at_a_time`]. The processes divide the shards among them; the cache is complete when all
    have finished.

    Raises:
        ValueError: If `latent_cache_dir` is another cache, samples show random crops, or a row is bad and not skipped.
    """
    if batch_size is None:
        batch_size = pictures_at_a_time(pairs.shape.pixel_height, pairs.shape.pixel_width)
    facts = cache_facts(pairs, encoders)
    folder = cache_folder(latent_cache_dir, facts)
    write_json(folder / FACTS_NAME, facts)
    remove_leftovers(folder)
    shards = [shard for shard in _shards(folder, facts)[process_index::num_processes] if not shard[0].exists()]
    num_rows = sum(len(rows) for _, rows in shards)
    with tqdm(total=num_rows, desc="Latent cache", unit="frame", disable=process_index > 0 or not shards) as progress:
        for path, rows in shards:
            tensors = _encode_rows(pairs, encoders, rows, batch_size, progress)
            partial = partial_path(path)  # another run may be building the same cache
            save_file(tensors, partial)
            os.replace(partial, path)
    return folder


def _shards(folder: Path, facts: dict[str, Any]) -> list[tuple[Path, range]]:
    """Return the file and the rows of each shard."""
    starts = range(0, facts["num_rows"], facts["shard_rows"])
    files = (folder / f"shard-{number:05d}-of-{len(starts):05d}.safetensors" for number in range(len(starts)))
    rows = (range(start, min(start + facts["shard_rows"], facts["num_rows"])) for start in starts)
    return list(zip(files, rows))


def _encode_rows(
    pairs: FramePairs, encoders: FrameEncoders, rows: range, batch_size: int, progress: tqdm
) -> dict[str, torch.Tensor]:
    """Encode the rows of one shard.

    Returns `mean` and `std` [n,C,h,w], `pose_maps` [n,2,h,w], each of `FLAGS` [n], `image_embeds` [m,T,D] or
    `clip_squares` [m,3,S,S], and `reference_index` [n], a row's index in one of these two, or -1.
    """
    may_refer = None
    if pairs.settings.reference_frames == "first":
        may_refer = {video_rows[0] for video_rows in pairs.videos.values()}
    is_reference, batches = [], []
    for start in range(rows.start, rows.stop, batch_size):
        batch_rows = range(start, min(start + batch_size, rows.stop))
        pixel_values, pose_maps, flags = _read_rows(pairs, batch_rows)
        batch = encoders.encode_pictures(pixel_values) | flags
        batch["pose_maps"] = pose_maps.mul(255).round().byte()
        chosen = [may_refer is None or row in may_refer for row in batch_rows]
        is_reference += chosen
        if any(chosen):
            batch |= encoders.encode_references(pixel_values[chosen])
        batches.append(batch)
        progress.update(len(batch_rows))
    names = dict.fromkeys(name for batch in batches for name in batch)
    tensors = {name: torch.cat([batch[name] for batch in batches if name in batch]) for name in names}
    references = torch.tensor(is_reference)
    tensors["reference_index"] = torch.where(references, references.cumsum(0) - 1, -1)
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _read_rows(pairs: FramePairs, rows: Iterable[int]) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Read pictures, pose maps and `FLAGS`; if bad rows are skipped, zeros replace what cannot be read."""
    frames, flags = [], []
    blanks = torch.zeros(3, *pairs.shape.canvas[::-1]), torch.zeros(2, pairs.shape.height, pairs.shape.width)
    for row in rows:
        try:
            pixel_values, pose_map = pairs.read_frame(row)
            is_target = True
        except BadRow:
            if pairs.settings.bad_rows == "raise":
                raise
            pixel_values = _unless_bad(pairs.read_pixel_values, row)
            pose_map = _unless_bad(pairs.read_pose_map, row)
            is_target = False
        flags.append((pixel_values is not None, pose_map is not None, is_target))
        frames.append([blank if read is None else read for read, blank in zip((pixel_values, pose_map), blanks)])
    pixel_values, pose_maps = (torch.stack(tensors) for tensors in zip(*frames))
    return pixel_values, pose_maps, dict(zip(FLAGS, torch.tensor(flags).unbind(1)))


def _unless_bad(read: Callable[[int], torch.Tensor], row: int) -> torch.Tensor | None:
    try:
        return read(row)
    except BadRow:
        return None


def _per_channel(values: list[float]) -> torch.Tensor:
    return torch.tensor(values)[:, None, None]


class LatentCache:
    """Reader of a cache folder that maps its files into memory; processes share them.

    Raises:
        ValueError: If `folder` is not a cache, or an unfinished one.
    """

    def __init__(self, folder: str | os.PathLike):
        path = Path(folder) / FACTS_NAME
        if not path.is_file():
            raise ValueError(f"`folder` must be a latent cache, got {str(folder)!r}, which has no {FACTS_NAME}.")
        self.facts = read_json(path, "folder", "num_rows", "shard_rows")
        self.files = [file for file, _ in _shards(Path(folder), self.facts)]
        missing = [file.name for file in self.files if not file.exists()]
        if missing:
            raise ValueError(f"`folder` must be a finished latent cache, but {str(folder)!r} lacks {missing}.")
        self._shards = {}

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the mapped files; another process maps them itself."""
        return vars(self) | {"_shards": {}}

    def flag(self, row: int, name: str) -> bool:
        """Return one of a row's `FLAGS`."""
        return bool(self._get(row, name))

    def posterior(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation of a row's latents, [C,h,w] each, unscaled."""
        return self._get(row, "mean").float(), self._get(row, "std").float()

    def pose_map(self, row: int) -> torch.Tensor:
        """Return the pose map of a row at latent size, [2,h,w] in [0,1], stored in 8 bit like IUV."""
        return self._get(row, "pose_maps").float() / 255

    def reference(self, row: int) -> dict[str, torch.Tensor]:
        """Return the encodings of a row as a reference.

        These are scaled `image_latents` [C,h,w], and `image_embeds` [T,D] or, if the image encoder trains, its input
        `clip_pixel_values` [3,S,S].
        """
        latents = {"image_latents": self._get(row, "mean").float() * self.facts["scaling_factor"]}
        place = int(self._get(row, "reference_index"))
        shard = self._shard(row)
        if "image_embeds" in shard:
            return latents | {"image_embeds": shard["image_embeds"][place].float()}
        mean, std = (_per_channel(self.facts[name]) for name in ("image_mean", "image_std"))
        return latents | {"clip_pixel_values": (shard["clip_squares"][place].float() / 255 - mean) / std}

    def _shard(self, row: int) -> dict[str, torch.Tensor]:
        number = row // self.facts["shard_rows"]
        if number not in self._shards:
            self._shards[number] = load_file(self.files[number])
        return self._shards[number]

    def _get(self, row: int, name: str) -> torch.Tensor:
        return self._shard(row)[name][row % self.facts["shard_rows"]]


class LatentFramePairs(FramePairs):
    """The samples of [`FramePairs`] from a latent cache of its data set; training decodes and encodes no picture.

    Instead of pictures, items hold the target's `target_mean` and `target_std` [C,h,w] (unscaled posterior), and the
    reference's `image_latents` [C,h,w] (scaled mean) and `image_embeds` [T,D] or `clip_pixel_values` [3,S,S].

    Raises:
        ValueError: If samples show random crops.
    """

    def __init__(self, dataset, shape: LatentShape, seed: int, settings: PairSettings, cache: LatentCache):
        settings.check_cacheable()
        super().__init__(dataset, shape, seed, settings, keeps_poses=False)  # the cache holds the poses
        self.cache = cache

    def read_reference(self, row: int) -> dict[str, torch.Tensor]:
        """Return the reference's scaled latents and the image encoder's tokens or input."""
        self._check(row, "has_picture")
        return self.cache.reference(row)

    def read_target(self, row: int, crop: list[float] | None = None) -> dict[str, torch.Tensor]:
        """Return the target's posterior and pose window."""
        self._check(row, "is_target")
        rows, centre = self.window_rows(row)
        for window_row in rows:
            self._check(window_row, "has_map")
        mean, std = self.cache.posterior(row)
        window = pose_window(torch.stack([self.cache.pose_map(r) for r in rows]), centre, self.settings.pose_radius)
        return {"target_mean": mean, "target_std": std, "pose_window": window}

    def _check(self, row: int, flag: str) -> None:
        if not self.cache.flag(row, flag):
            raise self.bad_row(row, "it was bad when the latent cache was made")
