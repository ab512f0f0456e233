# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Frames per second of a saved model on the CPU, from poses in memory to 8-bit frames: 15 guided steps, its stored
default, one step of a distilled model, and the floor of one step.

    python -m benchmarks.speed.realtime --model model_card/tiny

The floor is UNet and VAE decoder alone, on ready tensors in the same batches. All run in turn, so that a busy machine
slows them alike, but figures of frames per second need an idle one.
"""

import argparse
import statistics

from benchmarks.claims.clip_sampling import load_model_and_clips
from benchmarks.scripts import count, machine_facts, package_versions, parse_benchmark, run_script
from benchmarks.speed.realtime_procedures import (
    FAST,
    build_calls,
    measure_calls,
    measure_compiled,
    measure_first_frame,
    measure_parts,
    measure_quality,
)
from training.media.animation import model_digest
from training.media.settings_file import write_json
from training.options.clips import add_clip_options
from training.options.command import CommandParser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    add = parser.add_argument_group("measurement").add_argument
    add("--model", default="model_card/tiny", help=f"pipeline folder; the LoRA in its folder {FAST} is fused, if any")
    add("--num_frames", type=count, default=64, help="frames of the video; 15 guided steps get at most 16")
    add(
        "--chunk_sizes",
        type=count,
        nargs="+",
        default=[8, 16, 64],
        help="frames at once; the first is that of a stream",
    )
    add("--repeats", type=count, default=5, help="rounds; each measures all once, and the median counts")
    add("--compile_limit", type=count, default=300, help="seconds after which the measurement of torch.compile stops")
    add_clip_options(parser, split="test", num_clips=8, frames_per_clip=4)
    return parse_benchmark(parser, argv, "benchmarks/speed/realtime.json")


def compare(rates: dict[str, float]) -> dict[str, float]:
    """Return how many times as fast as 15 guided steps the others are, and the time of one step above its floor."""
    others = [name for name in rates if name != "guided" and not name.startswith("floor")]
    speed = {f"{name} / guided": rates[name] / rates["guided"] for name in others}
    floors = {name: rates[name.replace("one step", "floor")] for name in rates if name.startswith("one step")}
    return speed | {f"{name}, time above the floor": floor / rates[name] - 1 for name, floor in floors.items()}


def main(options: argparse.Namespace) -> dict:
    """Measure, print and write the report, and return it."""
    options.device, options.num_consecutive = "cpu", 0
    pipe, clips = load_model_and_clips(options)
    machine = machine_facts("processor", "cores", "load", "threads") | package_versions("torch", "diffusers")
    video = options.model, options.num_frames, options.chunk_sizes[0]
    rounds = measure_calls(build_calls(options.model, options.num_frames, options.chunk_sizes), options.repeats)
    rates = {name: statistics.median(values) for name, values in rounds.items()}
    cold, *first_frame = measure_first_frame(*video, options.repeats)
    settings = {name: value for name, value in vars(options).items() if name != "output"}
    settings["digest"] = model_digest(pipe)
    report = {
        "settings": settings,
        "stored_default": {name: value for name, value in pipe.config.items() if name.startswith("default_")},
        "machine": machine,
        "ratios": compare(rates),
        "median_frames_a_second": rates,
        "frames_a_second": rounds,
        "seconds_to_first_frame": {"first_call": cold, "median": statistics.median(first_frame), "calls": first_frame},
        "shares_of_one_step": measure_parts(*video, options.repeats),
        "compiled": measure_compiled(*video, options.compile_limit),
        "quality": measure_quality(options.model, clips),
    }
    write_json(options.output, report)
    figures = {**rates, **report["ratios"], "first frame, seconds": report["seconds_to_first_frame"]["median"]}
    print(*(f"{name:55} {value:.3f}" for name, value in figures.items()), sep="\n")
    print(f"Wrote {options.output}.")
    return report


if __name__ == "__main__":
    run_script(main, parse_args)
