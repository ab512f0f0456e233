"""The data benchmark: both layouts hold the same frames, and the report is complete. Times are not tested."""

import json
import sys

import pytest
import torch

from benchmarks.speed.data import main, parse_args
from benchmarks.speed.data_layouts import ReleaseSamples, open_pairs, read_frames, write_release_layout, write_rows
from pipeline_dreampose import iuv_to_pose_map
from training.data.procedural_fashion import load_procedural_fashion


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders with the pictures and the IUV of a drawn clip of six frames."""
    root = tmp_path_factory.mktemp("clip")
    rows = load_procedural_fashion("smoke", "train", cache_dir=str(root / "datasets")).select(range(6))
    for name in ("image", "iuv"):
        (root / name).mkdir()
        for index, picture in enumerate(rows[name]):
            picture.save(root / name / f"{index:03d}.png")
    return root / "image", root / "iuv"


def test_both_layouts_hold_the_clip(folders, tmp_path):
    clip = read_frames(*folders, width=64, height=80)
    prepared, release = write_rows(clip, tmp_path / "rows", 2), write_release_layout(clip, tmp_path / "release")
    # Two maps of 64x80 in float64 after a header of 128 bytes.
    assert release["map"] == 2 * 64 * 80 * 8 + 128 and prepared["map"] < release["map"] / 10
    samples = ReleaseSamples(tmp_path / "release", 80, 64)
    maps = [iuv_to_pose_map(iuv) for _, iuv in clip]
    pose = samples[1]["pose_j"]  # 7919 % 6 is 5, the last frame, which its window repeats
    expected = torch.cat([maps[frame] for frame in (3, 4, 5, 5, 5)])
    torch.testing.assert_close(pose / 2 + 0.5, expected)
    pairs = open_pairs(tmp_path / "rows", 80, 64, cached=False)
    assert len(pairs) == 12 and len(pairs.videos) == 2
    window = pairs.read_target(5)["pose_window"].view(5, 2, 10, 8)
    assert torch.equal(window[4], maps[5][:, ::8, ::8]), "the same map, by nearest neighbour"
    cached = open_pairs(tmp_path / "rows", 80, 64, cached=True)
    assert torch.equal(cached.read_target(5)["pose_window"], pairs.read_target(5)["pose_window"])
    assert cached[0]["image_embeds"].shape == (50, 768)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux distinguishes mapped memory")
def test_the_report(folders, tmp_path):
    words = ["--frames", str(folders[0]), "--iuv", str(folders[1]), "--height", "80", "--width", "64"]
    words += ["--num_samples", "16", "--repeats", "1", "--length_factor", "2", "--output", str(tmp_path / "data.json")]
    report = main(parse_args(words))
    assert json.loads((tmp_path / "data.json").read_text())["num_frames"] == 6
    assert all(value > 0 for value in report["ratios"].values())
    assert set(report["peak_memory_bytes"]) == {"rows_1x", "rows_2x", "latent_cache_1x", "latent_cache_2x"}
