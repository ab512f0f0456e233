# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""One clip as prepared rows, with a latent cache, and in the release's layout; their loaders, speed and memory."""

import multiprocessing
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPVisionConfig, CLIPVisionModel

from benchmarks.speed.sampling_procedures import build_vae
from pipeline_dreampose import iuv_to_pose_map
from training.data.clip_rows import FEATURES, encode_frame
from training.data.frame_pairs import FramePairs, LatentShape
from training.data.latent_cache import FrameEncoders, LatentCache, LatentFramePairs, precompute_latents
from training.data.pair_settings import PairSettings
from training.media.pictures import iterate_pictures
from training.models.base_pipeline import build_feature_extractor


def read_frames(frames: Path, iuv: Path, width: int, height: int) -> list[tuple[Image.Image, Image.Image]]:
    """Read the pictures of two folders and scale them to one size: photos by Lanczos, IUV by nearest neighbour."""
    filters = {frames: Image.Resampling.LANCZOS, iuv: Image.Resampling.NEAREST}
    columns = [[p.resize((width, height), f) for p in iterate_pictures(folder)] for folder, f in filters.items()]
    return list(zip(*columns, strict=True))


def write_rows(clip: list[tuple[Image.Image, Image.Image]], folder: Path, num_videos: int = 1) -> dict[str, int]:
    """Write the clip `num_videos` times as prepared parquet rows. Return the mean bytes of a picture and of a map."""
    coded = [encode_frame(image, iuv) for image, iuv in clip]
    folder.mkdir(parents=True)
    for video in range(num_videos):
        rows = [
            {"video_id": f"video{video}", "frame_index": index, "split": "train", **files}
            for index, files in enumerate(coded)
        ]
        datasets.Dataset.from_list(rows, features=FEATURES).to_parquet(str(folder / f"{video:05d}.parquet"))
    image, iuv = (sum(len(files[name]["bytes"]) for files in coded) // len(coded) for name in ("image", "iuv"))
    return {"image": image, "map": iuv}


def load_rows(folder: Path) -> datasets.Dataset:
    """Load the rows of [`write_rows`] as a memory-mapped data set."""
    cache_dir = str(folder.with_name(f"{folder.name}_arrow"))
    return datasets.load_dataset("parquet", data_dir=str(folder), split="train", cache_dir=cache_dir)


def open_pairs(folder: Path, height: int, width: int, cached: bool) -> FramePairs:
    """Open samples of the rows in `folder`, from a latent cache next to it if `cached`.

    The tiny encoders of the cache give the shapes of Stable Diffusion's VAE and CLIP ViT-B/32.
    """
    vae = build_vae((4,) * 4, layers_per_block=1, norm_num_groups=2, mid_block_add_attention=False)
    config = CLIPVisionConfig(hidden_size=768, intermediate_size=8, num_hidden_layers=1, image_size=224, patch_size=32)
    encoders = FrameEncoders(vae, CLIPVisionModel(config), build_feature_extractor(224))
    shape = LatentShape.of(vae, height, width)
    pairs = FramePairs(load_rows(folder), shape, 0, PairSettings())
    if not cached:
        return pairs
    caches = folder.with_name(f"{folder.name}_latents")
    cache = next(caches.iterdir()) if caches.exists() else precompute_latents(caches, pairs, encoders)
    return LatentFramePairs(pairs.dataset, shape, 0, pairs.settings, LatentCache(cache))


def write_release_layout(clip: list[tuple[Image.Image, Image.Image]], folder: Path) -> dict[str, int]:
    """Write a PNG and a float64 map per frame, as the release does. Return the mean bytes of each."""
    folder.mkdir(parents=True)
    for index, (image, iuv) in enumerate(clip):
        image.save(folder / f"frame_{index}.png")
        np.save(folder / f"frame_{index}_densepose.npy", iuv_to_pose_map(iuv).double().numpy())
    total = {suffix: sum(p.stat().st_size for p in folder.glob(f"*.{suffix}")) for suffix in ("png", "npy")}
    return {"image": total["png"] // len(clip), "map": total["npy"] // len(clip)}


class ReleaseSamples(Dataset):
    """The release's loader (johannakarras/DreamPose, datasets/dreampose_dataset.py at 5bf30b7), with real neighbours.

    For each sample it reads two PNGs and five maps, resizes the maps bilinearly and normalises them.
    """

    def __init__(self, folder: Path, height: int, width: int):
        self.folder, self.size = folder, (height, width)
        self.length = len(list(folder.glob("*.npy")))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        target = index * 7919 % self.length
        window = [min(max(target + offset, 0), self.length - 1) for offset in range(-2, 3)]
        return {
            "frame_i": self.read_image(index * 104729 % self.length),
            "frame_j": self.read_image(target),
            "pose_j": torch.cat([self.read_map(frame) for frame in window]),
        }

    def read_image(self, index: int) -> torch.Tensor:
        """Return a frame, `[3,H,W]` in `[-1, 1]`."""
        image = Image.open(self.folder / f"frame_{index}.png").convert("RGB")
        image = image.resize(self.size[::-1], Image.Resampling.BILINEAR)
        return (torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255) - 0.5) / 0.5

    def read_map(self, index: int) -> torch.Tensor:
        """Return a pose map, `[2,H,W]` in `[-1, 1]`."""
        pose = torch.from_numpy(np.load(self.folder / f"frame_{index}_densepose.npy").astype("float32"))
        return (F.interpolate(pose[None], self.size, mode="bilinear")[0] - 0.5) / 0.5


def samples_per_second(samples: Dataset, num_samples: int, num_workers: int, batch_size: int = 4) -> float:
    """Measure the samples per second of a loader with worker processes, from its second batch to its last."""
    loading = {"sampler": range(num_samples), "num_workers": num_workers, "drop_last": True}
    batches = iter(DataLoader(samples, batch_size, **loading))
    next(batches)
    start = time.perf_counter()
    count = sum(len(next(iter(batch.values()))) for batch in batches)
    return count / (time.perf_counter() - start)


def anonymous_bytes() -> int:
    """Return the memory of this process that is not mapped from files."""
    return 1024 * int(re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text()).group(1))


def _growth(open_samples: Callable[[], Dataset], num_samples: int) -> int:
    before, samples = anonymous_bytes(), open_samples()
    peak = 0
    for position in range(num_samples):
        samples[position]
        peak = max(peak, anonymous_bytes())
    return peak - before


def peak_growth(open_samples: Callable[[], Dataset], num_samples: int) -> int:
    """Measure the peak memory in bytes that a fresh process needs to open a data set and to read samples of it.

    Memory that is mapped from files does not count, since the system takes it back when it needs to.
    """
    # A fork of this process would reuse the memory that was freed here, and hide some growth.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_growth, open_samples, num_samples).result()
