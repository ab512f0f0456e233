# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Frames per second of few steps by batch size, with the UNet as it is and compiled, and the share of the ceiling."""

import statistics
from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Any

import torch

from benchmarks.scripts import measure_in_turn
from benchmarks.speed.sampling_counts import count_models
from benchmarks.speed.sampling_procedures import ONE_BRANCH, build_trailing, run_pipeline, timed
from benchmarks.speed.training_procedures import measure_matmul
from pipeline_dreampose import DreamPosePipeline


STEPS = (4, 1)
# "reduce-overhead" records CUDA graphs, so that the CPU no longer starts each of the UNet's small kernels.
COMPILE_MODE = "reduce-overhead"


def measure_batch(pipe: DreamPosePipeline, batch_size: int, steps: int, repeats: int) -> dict[str, Any]:
    """Measure calls for one chunk of frames, from photo to frames, after two calls that warm up and compile."""
    device = pipe.device.type
    run = partial(run_pipeline, pipe, build_trailing(), batch_size, steps, batch_size, ONE_BRANCH)
    for _ in range(2):
        run()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = measure_in_turn({"call": lambda: timed(run, device)}, repeats)["call"]
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    return {
        "frames_a_second": batch_size / statistics.median(seconds),
        "seconds_a_call": seconds,
        "peak_bytes": peak,
    }


def measure_batches(pipe: DreamPosePipeline, size: str, batch_sizes: Sequence[int], repeats: int) -> dict[str, Any]:
    """Call [`measure_batch`] for all batch sizes and `STEPS`, on CUDA with a compiled UNet as well.

    A row adds the operations of UNet and decoder per second, as a share of the ceiling: the speed of large matrix
    products on this device.
    """
    if not batch_sizes:
        return {}
    on_cuda, counted, own = pipe.device.type == "cuda", count_models(size), pipe.unet
    ceiling = measure_matmul(pipe.device, own.dtype, *(() if on_cuda else (1024, 3)))
    rows = {}
    for is_compiled, steps, batch_size in product((False, True) if on_cuda else (False,), STEPS, batch_sizes):
        pipe.unet = torch.compile(own, mode=COMPILE_MODE, dynamic=False) if is_compiled else own
        row = measure_batch(pipe, batch_size, steps, repeats)
        flops = steps * counted["unet"] + counted["decoder"]
        row["share_of_ceiling"] = row["frames_a_second"] * flops / ceiling
        rows[f"{'compiled' if is_compiled else 'plain'}, {steps} steps, {batch_size}"] = row
    pipe.unet = own
    return {"ceiling_flops_a_second": ceiling, "rows": rows}
