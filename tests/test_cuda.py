"""Tests that need CUDA: fp16 with a loss scaler, fused and 8-bit optimizers, 4-bit weights, compilation."""

import copy

import pytest
import torch
from accelerate.utils import is_bnb_available
from torch import nn

from pipeline_dreampose import DreamPosePipeline
from tests.conftest import reset_accelerate
from tests.test_finetune import arguments as subject_arguments
from tests.test_finetune import base, photos  # noqa: F401 - fixtures
from tests.test_train import arguments, losses
from tests.tiny_components import get_dummy_inputs
from training import finetune, train
from training.engine.optimizer import build_optimizer, flatten_optimizer_state, restore_optimizer_state


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
needs_bitsandbytes = pytest.mark.skipif(not is_bnb_available(), reason="bitsandbytes is not installed")


def take_step(module, optimizer, step):
    for number, parameter in enumerate(module.parameters()):
        generator = torch.Generator().manual_seed(100 * step + number)
        gradient = torch.randn(parameter.shape, generator=generator).to(parameter.device)
        parameter.grad = torch.empty_like(parameter, requires_grad=False).copy_(gradient)
    optimizer.step()


def test_the_fused_optimizer_equals_the_plain_one_also_from_a_checkpoint():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(8, 8)).to(memory_format=torch.channels_last)
    fused = copy.deepcopy(plain).to("cuda")
    optimizers = [build_optimizer(module.parameters(), 0.1) for module in (plain, fused)]
    assert [bool(optimizer.param_groups[0]["fused"]) for optimizer in optimizers] == [False, True]
    for step in range(3):
        take_step(plain, optimizers[0], step)
        take_step(fused, optimizers[1], step)
        parameters = dict(fused.named_parameters())
        flat = {name: value.cpu() for name, value in flatten_optimizer_state(optimizers[1], parameters).items()}
        optimizers[1] = build_optimizer(parameters.values(), 0.1)
        restore_optimizer_state(optimizers[1], parameters, flat)
    for expected, parameter in zip(plain.parameters(), fused.parameters()):
        torch.testing.assert_close(parameter.cpu(), expected, rtol=1e-5, atol=1e-6)


def test_the_fused_optimizer_refuses_gradients_of_another_layout():
    weight = nn.Parameter(torch.ones(4, 3, 3, 3, device="cuda").contiguous(memory_format=torch.channels_last))
    weight.grad = torch.randn(4, 3, 3, 3, device="cuda")
    with pytest.raises(RuntimeError):
        build_optimizer([weight], 0.1).step()


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--mixed_precision", "bf16", "--gradient_checkpointing", "--channels_last"],
        ["--mixed_precision", "fp16", "--dataloader_num_workers", "2"],
        pytest.param(["--mixed_precision", "bf16", "--use_8bit_adam"], marks=needs_bitsandbytes),
    ],
    ids=["float32", "bf16", "fp16", "8bit"],
)
def test_stage_1_resumes_from_a_checkpoint(base, tmp_path, flags):  # noqa: F811
    train.main(train.parse_args(arguments(base, tmp_path / "whole", *flags)))
    reset_accelerate()
    train.main(train.parse_args(arguments(base, tmp_path / "halves", *flags, "--max_train_steps", "2")))
    reset_accelerate()
    more = ["--resume_from_checkpoint", "latest"]
    train.main(train.parse_args(arguments(base, tmp_path / "halves", *flags, *more)))
    assert losses(tmp_path / "halves") == pytest.approx(losses(tmp_path / "whole"), rel=1e-2)
    assert len(losses(tmp_path / "whole")) == 4 and all(0 < loss < 10 for loss in losses(tmp_path / "whole"))


def test_a_compiled_unet_trains_like_a_plain_one(base, tmp_path):  # noqa: F811
    train.main(train.parse_args(arguments(base, tmp_path / "plain")))
    reset_accelerate()
    flags = ["--torch_compile_backend", "inductor", "--allow_tf32"]
    train.main(train.parse_args(arguments(base, tmp_path / "compiled", *flags)))
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-2)
    DreamPosePipeline.from_pretrained(tmp_path / "compiled")


@pytest.mark.parametrize(
    "flags",
    [
        ["--mixed_precision", "fp16"],
        pytest.param(
            ["--mixed_precision", "bf16", "--use_8bit_adam", "--quantize_base", "--decoder_max_train_steps", "0"],
            marks=needs_bitsandbytes,
        ),
    ],
    ids=["fp16", "nf4"],
)
def test_stage_2_makes_a_subject_that_can_be_loaded(base, photos, tmp_path, flags):  # noqa: F811
    finetune.main(finetune.parse_args(subject_arguments(base, photos, tmp_path / "subject", *flags)))
    pipelines = [DreamPosePipeline.from_pretrained(base).to("cuda") for _ in range(2)]
    pipelines[1].load_lora_weights(tmp_path / "subject")
    without, with_subject = (pipeline(**get_dummy_inputs()).frames for pipeline in pipelines)
    assert torch.isfinite(with_subject).all() and not torch.allclose(without, with_subject, atol=1e-3)


def test_frames_of_a_gpu_are_those_of_a_cpu(base):  # noqa: F811
    """A CPU generator draws the noise for both. float16 rounds to 11 bits, bfloat16 to 8."""
    expected = DreamPosePipeline.from_pretrained(base)(**get_dummy_inputs()).frames
    for dtype, tolerance in ((torch.float32, 2e-3), (torch.float16, 2e-2), (torch.bfloat16, 0.1)):
        pipeline = DreamPosePipeline.from_pretrained(base, dtype=dtype).to("cuda")
        frames = pipeline(**get_dummy_inputs()).frames
        assert (frames.cpu().float() - expected).abs().max() < tolerance, dtype
    pipeline = DreamPosePipeline.from_pretrained(base)
    pipeline.enable_model_cpu_offload()
    offloaded = pipeline(**get_dummy_inputs()).frames
    assert (offloaded.cpu() - expected).abs().max() < 2e-3
    assert pipeline.unet.device.type == "cpu"
