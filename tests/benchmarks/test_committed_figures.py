"""All committed figures of a model are of the model that ships."""

import json

import pytest

from tests.launch import ROOT
from training.hub.repositories import load_pipeline
from training.media.animation import model_digest


TINY = ROOT / "model_card" / "tiny"
# These measure code with random weights, so no model.
OF_NO_MODEL = {
    *("data", "sampling_cost", "sampling_half_cpu", "sampling_half_cpu_few_steps", "training_memory_full_cuda"),
    *("training_step_full_cuda", "training_step_full_cuda_checkpointing", "training_step_half_cpu"),
    *("loading_full", "memory"),
}
REPORTS = {path.stem: path for path in sorted((ROOT / "benchmarks").glob("*/*.json"))}
OF_A_MODEL = {name: path for name, path in REPORTS.items() if name not in OF_NO_MODEL}
OF_A_MODEL["evaluation"] = TINY / "evaluation" / "evaluation.json"


@pytest.fixture(scope="module")
def shipped():
    return model_digest(load_pipeline(str(TINY)))


@pytest.mark.parametrize("name", OF_A_MODEL)
def test_figures_are_of_the_shipped_model(name, shipped):
    settings = json.loads(OF_A_MODEL[name].read_text())["settings"]
    assert settings["digest"] == shipped


def test_figures_of_no_model_name_none():
    assert set(REPORTS) >= OF_NO_MODEL
    for name in OF_NO_MODEL:
        assert "digest" not in REPORTS[name].read_text(), name


def test_the_figures_of_the_few_step_lora_are_of_the_shipped_one():
    fast = model_digest(load_pipeline(str(TINY), lora=str(TINY / "fast")))
    report = json.loads(REPORTS["few_steps"].read_text())
    assert {digest for name, digest in report["digests"].items() if name.startswith("LoRA")} == {fast}
