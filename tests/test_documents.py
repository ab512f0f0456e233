"""Documents: `docs/pictures/draw.py` draws their pictures, and their commands leave git clean."""

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from docs.pictures.draw import DRAWN, FOLDER, SAMPLED, draw_figure, viridis_parts
from pipeline_dreampose import iuv_to_pose_map
from tests.launch import ROOT
from training import prepare_dataset
from training.data.frame_pairs import FramePairs, LatentShape
from training.data.samples import load_prepared
from training.poses.channel_order import find_channel_order


@pytest.mark.parametrize("name", DRAWN)
def test_a_committed_picture_is_what_the_script_draws(name, tmp_path):
    DRAWN[name]().save(tmp_path / name, optimize=True)
    drawn, committed = (np.asarray(Image.open(folder / name).convert("RGB")) for folder in (tmp_path, FOLDER))
    assert drawn.shape == committed.shape
    # Another build of FreeType or numpy may move the edges of letters and figures.
    assert (drawn != committed).any(axis=-1).mean() < 0.01


def test_the_pictures_are_those_of_the_script_and_small():
    """What is sampled is not drawn again: machines round differently."""
    assert {path.name for path in FOLDER.glob("*.png")} == {*DRAWN, *SAMPLED}
    assert all(path.stat().st_size < 150_000 for path in FOLDER.glob("*.png"))


def test_the_good_pose_frame_is_taken_and_the_part_colours_are_refused():
    iuv = draw_figure(39, frame_index=12).iuv
    assert iuv_to_pose_map(iuv).shape == (2, *iuv.shape[:2])
    with pytest.raises(ValueError, match="part-colour picture"):
        iuv_to_pose_map(viridis_parts(iuv))
    with pytest.raises(ValueError, match="A part-colour picture .viridis."):
        find_channel_order([np.asarray(viridis_parts(iuv))])


def test_what_the_documents_commands_write_is_ignored_by_git():
    if not (ROOT / ".git").exists():
        pytest.skip("this is not a git checkout")
    written = {".venv", "demo", "animation.mp4", "grid.png", "output", "results"}  # defaults, and what make writes
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for block in re.findall(r"```bash\n(.*?)```", document.read_text(), re.DOTALL):
            written |= set(re.findall(r"(?:--output|--output_dir|mkdir) (\S+)", block))
    written |= {str(Path(name).with_suffix(".png")) for name in written if name.endswith((".mp4", ".gif"))}
    assert {"video.mp4", "video.png", "poses", "dreampose"} <= written
    command = ["git", "check-ignore", *(f"{name}/" if "." not in name[1:] else name for name in sorted(written))]
    ignored = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert {name.rstrip("/") for name in ignored} == written


def test_the_rows_that_the_lines_in_training_md_write_can_be_trained_on(tmp_path, monkeypatch):
    """They equal the rows of the command, except for the pictures' encoding."""
    (lines,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "training.md").read_text(), re.DOTALL)
    for clip in ("ann", "bob"):
        for kind, blue in (("frames", 200), ("iuv", 7)):
            (tmp_path / kind / clip).mkdir(parents=True)
            for number in range(98, 102):
                Image.new("RGB", (32, 40), (number, 90, blue)).save(tmp_path / kind / clip / f"{number:06d}.png")
    (tmp_path / "splits.csv").write_text("ann,train\nbob,test\n")
    monkeypatch.chdir(tmp_path)
    exec(lines, {})
    words = "--frames_dir frames --iuv_dir iuv --split_file splits.csv --output_dir out"
    prepare_dataset.main(prepare_dataset.parse_args(words.split()))
    for split, clip in (("train", "ann"), ("test", "bob")):
        written, prepared = (load_prepared(folder, split) for folder in ("rows", "out/frames"))
        assert written.features == prepared.features and written["video_id"] == [clip] * 4
        for name in ("video_id", "frame_index", "split", "iuv"):
            assert list(written[name]) == list(prepared[name])
        pairs = FramePairs(written, LatentShape(4, 10, 8, 40, 32), 0)
        assert pairs[0]["target_image"].shape == (3, 40, 32)
