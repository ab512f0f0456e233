"""The count of operations: single layers by hand, and relations between the procedures."""

import json

import pytest
import torch
from torch import nn

from benchmarks.speed.sampling_cost import main, parse_args
from benchmarks.speed.sampling_counts import build_rows, count_flops, count_models, count_procedures


RELEASE_STEPS = 3
MODELS = ("unet", "image_encoder", "adapter", "encoder", "decoder")


@pytest.fixture(scope="module")
def procedures():
    return count_procedures(RELEASE_STEPS)


def test_layers_by_hand():
    with torch.device("meta"):
        conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        assert count_flops(lambda: conv(torch.empty(2, 3, 16, 12))) == 2 * (2 * 8 * 8 * 6) * (3 * 3 * 3)
        linear = nn.Linear(5, 7)
        assert count_flops(lambda: linear(torch.empty(4, 5))) == 2 * 4 * 5 * 7
        query, key = torch.empty(1, 2, 6, 4), torch.empty(1, 2, 9, 4)
        attention = count_flops(lambda: nn.functional.scaled_dot_product_attention(query, key, key))
        assert attention == 2 * 2 * (2 * 6 * 9 * 4)  # two products, of two heads


def test_a_frame_runs_what_its_procedure_says(procedures):
    def counts(name, unit):
        return [procedures[name][unit][model] for model in MODELS]

    evaluations = RELEASE_STEPS + 1  # PNDM evaluates its first step twice
    assert counts("release", "frame") == [3 * evaluations, 3, 3, 3, 1] and not any(counts("release", "video"))
    for name, steps in (("distilled_4", 4), ("distilled_1", 1)):  # one branch, no null picture
        assert counts(name, "frame") == [steps, 0, 0, 0, 1]
        assert counts(name, "video") == [0, 1, 1, 1, 0]


def test_operations_are_those_of_the_models(procedures):
    flops = count_models("tiny")
    rows = build_rows(flops, procedures)
    assert rows["distilled_1"]["flops_a_frame"] == flops["unet"] + flops["decoder"]
    assert rows["distilled_1_autoencoder_tiny"]["flops_a_frame"] == flops["unet"] + flops["tiny_decoder"]
    assert rows["distilled_4"]["flops_a_frame"] == 4 * flops["unet"] + flops["decoder"]
    encoding = flops["encoder"] + flops["image_encoder"] + flops["adapter"]
    assert rows["distilled_1"]["flops_a_video"] == encoding
    release = 3 * (RELEASE_STEPS + 1) * flops["unet"] + 3 * encoding + flops["decoder"]
    assert rows["release"]["flops_a_frame"] == release and rows["release"]["release_over_this"] == 1
    assert rows["trailing_4"]["flops_a_frame"] < rows["pipeline_defaults"]["flops_a_frame"]


def test_the_report(tmp_path):
    output = tmp_path / "cost.json"
    report = main(parse_args(["--size", "tiny", "--release_steps", "2", "--output", str(output)]))
    assert json.loads(output.read_text()) == report and report["settings"]["height"] == 128
