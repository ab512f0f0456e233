import math

import pytest
import torch
from safetensors.torch import save_file

from training.metrics import clip_records
from training.metrics.clip_records import ClipRecord, join_features, measure_clips, record_path


def make_record(index=0):
    return ClipRecord(
        values={"model": {"psnr": 20.1 + index, "cloth_psnr": float("nan")}},
        moved=[True, False],
        features={"fid": {"own": torch.full((2, 3), float(index)), "true own": torch.ones(2, 3)}},
        pictures={"own": torch.arange(12, dtype=torch.uint8).reshape(1, 3, 2, 2), "run own": torch.zeros(3, 3, 2, 2)},
    )


def test_a_record_comes_back_as_it_was(tmp_path):
    record = make_record()
    record.save(tmp_path / "a.safetensors")
    loaded = ClipRecord.load(tmp_path / "a.safetensors")
    assert loaded.values["model"]["psnr"] == 20.1 and math.isnan(loaded.values["model"]["cloth_psnr"])
    assert loaded.moved == record.moved
    for kind in ("pictures", "features"):
        found, expected = getattr(loaded, kind), getattr(record, kind)
        torch.testing.assert_close(found, expected)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    empty = ClipRecord({"model": {"l1": 0.5}})
    empty.save(tmp_path / "b.safetensors")
    assert ClipRecord.load(tmp_path / "b.safetensors") == empty


def test_only_clips_that_are_missing_are_measured(tmp_path):
    measured = []

    def record(index):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(index)
        return make_record(index)

    with pytest.raises(KeyboardInterrupt):
        measure_clips(4, tmp_path, record)
    (tmp_path / ".00002.safetensors.1.partial").write_bytes(b"a clip half written")
    measured.clear()
    assert measure_clips(4, tmp_path, record) == 2 and measured == [2, 3]
    assert [ClipRecord.load(record_path(tmp_path, i)).values["model"]["psnr"] for i in range(4)] == [
        20.1, 21.1, 22.1, 23.1,
    ]  # fmt: skip


def test_each_process_has_its_share(tmp_path, monkeypatch):
    measured = []

    class State:
        is_main_process, num_processes = False, 2

        def wait_for_everyone(self):
            pass

    for State.process_index in (0, 1):
        monkeypatch.setattr(clip_records, "PartialState", State)
        folder = tmp_path / str(State.process_index)
        folder.mkdir()
        make_record().save(record_path(folder, 1))
        shares = []
        measure_clips(6, folder, lambda index, shares=shares: shares.append(index) or make_record(index))
        measured.append(shares)
    assert measured == [[0, 3, 5], [2, 4]]


def test_features_are_joined_as_far_as_all_clips_have_them():
    records = [make_record(0), make_record(1)]
    joined = join_features(records)["fid"]
    assert joined["own"].tolist() == [[0.0] * 3] * 2 + [[1.0] * 3] * 2 and joined["true own"].shape == (4, 3)
    del records[1].features["fid"]["own"]
    assert list(join_features(records)["fid"]) == ["true own"]
    assert join_features([ClipRecord({})] * 2) == {}


@pytest.mark.parametrize(
    "metadata", [None, {}, {"facts": "5"}, {"facts": "{"}, {"facts": "[1]"}, {"facts": '{"x": 1}'}]
)
def test_a_damaged_record_is_named(tmp_path, metadata):
    path = tmp_path / "a.safetensors"
    save_file({"pictures/own": torch.zeros(1)}, path, metadata)
    if metadata == {}:
        path.write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match=f"`resume` must find the clips as they were written, got '{path}', which is"):
        ClipRecord.load(path)
