"""The real-time benchmark: what its calls do, and the report. Times are not tested."""

import json
from unittest import mock

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0

from benchmarks.speed.realtime import compare, main, parse_args
from benchmarks.speed.realtime_procedures import (
    ONE_STEP,
    PARTS,
    Video,
    broadcast_attention,
    load_fast,
    load_guided,
    measure_compiled,
    run_floor,
    timed_parts,
)
from benchmarks.speed.sampling_counts import count_samples
from benchmarks.speed.sampling_procedures import ONE_BRANCH, build_pipeline, run_pipeline
from tests.launch import ROOT
from tests.test_few_steps import write_fast
from tests.tiny_components import get_dummy_inputs, get_dummy_pipeline


SMALL_MODEL = str(ROOT / "model_card" / "tiny")


@pytest.fixture
def pipe():
    return build_pipeline("tiny", "cpu", torch.float32)


def test_the_floor_has_the_batches_of_the_call(pipe):
    """Five frames, two at a time, are three equal chunks, the last one padded. Padding is not decoded in a call."""
    call = count_samples(pipe, lambda: run_pipeline(pipe, pipe.scheduler, 5, 1, 2, ONE_BRANCH))
    floor = count_samples(pipe, lambda: run_floor(pipe, 5, 2))
    assert (floor["unet"], floor["decoder"], floor["encoder"]) == (6, 6, 0)
    assert (call["unet"], call["decoder"]) == (6, 5)


def test_broadcasting_saves_attention_at_the_middle_timesteps_alone(pipe):
    def count_attentions():
        seen, call = [], AttnProcessor2_0.__call__

        def counted(self, attention, *args, **kwargs):
            if pipe.current_timestep is not None:  # of the UNet, not of the VAE
                seen.append(float(pipe.current_timestep))
            return call(self, attention, *args, **kwargs)

        with mock.patch.object(AttnProcessor2_0, "__call__", counted):
            run_pipeline(pipe, pipe.scheduler, 1, 15, scales=ONE_BRANCH)
        return seen

    def outside(timesteps):
        return [t for t in timesteps if not 100 < t < 800]

    every = count_attentions()
    broadcast_attention(pipe)
    fewer = count_attentions()
    assert outside(fewer) == outside(every) != []
    assert 0 < len(fewer) - len(outside(fewer)) < len(every) - len(outside(every))


def test_parts_are_timed_and_put_back(pipe):
    with timed_parts(pipe) as seconds:
        run_pipeline(pipe, pipe.scheduler, 1, 1, scales=ONE_BRANCH)
        assert set(seconds) == set(PARTS) and seconds["UNet"] > 0 and seconds["VAE decoder"] > 0
    before = dict(seconds)
    run_pipeline(pipe, pipe.scheduler, 1, 1, scales=ONE_BRANCH)
    assert seconds == before and "forward" not in vars(pipe.unet)


def test_ratios_by_hand():
    rates = {"guided": 4.0, "stored default": 8.0, "one step, float32, 8": 60.0, "floor, float32, 8": 66.0}
    assert compare(rates) == {
        "stored default / guided": 2.0,
        "one step, float32, 8 / guided": 15.0,
        "one step, float32, 8, time above the floor": pytest.approx(0.1),
    }


def test_the_poses_go_on_forwards_and_backwards():
    maps = Video(100).pose_maps
    assert maps.shape[:2] == (100, 2)
    assert torch.equal(maps[:32], maps[32:64].flip(0)) and torch.equal(maps[64:], maps[:36])


def test_a_few_step_lora_is_fused(tmp_path):
    get_dummy_pipeline().save_pretrained(tmp_path)
    own = load_fast(str(tmp_path))
    assert own.scheduler.config.timestep_spacing == "trailing"  # a stand-in with the model's own weights
    write_fast(tmp_path / "fast")
    fast, attached = load_fast(str(tmp_path)), get_dummy_pipeline()
    attached.load_lora_weights(tmp_path / "fast", adapter_name="fast")
    attached.use_few_steps("fast")
    assert fast.scheduler.config.timestep_spacing == "trailing" and fast.config.default_num_inference_steps == 1
    assert not any(hasattr(layer, "base_layer") for layer in fast.unet.modules())
    one, other, without = (pipe(**get_dummy_inputs()).frames for pipe in (fast, attached, own))
    assert torch.allclose(one, other, atol=1e-4) and not torch.allclose(one, without, atol=1e-2)


@pytest.mark.slow
def test_one_step_is_one_forward_pass_per_frame_and_yields_the_calls_frames():
    pipe, video = load_fast(SMALL_MODEL), Video(3)
    frames = []
    counts = count_samples(pipe, lambda: frames.extend(video.sample(pipe, chunk_size=2, **ONE_STEP)))
    assert counts["unet"] == 4 and counts["decoder"] == 3 and len(frames) == 3
    first = video.first_frame(pipe, chunk_size=2, **ONE_STEP)
    assert first.mode == "RGB" and first.tobytes() == frames[0].tobytes()
    assert load_guided(SMALL_MODEL).scheduler.config.timestep_spacing == "leading"


@pytest.mark.slow
def test_a_compilation_ends_at_its_limit():
    assert measure_compiled(SMALL_MODEL, 1, 1, limit=1) == {
        "limit_seconds": 1,
        "failure": "not finished within the limit",
    }


@pytest.mark.slow
def test_the_report(tmp_path):
    words = [
        "--model",
        SMALL_MODEL,
        "--num_frames",
        "2",
        "--chunk_sizes",
        "2",
        "--repeats",
        "1",
        "--compile_limit",
        "1",
    ]
    words += ["--num_clips", "2", "--frames_per_clip", "1", "--output", str(tmp_path / "report.json")]
    report = main(parse_args(words))
    assert json.loads((tmp_path / "report.json").read_text())["ratios"] == report["ratios"]
    assert all(rate > 0 for rate in report["median_frames_a_second"].values())
    assert sum(report["shares_of_one_step"].values()) == pytest.approx(1)
    assert set(report["quality"]) == {"attention broadcast", "channels last", "bfloat16"}
    assert report["quality"]["attention broadcast"]["change"]["mean"] != 0
    assert report["seconds_to_first_frame"]["median"] > 0
