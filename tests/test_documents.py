"""The pictures of the documents: the committed files are what `docs/pictures/draw.py` draws."""

import numpy as np
import pytest
from PIL import Image

from docs.pictures.draw import DRAWN, FOLDER, draw_figure, viridis_parts
from pipeline_dreampose import iuv_to_pose_map
from training.poses.densepose import find_channel_order


@pytest.mark.parametrize("name", DRAWN)
def test_a_committed_picture_is_what_the_script_draws(name, tmp_path):
    DRAWN[name]().save(tmp_path / name, optimize=True)
    drawn, committed = (np.asarray(Image.open(folder / name).convert("RGB")) for folder in (tmp_path, FOLDER))
    assert drawn.shape == committed.shape
    # Another build of FreeType or numpy may move the edges of letters and figures.
    assert (drawn != committed).any(axis=-1).mean() < 0.01


def test_the_pictures_are_those_of_the_script_and_small():
    """The guidance grid is not drawn again: it is sampled, and machines round differently."""
    assert {path.name for path in FOLDER.glob("*.png")} == {*DRAWN, "guidance_grid.png"}
    assert all(path.stat().st_size < 150_000 for path in FOLDER.glob("*.png"))


def test_the_good_pose_frame_is_taken_and_the_part_colours_are_refused():
    iuv = draw_figure(39, frame_index=12).iuv
    assert iuv_to_pose_map(iuv).shape == (2, *iuv.shape[:2])
    with pytest.raises(ValueError, match="part-colour picture"):
        iuv_to_pose_map(viridis_parts(iuv))
    with pytest.raises(ValueError, match="part colours .viridis."):
        find_channel_order([np.asarray(viridis_parts(iuv))])
