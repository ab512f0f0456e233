# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""Bytes, loading speed and memory of training data, compared with the layout and loader of the release.

    python -m benchmarks.speed.data --frames FRAMES --iuv IUV

All samples show frames of one size. As in training, the release's samples hold poses at that size and ours at latent
size. All files stay in the system's cache. The release's layout of UBC Fashion (600 GB) would not fit there, so its
figures here are a best case. The latent cache has the shapes of Stable Diffusion's and CLIP's encodings.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.scripts import count, machine_facts, measure_in_turn, package_versions, parse_benchmark, run_script
from benchmarks.speed.data_layouts import (
    ReleaseSamples,
    open_pairs,
    peak_growth,
    read_frames,
    samples_per_second,
    write_release_layout,
    write_rows,
)
from training.media.settings_file import write_json
from training.options.command import CommandParser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(usage="%(prog)s --frames FOLDER --iuv FOLDER [--OPTION VALUE ...]", description=__doc__)
    add = parser.add_argument_group("measurement").add_argument
    add("--frames", type=Path, required=True, help="folder of one clip's frames")
    add("--iuv", type=Path, required=True, help="folder of their IUV pictures, with the same names")
    add("--height", type=count, default=640, help="height of the samples in pixels")
    add("--width", type=count, default=512, help="width of the samples in pixels")
    add("--num_workers", type=int, default=2, help="data workers of each loader")
    add("--num_samples", type=count, default=200, help="samples that each loader reads for each figure")
    add("--repeats", type=count, default=3, help="rounds; the fastest counts")
    add("--length_factor", type=count, default=8, help="length of the long data set, in clips, for memory")
    return parse_benchmark(parser, argv, "benchmarks/speed/data.json")


def measure(options: argparse.Namespace, folder: Path) -> dict:
    """Measure all figures, with the files in `folder`."""
    clip = read_frames(options.frames, options.iuv, options.width, options.height)
    size = options.height, options.width
    rows, long_rows, release = (folder / name for name in ("rows", "long", "release"))
    bytes_a_frame = {"rows": write_rows(clip, rows), "release": write_release_layout(clip, release)}
    write_rows(clip, long_rows, options.length_factor)
    loaders = {
        "rows": open_pairs(rows, *size, cached=False),
        "latent_cache": open_pairs(rows, *size, cached=True),
        "release": ReleaseSamples(release, *size),
    }
    measures = {
        name: partial(samples_per_second, samples, options.num_samples, options.num_workers)
        for name, samples in loaders.items()
    }
    speed = measure_in_turn(measures, options.repeats)
    best = {name: max(values) for name, values in speed.items()}
    memory = {}
    for name, cached in (("rows", False), ("latent_cache", True)):
        open_pairs(long_rows, *size, cached)  # make the data set before it is measured
        for length, source in (("1", rows), (str(options.length_factor), long_rows)):
            opener = partial(open_pairs, source, *size, cached)
            memory[f"{name}_{length}x"] = peak_growth(opener, options.num_samples)
    return {
        "num_frames": len(clip),
        "bytes_a_frame": bytes_a_frame,
        "samples_a_second": best,
        "all_samples_a_second": speed,
        "peak_memory_bytes": memory,
        "ratios": {
            "map bytes, release/rows": bytes_a_frame["release"]["map"] / bytes_a_frame["rows"]["map"],
            "speed, rows/release": best["rows"] / best["release"],
            "speed, latent_cache/release": best["latent_cache"] / best["release"],
        },
    }


def main(options: argparse.Namespace) -> dict:
    """Measure, print and write the report, and return it."""
    private = ("output", "frames", "iuv")
    with tempfile.TemporaryDirectory() as folder:
        report = {
            "settings": {name: value for name, value in vars(options).items() if name not in private},
            "machine": machine_facts("processor", "cores", "load") | package_versions("torch", "datasets"),
            **measure(options, Path(folder)),
        }
    write_json(options.output, report)
    for name in ("ratios", "samples_a_second", "peak_memory_bytes"):
        print(*(f"{key:40} {value:,.1f}" for key, value in report[name].items()), sep="\n")
    print(f"Wrote {options.output}.")
    return report


if __name__ == "__main__":
    run_script(main, parse_args)
