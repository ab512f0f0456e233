"""The choice of a few-step LoRA in a folder, in a repository on the Hub, and in the Hub's cache."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub_server import Hub
from tests.launch import ROOT
from tests.test_few_steps import write_fast
from tests.tiny_components import save_subject
from training.hub.loras import OWN_FAST, choose_loras


CHOOSE = """
import json, sys
from huggingface_hub import hf_hub_download
from training.hub.loras import choose_loras

found = {}
for name, revision in json.loads(sys.argv[1]):
    hf_hub_download(f"someone/{name}", "model_index.json", revision=revision)  # as loading the model does
    found[name] = choose_loras([], f"someone/{name}", revision)
print(json.dumps(found))
"""


def test_a_folder_s_own_lora_is_used_unless_another_is_given_or_it_is_left_out(tmp_path):
    own = str(write_fast(tmp_path / "model" / "fast") / OWN_FAST.partition("/")[2])
    other, anna = str(write_fast(tmp_path / "other")), str(save_subject(tmp_path / "anna", 1))
    (tmp_path / "plain").mkdir()
    model, plain = str(tmp_path / "model"), str(tmp_path / "plain")
    assert choose_loras([], model) == choose_loras([], model, fast=True) == ([own], own)
    assert choose_loras([anna], model) == ([anna, own], own)
    assert choose_loras([anna], model, fast=False) == choose_loras([anna], plain) == ([anna], None)
    for fast in (None, True, False):
        assert choose_loras([other, anna], model, fast=fast) == ([other, anna], other)
    with pytest.raises(ValueError, match=f"`fast` must be given with a model that has a few-step LoRA .*{OWN_FAST}"):
        choose_loras([anna], plain, fast=True)
    with pytest.raises(ValueError, match="`lora` must name at most one few-step LoRA, got '.*other' and '.*fast'"):
        choose_loras([other, str(tmp_path / "model" / "fast")], plain)


def choose_in_a_fresh_process(asked, environment):
    """Return what `choose_loras` finds in repositories, given as `(name, revision)`."""
    command = [sys.executable, "-c", CHOOSE, json.dumps(asked)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_repository_is_looked_up_by_the_files_of_the_revision(tmp_path):
    weights = (write_fast(tmp_path / "fast") / OWN_FAST.partition("/")[2]).read_bytes()
    asked = [("with", None), ("without", None), ("later", "main")]
    with Hub() as hub:
        for name, files in (("with", {OWN_FAST: weights}), ("without", {}), ("later", {})):
            hub.commit(f"models/someone/{name}", {"model_index.json": b"{}", **files})
        first = hub.commits["models/someone/later"][0][0]
        hub.commit("models/someone/later", {OWN_FAST: weights})
        environment = os.environ | hub.environment | {"HF_HOME": str(tmp_path / "cache")}
        found = choose_in_a_fresh_process(asked, environment)
        before = choose_in_a_fresh_process([("later", first)], environment)
    assert found["without"] == before["later"] == [[], None]
    for name in ("with", "later"):
        (path,), few_steps = found[name]
        assert path == few_steps and Path(path).read_bytes() == weights
    assert choose_in_a_fresh_process(asked, environment | {"HF_HUB_OFFLINE": "1"}) == found
