"""The choice of a few-step LoRA in a folder, in a repository on the Hub, and in the Hub's cache."""

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from huggingface_hub import _CACHED_NO_EXIST
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub_server import Hub
from tests.launch import ROOT
from tests.test_few_steps import write_fast
from tests.tiny_components import save_subject
from training.hub import loras
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
    assert choose_loras([anna], model, own_by_default=False) == ([anna], None)
    assert choose_loras([anna], model, fast=True, own_by_default=False) == ([anna, own], own)
    for given in ({}, {"fast": True}, {"own_by_default": False}):
        assert choose_loras([other, anna], model, **given) == ([other, anna], other)
    with pytest.raises(ValueError, match="`no_fast` must be given without a few-step LoRA as `lora`, got '.*other'"):
        choose_loras([anna, other], model, fast=False)
    with pytest.raises(ValueError, match=f"`fast` must be given with a model that has a few-step LoRA .*{OWN_FAST}"):
        choose_loras([anna], plain, fast=True)
    with pytest.raises(ValueError, match="`lora` must name at most one few-step LoRA, got '.*other' and '.*fast'"):
        choose_loras([other, str(tmp_path / "model" / "fast")], plain)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: save_subject(folder, 1), "there is no `dreampose.few_steps` in its metadata"),
        (lambda folder: (folder / "pytorch_lora_weights.safetensors").write_bytes(b"{"), f"`{OWN_FAST}` must be safe"),
    ],
)
def test_a_model_s_own_lora_that_is_none_is_named(tmp_path, spoil, message):
    own = write_fast(tmp_path / "fast")
    spoil(own)
    message = f"`model` must have a few-step .* unless `--no_fast` is given, got '{tmp_path / OWN_FAST}': {message}"
    for fast in (None, True):
        with pytest.raises(ValueError, match=message):
            choose_loras([], str(tmp_path), fast=fast)
    assert choose_loras([], str(tmp_path), fast=False) == ([], None)


def test_only_the_header_of_a_lora_is_read_to_choose_it(tmp_path, monkeypatch):
    monkeypatch.setattr("safetensors.torch.load_file", lambda *_, **__: pytest.fail("the weights were read"))
    fast, anna = write_fast(tmp_path / "fast"), save_subject(tmp_path / "anna", 1)
    assert choose_loras([str(fast), str(anna)], str(tmp_path)) == ([str(fast), str(anna)], str(fast))


def not_found(kind):
    response = httpx.Response(404, request=httpx.Request("HEAD", "https://hub/someone/model"))
    return kind("There is no such thing.", response=response)


@pytest.mark.parametrize(
    "error",
    [
        not_found(RepositoryNotFoundError),
        not_found(GatedRepoError),
        not_found(RevisionNotFoundError),
        LocalEntryNotFoundError("There is no such thing."),
        OfflineModeIsEnabled("There is no such thing."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_lora_that_the_hub_does_not_give_is_left_out_with_a_notice(monkeypatch, caplog, error):
    """A model that is not in the cache either causes no notice: loading it fails, and says why."""
    cached = {}

    def download(*_, **__):
        raise error

    monkeypatch.setattr(loras, "check_reachable", lambda *_: None)
    monkeypatch.setattr(loras, "hf_hub_download", download)
    monkeypatch.setattr(loras, "try_to_load_from_cache", lambda _, name, revision: cached.get(name))
    assert choose_loras([], "someone/model", "v1") == ([], None) and not caplog.records
    with pytest.raises(ValueError, match="`fast` must .* got 'someone/model', of which .* There is no such thing.$"):
        choose_loras([], "someone/model", "v1", fast=True)
    cached["model_index.json"] = "/cache/model_index.json"
    caplog.clear()
    assert choose_loras([], "someone/model", "v1") == ([], None)
    notice = "All steps are sampled, without a few-step LoRA of 'someone/model', of which it cannot be loaded: There"
    assert [record.getMessage().startswith(notice) for record in caplog.records] == [True]
    cached[OWN_FAST] = _CACHED_NO_EXIST
    caplog.clear()
    assert choose_loras([], "someone/model", "v1") == ([], None) and not caplog.records


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
