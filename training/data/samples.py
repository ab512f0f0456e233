# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""The samples of a stage-1 run: mapped, from a latent cache, or streamed."""

from accelerate import Accelerator

from pipeline_dreampose import DreamPosePipeline
from training.data.frame_pairs import FramePairs, LatentShape
from training.data.frame_stream import EndlessFrameStream, FrameStream, take_videos
from training.data.latent_cache import FrameEncoders, LatentCache, LatentFramePairs, precompute_latents
from training.data.pair_settings import PairSettings
from training.data.prepared import load_prepared


def open_samples(
    name: str, shape: LatentShape, seed: int, settings: PairSettings, keeps_poses: bool = True
) -> FramePairs:
    """The training split, read and encoded as samples are asked for; arguments are those of `FramePairs`."""
    return FramePairs(load_prepared(name, "train"), shape, seed, settings, keeps_poses)


def open_stream(
    accelerator: Accelerator, name: str, shape: LatentShape, seed: int, settings: PairSettings
) -> EndlessFrameStream:
    """This process's share of the training split, streamed; arguments are those of `FrameStream`."""
    place = {"process_index": accelerator.process_index, "num_processes": accelerator.num_processes}
    return EndlessFrameStream(FrameStream(load_prepared(name, "train", True), shape, seed, settings, **place))


def open_held_out(
    name: str, shape: LatentShape, seed: int, settings: PairSettings, streaming: bool, num_videos: int
) -> FramePairs:
    """The validation split; of a stream, the first `num_videos` videos."""
    rows = load_prepared(name, "validation", streaming)
    return FramePairs(take_videos(rows, num_videos) if streaming else rows, shape, seed, settings, keeps_poses=False)


def cache_samples(
    accelerator: Accelerator, pipeline: DreamPosePipeline, samples: FramePairs, folder: str, train_image_encoder: bool
) -> LatentFramePairs:
    """The same samples from a latent cache, of which the processes make what is missing.

    Args:
        accelerator (`Accelerator`): Its processes share the work and wait for each other.
        pipeline (`DreamPosePipeline`): Has the encoders.
        samples (`FramePairs`): What is encoded.
        folder (`str`): Of caches.
        train_image_encoder (`bool`): Whether the image encoder's input is kept, since its output changes.
    """
    encoders = FrameEncoders(pipeline.vae, pipeline.image_encoder, pipeline.feature_extractor, train_image_encoder)
    place = {"process_index": accelerator.process_index, "num_processes": accelerator.num_processes}
    cache = precompute_latents(folder, samples, encoders, **place)
    accelerator.wait_for_everyone()
    return LatentFramePairs(samples.dataset, samples.shape, samples.seed, samples.settings, LatentCache(cache))
