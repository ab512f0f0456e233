"""Publishing of prepared data sets: only files of the folder itself go out."""

from types import SimpleNamespace

import pytest

from training.hub import publishing


@pytest.mark.parametrize("name", ["frames/train/a.parquet", "README.md", "summary.json", "frames"])
def test_a_link_that_leaves_the_data_set_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr(publishing, "HfApi", lambda: pytest.fail("something was pushed"))
    folder, elsewhere = tmp_path / "ubc", tmp_path / "elsewhere"
    (folder / "frames" / "train").mkdir(parents=True)
    (folder / "frames" / "train" / "a.parquet").write_text("rows")
    if name == "frames":
        (folder / name).rename(elsewhere)
    else:
        elsewhere.write_text("private")
        (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(elsewhere)
    task = SimpleNamespace(video_id="a", shards=lambda folder: {"train": folder / "frames" / "train" / "a.parquet"})
    with pytest.raises(ValueError, match="`output_dir` must hold the files themselves, got a link that leaves it"):
        publishing.push_data_set(folder, "someone/ubc", [task], {}, has_images=False)
    assert elsewhere.is_dir() or elsewhere.read_text() == "private"
