"""Measurements of a benchmark that stops and resumes, and the end of their folder."""

import os

from PIL import Image

from benchmarks.claims.clip_sampling import measure_missing, remove_measurements


def measures(folder, names):
    def measure(name):
        Image.new("RGB", (2, 2)).save(folder / f"{name}.png")
        return [1.0]

    return {name: lambda name=name: measure(name) for name in names}


def test_only_measurements_and_their_pictures_are_deleted(tmp_path):
    folder = tmp_path / ".report.pairs"
    assert measure_missing(folder, {}, False, "pairs", measures(folder, ["1, 3", "2, 3"])) == {
        "1, 3": [1.0],
        "2, 3": [1.0],
    }
    measure_missing(folder, {}, True, "pairs", measures(folder, ["5, 3"]))  # other pairs
    for name in ("notes.json", "cover.png", ".hidden.values.json"):
        (folder / name).write_text("the user's")
    remove_measurements(folder)
    assert sorted(os.listdir(folder)) == [".hidden.values.json", "cover.png", "notes.json"]
    assert all((folder / name).read_text() == "the user's" for name in os.listdir(folder))


def test_a_folder_with_nothing_else_goes(tmp_path):
    folder = tmp_path / ".report.parts"
    measure_missing(folder, {}, False, "parts", measures(folder, ["DDIM 50"]))
    remove_measurements(folder)
    assert not folder.exists()
