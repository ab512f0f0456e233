# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Time to load a subject next to others, to switch to it, and to replace it.

The weights are random, and the LoRAs are those that training/finetune.py makes by default. The files are read from the
disk's cache.

    python -m benchmarks.subjects.loading --size full
"""

import argparse
import tempfile
from pathlib import Path

import torch

from benchmarks.scripts import count, machine_facts, package_versions, parse_benchmark, run_script
from benchmarks.speed.sampling_procedures import SIZES, build_pipeline, timed
from pipeline_dreampose import DreamPosePipeline
from training.engine.devices import check_device
from training.media.settings_file import write_json
from training.models.lora import attached_lora, build_lora_configs, collect_lora, write_subject_file
from training.options.command import CommandParser
from training.options.subject import LoraOptions


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    add = parser.add_argument_group("measurement").add_argument
    add("--size", choices=SIZES, default="full", help="size of the base; full is Stable Diffusion's")
    add("--num_subjects", type=count, default=4, help="number of loaded subjects, 2 or more")
    add("--device", default="cpu", help="device of the base: cpu, cuda, mps, ...")
    options = parse_benchmark(parser, argv, "benchmarks/subjects/loading_full.json", name="loading_{size}.json")
    if options.num_subjects < 2:
        raise ValueError(f"`num_subjects` must be 2 or more, got {options.num_subjects}.")
    return options


def write_subject(pipe: DreamPosePipeline, folder: Path, seed: int) -> int:
    """Write an untrained LoRA of all three parts and return the size of its file in bytes."""
    parts = {"unet": pipe.unet, "adapter": pipe.adapter, "vae": pipe.vae}
    with attached_lora(parts, build_lora_configs(**LoraOptions().config_arguments()), seed):
        layers = collect_lora(parts)
    return write_subject_file(folder, layers, {}).stat().st_size


def main(options: argparse.Namespace) -> dict:
    """Measure, print and write the report, and return it."""
    check_device(options.device)
    pipe = build_pipeline(options.size, options.device, torch.float32)
    names = [f"subject_{number}" for number in range(options.num_subjects)]
    with tempfile.TemporaryDirectory() as folder:
        places = {name: Path(folder) / name for name in names}
        sizes = [write_subject(pipe, place, seed) for seed, place in enumerate(places.values())]
        loads = [timed(lambda n=n: pipe.load_lora_weights(places[n], n), options.device) for n in names]
        switches = [timed(lambda n=n: pipe.set_adapters(n), options.device) for n in names]
        another = timed(lambda: pipe.load_lora_weights(places[names[0]], names[1], hotswap=True), options.device)
    report = {
        "settings": {"size": options.size, "rank": LoraOptions().rank, "device": options.device, "dtype": "float32"},
        "machine": machine_facts("processor", "cores")
        | {"gpu": torch.cuda.get_device_name() if torch.device(options.device).type == "cuda" else None},
        "versions": package_versions("torch", "diffusers", "peft"),
        "file_bytes": max(sizes),
        "seconds": {"load": loads, "set_adapters": switches, "hotswap": another},
    }
    print("load", *(f"{v:.2f}" for v in loads), "s; set_adapters", *(f"{v:.3f}" for v in switches), "s;")
    print(f"replaced (hotswap) in {another:.2f} s; {max(sizes) / 1e6:.1f} MB per file")
    write_json(options.output, report)
    return report


if __name__ == "__main__":
    run_script(main, parse_args)
