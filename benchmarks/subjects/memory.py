# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""GPU memory that a subject's fine-tuning needs, counted without a GPU or measured on one.

    python -m benchmarks.subjects.memory
    python -m benchmarks.subjects.memory --device cuda

Counting runs on the meta device, which allocates nothing, and covers every tensor of a step: parameters by dtype,
gradients, AdamW's moments, what autograd saves for the backward pass (each storage once, without parameters), and the
peak of live tensors in both passes, which includes temporary results of operations. Attention counts as the
memory-efficient kernel, and autocast follows CUDA's lists. Not counted are the CUDA context, workspaces within kernels
(cuDNN, cuBLAS), the allocator's gaps, and the moment of loading.

The phase "encoding" makes the cached crops, "denoiser" trains UNet and adapter, "decoder" trains the VAE's decoder.
"""

import argparse
import tempfile
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch

from benchmarks.scripts import count, package_versions, parse_benchmark, run_script
from benchmarks.speed.sampling_procedures import SIZES
from benchmarks.subjects.memory_counting import Setting, count_setting, measure_setting
from training.engine.devices import check_bitsandbytes
from training.media.settings_file import write_json
from training.options.command import CommandParser
from training.options.parsing import option_values
from training.options.subject import LoraOptions, SubjectOptions, SubjectTrainOptions


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    add = parser.add_argument_group("measurement").add_argument
    add("--size", choices=SIZES, default="full", help="size of the model; full is Stable Diffusion's")
    add("--device", choices=("meta", "cuda", "cpu"), default="meta", help="meta counts, cuda measures")
    add("--steps", type=count, default=3, help="optimizer steps to measure in each phase, on cuda or cpu")
    settings = build_settings()
    add("--settings", nargs="+", choices=settings, default=list(settings), help="settings to count; all by default")
    name = "memory_{device}.json"
    options = parse_benchmark(parser, argv, "benchmarks/subjects/memory.json", name=name)
    if options.device == "meta":
        parser.refuse(argv, ["steps"], "only with `--device cuda` or `--device cpu`")
    return options


def build_settings() -> dict[str, Setting]:
    """Return the default settings, variations that need more or less memory, and the smallest settings."""
    values = option_values(SubjectOptions(), SubjectTrainOptions(), LoraOptions())
    values["mixed_precision"] = values["mixed_precision"] or "no"
    default = Setting(**{field.name: values[field.name] for field in fields(Setting)})
    half = replace(default, mixed_precision="bf16")
    return {
        "default": default,
        "default, a batch of 4 at once": replace(default, train_batch_size=4, gradient_accumulation_steps=1),
        "default, activations kept": replace(default, gradient_checkpointing=False),
        "bf16": half,
        "bf16, activations kept": replace(half, gradient_checkpointing=False),
        "smallest": replace(half, use_8bit_adam=True, quantize_base=True, gradient_accumulation_steps=1),
    }


def main(options: argparse.Namespace) -> dict:
    """Count or measure, print and write the report, and return it."""
    on_cuda, report = options.device == "cuda", {}
    if on_cuda and not torch.cuda.is_available():
        raise ValueError("`device` must be meta or cpu where there is no CUDA, got cuda.")
    if options.device != "meta" and any(build_settings()[name].quantize_base for name in options.settings):
        check_bitsandbytes("quantize_base", options.device)
    for name in options.settings:
        setting = build_settings()[name]
        report[name] = {"setting": asdict(setting)}
        if options.device == "meta":
            report[name]["bytes"] = count_setting(options.size, setting)
            totals = {phase: figures["total"] for phase, figures in report[name]["bytes"].items()}
        else:
            with tempfile.TemporaryDirectory() as folder:
                totals = measure_setting(options.size, setting, options.device, options.steps, Path(folder))
            report[name]["max_memory_allocated"] = totals
        shown = (f"{phase} {total / 1e9:.2f} GB" for phase, total in totals.items() if total is not None)
        print(f"{name:30}", *shown, flush=True)
    kind = "counted on the meta device" if options.device == "meta" else f"measured on {options.device}"
    facts = {"kind": kind, "size": options.size, "device": torch.cuda.get_device_name() if on_cuda else None}
    write_json(
        options.output, facts | {"versions": package_versions("torch", "diffusers", "peft"), "settings": report}
    )
    print(f"Wrote {options.output}.")
    return report


if __name__ == "__main__":
    run_script(main, parse_args)
