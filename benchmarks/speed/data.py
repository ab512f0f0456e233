# Copyright 2026 The DreamPose for diffusers authors
# Licensed under the Apache License, Version 2.0
"""What a frame of training data costs: bytes, samples a second and memory, against the release's layout and loader.

    python -m benchmarks.speed.data --frames FRAMES --iuv IUV

Samples show frames of one size; the release's hold poses at that size, ours at latent size, as both train with them.
All files stay in the system's cache, which the release's layout of UBC Fashion (600 GB) would not: it is read at its
best here. The latent cache has the shapes of Stable Diffusion's and CLIP's encodings.
"""

import argparse
import json
import os
import platform
import tempfile
from functools import partial
from pathlib import Path

import datasets
import torch

from benchmarks.speed.data_layouts import (
    ReleaseSamples,
    open_pairs,
    peak_growth,
    read_frames,
    samples_per_second,
    write_release_layout,
    write_rows,
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--frames", type=Path, required=True, help="folder of one clip's frames")
    parser.add_argument("--iuv", type=Path, required=True, help="folder of their IUV pictures, of the same names")
    parser.add_argument("--height", type=int, default=640)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument("--num_samples", type=int, default=200, help="read by each loader, and again for memory")
    parser.add_argument("--repeats", type=int, default=3, help="of which the fastest counts")
    parser.add_argument("--length_factor", type=int, default=8, help="of the long data set, for memory")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    return parser.parse_args(argv)


def measure(options: argparse.Namespace, folder: Path) -> dict:
    """The figures, measured in `folder`."""
    clip = read_frames(options.frames, options.iuv, options.width, options.height)
    size, rows, long_rows, release = (
        (options.height, options.width),
        folder / "rows",
        folder / "long",
        folder / "release",
    )
    bytes_a_frame = {"rows": write_rows(clip, rows), "release": write_release_layout(clip, release)}
    write_rows(clip, long_rows, options.length_factor)
    loaders = {
        "rows": open_pairs(rows, *size, cached=False),
        "latent_cache": open_pairs(rows, *size, cached=True),
        "release": ReleaseSamples(release, *size),
    }
    speed = {name: [] for name in loaders}
    for _ in range(options.repeats):  # in turn, so that what else the machine does meets all alike
        for name, samples in loaders.items():
            speed[name].append(samples_per_second(samples, options.num_samples, options.num_workers))
    best = {name: max(values) for name, values in speed.items()}
    memory = {}
    for name, cached in (("rows", False), ("latent_cache", True)):
        open_pairs(long_rows, *size, cached)  # so that neither measures how a data set is made
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
    """Measure, print and write the report, which is returned."""
    private = ("output", "frames", "iuv")
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "torch": torch.__version__,
        "datasets": datasets.__version__,
    }
    with tempfile.TemporaryDirectory() as folder:
        report = {
            "settings": {name: value for name, value in vars(options).items() if name not in private},
            "machine": machine,
            **measure(options, Path(folder)),
        }
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    for name in ("ratios", "samples_a_second", "peak_memory_bytes"):
        print(*(f"{key:40} {value:,.1f}" for key, value in report[name].items()), sep="\n")
    print(f"Wrote {options.output}.")
    return report


if __name__ == "__main__":
    try:
        main(parse_args())
    except ValueError as error:
        raise SystemExit(f"data.py: error: {error}") from None
