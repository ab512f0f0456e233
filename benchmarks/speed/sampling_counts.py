# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Operations of a sampled frame, counted: those of each model, and how often a procedure runs it."""

from collections.abc import Callable, Mapping

import torch
from diffusers import AutoencoderTiny
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed.sampling_procedures import (
    ONE_BRANCH,
    SIZES,
    build_models,
    build_pipeline,
    build_trailing,
    run_pipeline,
    run_release,
)
from pipeline_dreampose import DreamPosePipeline


CHUNK = 8  # frames at once; two video lengths tell the cost of a frame from that of a video


def count_flops(call: Callable[[], object]) -> int:
    """Count the floating-point operations of the matrix products and convolutions in a call; a product and a sum are
    two."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def count_models(size: str) -> dict[str, int]:
    """Count the operations of each model on one sample, on the meta device. `tiny_` is [`AutoencoderTiny`]'s."""
    *_, height, width = SIZES[size]
    with torch.device("meta"):
        models, tiny = build_models(size), AutoencoderTiny()
        picture, latents = torch.empty(1, 3, height, width), torch.empty(1, 4, height // 8, width // 8)
        window = torch.empty(1, models["unet"].config.in_channels, *latents.shape[-2:])
        square, states = torch.empty(1, 3, 224, 224), torch.empty(1, 50, 768)
        return {
            "unet": count_flops(lambda: models["unet"](window, torch.tensor(999), states)),
            "image_encoder": count_flops(lambda: models["image_encoder"](square)),
            "adapter": count_flops(lambda: models["adapter"](states, latents)),
            "encoder": count_flops(lambda: models["vae"].encode(picture)),
            "decoder": count_flops(lambda: models["vae"].decode(latents)),
            "tiny_encoder": count_flops(lambda: tiny.encode(picture)),
            "tiny_decoder": count_flops(lambda: tiny.decode(latents)),
        }


def count_samples(pipe: DreamPosePipeline, run: Callable[[], object]) -> dict[str, int]:
    """Count the samples that each model takes during a run."""
    models = {"unet": pipe.unet, "image_encoder": pipe.image_encoder, "adapter": pipe.adapter}
    models |= {"encoder": pipe.vae.encoder, "decoder": pipe.vae.decoder}
    counts, hooks = dict.fromkeys(models, 0), []
    for name, model in models.items():

        def add(model, args, kwargs, name=name):
            counts[name] += len(next(iter((*args, *kwargs.values()))))

        hooks.append(model.register_forward_pre_hook(add, with_kwargs=True))
    run()
    for hook in hooks:
        hook.remove()
    return counts


def count_procedures(release_steps: int) -> dict[str, dict[str, dict[str, int | float]]]:
    """Count how many samples each model takes per frame, and beyond that per video, in each procedure."""
    pipe = build_pipeline("tiny", "cpu", torch.float32)
    pipe.unet.forward = lambda sample, *args, **kwargs: (sample[:, :4],)  # only its calls count
    own, steps = pipe.scheduler, pipe.config.default_num_inference_steps
    trailing = type(own).from_config(own.config, timestep_spacing="trailing")
    procedures = {
        "release": lambda n: run_release(pipe, n, release_steps),
        "pipeline_defaults": lambda n: run_pipeline(pipe, own, n, steps, CHUNK),
        "trailing_4": lambda n: run_pipeline(pipe, trailing, n, 4, CHUNK),
        "distilled_4": lambda n: run_pipeline(pipe, build_trailing(), n, 4, CHUNK, ONE_BRANCH),
        "distilled_1": lambda n: run_pipeline(pipe, build_trailing(), n, 1, CHUNK, ONE_BRANCH),
    }
    counted = {}
    for name, run in procedures.items():
        short, long = (count_samples(pipe, lambda n=n: run(n)) for n in (CHUNK, 2 * CHUNK))
        per_frame = {model: (long[model] - short[model]) / CHUNK for model in short}
        per_video = {model: short[model] - CHUNK * per_frame[model] for model in short}
        counted[name] = {"frame": per_frame, "video": per_video}
    return counted


def build_rows(flops: Mapping[str, int], procedures: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict:
    """Return samples and operations of each procedure, of the distilled ones with [`AutoencoderTiny`] as well."""
    with_tiny, rows = {**flops, "encoder": flops["tiny_encoder"], "decoder": flops["tiny_decoder"]}, {}
    for name, samples in procedures.items():
        variants = {name: flops} | ({f"{name}_autoencoder_tiny": with_tiny} if name.startswith("distilled") else {})
        for variant, costs in variants.items():
            totals = {unit: sum(n * costs[model] for model, n in counts.items()) for unit, counts in samples.items()}
            rows[variant] = {"samples": samples, "flops_a_frame": totals["frame"], "flops_a_video": totals["video"]}
    for row in rows.values():
        row["release_over_this"] = rows["release"]["flops_a_frame"] / row["flops_a_frame"]
    return rows
