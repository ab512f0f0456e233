"""Records of prepared clips and facts of a latent cache that were edited or damaged."""

from pathlib import Path

import pytest

from training.data.latent_cache import FACTS_NAME, LatentCache
from training.data.preparation import ClipTask, summarize, unfinished
from training.media.settings_file import write_json


@pytest.mark.parametrize("record", [[], 5, {}, {"num_frames": 3, "filled": []}, {"sha256": "abc"}])
def test_a_clip_s_record_is_named(tmp_path, record):
    task = ClipTask(Path("clip.mp4"), "clip", "train")
    write_json(task.record(tmp_path), record)
    write_json(tmp_path / "settings.json", {})
    with pytest.raises(ValueError, match=f"`output_dir` must hold files .*{task.record(tmp_path)}', which h"):
        unfinished([task], tmp_path)
        summarize([task], tmp_path)


@pytest.mark.parametrize("facts", [[], {}, {"num_rows": 3}])
def test_the_facts_of_a_cache_are_named(tmp_path, facts):
    write_json(tmp_path / FACTS_NAME, facts)
    with pytest.raises(ValueError, match=f"`folder` must hold files .*{FACTS_NAME}', which h"):
        LatentCache(tmp_path)
