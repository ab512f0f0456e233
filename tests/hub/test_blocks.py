"""The index of the blocks on the Hub: where their components are."""

import json

from modular_dreampose import DreamPoseBlocks
from tests.tiny_components import get_dummy_pipeline
from training.hub.blocks import BLOCKS_INDEX, index_for_hub


def sources(index):
    """Map each component of an index to where it is loaded from."""
    parts = {name: value[2] for name, value in json.loads(index).items() if str(value).endswith("}]")}
    return {name: (spec["pretrained_model_name_or_path"], spec["subfolder"]) for name, spec in parts.items()}


def test_components_of_the_folder_are_those_of_the_repository(tmp_path):
    pipe = get_dummy_pipeline()
    pipe.save_pretrained(tmp_path)
    DreamPoseBlocks().save_pretrained(tmp_path)
    saved = (tmp_path / BLOCKS_INDEX).read_bytes()
    expected = {name: ("someone/model", name) for name, part in pipe.components.items() if part is not None}
    assert sources(index_for_hub(tmp_path, "someone/model")) == expected | {"safety_checker": (None, "")}
    assert (tmp_path / BLOCKS_INDEX).read_bytes() == saved and str(tmp_path).encode() in saved


def test_components_from_elsewhere_stay_there(tmp_path):
    get_dummy_pipeline().save_pretrained(tmp_path)
    DreamPoseBlocks().save_pretrained(tmp_path)
    index = json.loads((tmp_path / BLOCKS_INDEX).read_text())
    index["vae"][2] |= {"pretrained_model_name_or_path": "other/vae", "subfolder": "elsewhere", "revision": "v1"}
    (tmp_path / BLOCKS_INDEX).write_text(json.dumps(index))
    pushed = index_for_hub(tmp_path, "someone/model")
    assert sources(pushed)["vae"] == ("other/vae", "elsewhere") and sources(pushed)["unet"][0] == "someone/model"
    assert json.loads(pushed)["vae"][2]["revision"] == "v1"
