# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""How long a subject takes to be loaded on a base, beside others, to be switched to, and to take another's place.

    python -m benchmarks.subjects.loading --size full

Random weights, and LoRAs as training/finetune.py makes them by default; the files are read from the disk's cache.
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import diffusers
import peft
import torch

from benchmarks.speed.sampling_procedures import SIZES, build_pipeline
from training.media.settings_file import write_json
from training.models.lora import attached_lora, build_lora_configs, collect_lora, write_subject_file
from training.options.subject import LoraOptions


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--num_subjects", type=int, default=4, help="loaded one beside the other, two or more")
    parser.add_argument("--device", default="cpu", help="of the base")
    parser.add_argument("--output", type=Path, help="JSON, by default beside this script")
    options = parser.parse_args(argv)
    if options.num_subjects < 2:
        raise ValueError(f"`num_subjects` must be 2 or more, got {options.num_subjects}.")
    return options


def write_subject(pipe: diffusers.DiffusionPipeline, folder: Path, seed: int) -> int:
    """Write a LoRA of all three parts, as it is before its training, and return the bytes of its file."""
    parts = {"unet": pipe.unet, "adapter": pipe.adapter, "vae": pipe.vae}
    with attached_lora(parts, build_lora_configs(**LoraOptions().config_arguments()), seed):
        layers = collect_lora(parts)
    return write_subject_file(folder, layers, {}).stat().st_size


def seconds(function: Callable[[], None], device: str) -> float:
    """How long a call takes, what it left to the GPU included."""
    start = time.perf_counter()
    function()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main(options: argparse.Namespace) -> dict:
    """Measure, print and write the report, which is returned."""
    pipe = build_pipeline(options.size, options.device, torch.float32)
    names = [f"subject_{number}" for number in range(options.num_subjects)]
    with tempfile.TemporaryDirectory() as folder:
        places = {name: Path(folder) / name for name in names}
        sizes = [write_subject(pipe, place, seed) for seed, place in enumerate(places.values())]
        loads = [seconds(lambda n=n: pipe.load_lora_weights(places[n], n), options.device) for n in names]
        switches = [seconds(lambda n=n: pipe.set_adapters(n), options.device) for n in names]
        another = seconds(lambda: pipe.load_lora_weights(places[names[0]], names[1], hotswap=True), options.device)
    on_cuda = torch.device(options.device).type == "cuda"
    report = {
        "settings": {"size": options.size, "rank": LoraOptions().rank, "device": options.device, "dtype": "float32"},
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if on_cuda else None,
        },
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__, "peft": peft.__version__},
        "file_bytes": max(sizes),
        "seconds": {"load": loads, "set_adapters": switches, "hotswap": another},
    }
    print(
        "load", *(f"{value:.2f}" for value in loads), "s; set_adapters", *(f"{value:.3f}" for value in switches), "s;"
    )
    print(f"another in its place (hotswap) {another:.2f} s; {max(sizes) / 1e6:.1f} MB a file")
    write_json(options.output or Path(__file__).with_name(f"loading_{options.size}.json"), report)
    return report


if __name__ == "__main__":
    try:
        main(parse_args())
    except ValueError as error:
        raise SystemExit(f"subject_loading.py: error: {error}") from None
