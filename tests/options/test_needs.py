"""Options that have an effect only together with another option."""

import dataclasses
import re

import pytest

from training import finetune, train, train_encoders
from training.options.needs import NEEDS, find_idle_option
from training.options.parsing import option_values
from training.options.run import TrainOptions


COMMANDS = {"train": train, "finetune": finetune, "train_encoders": train_encoders}


def defaults_of(command):
    return option_values(*(kind() for kind in command.OPTIONS))


def refusal(command, capsys, words):
    with pytest.raises(SystemExit) as stopped:
        command.parse_args(words.split())
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        (
            "finetune",
            "--train_mode full --rank 4",
            "`--rank` .* only with `--train_mode lora`, got .* full`",
        ),
        ("finetune", "--train_mode full --use_dora", "`--use_dora` must be given only with `--train_mode lora`"),
        ("finetune", "--train_mode full --sample_inference_steps 9", "`--sample_inference_steps` must be given only"),
        ("finetune", "--prior_prob 0.25", "`--prior_prob` must be given only with `--prior_dataset`.$"),
        ("finetune", "--person score", "`--person` must be given only with `--densepose`.$"),
        ("finetune", "--num_train_epochs 2", "`--num_train_epochs` .* `--max_train_steps none`, got .* 100`"),
        ("finetune", "--decoder_max_train_steps 0 --decoder_learning_rate 1", "`--decoder_learning_rate` .* above 0"),
        ("train", "--no_hub_private_repo", "`--hub_private_repo` must be given only with `--push_to_hub`"),
        ("train", "--num_validation_pairs 3", "`--num_validation_pairs` must be given only with `--validation_steps`"),
        ("train", "--high_noise_start 3", "`--high_noise_start` must be given only with `--high_noise_fraction`"),
        ("train", "--lr_power 2", "`--lr_power` must be given only with `--lr_scheduler polynomial`, got .* constant"),
        ("train_encoders", "--hidden_size 64", "`--hidden_size` .* only with `--component image_encoder`, got .* vae"),
        (
            "train_encoders",
            "--component image_encoder --height 64",
            "`--height` .* only with `--component vae or .*`",
        ),
        ("train_encoders", "--preset tiny_pipeline --train_batch_size 2", "`--train_batch_size` .* got .* pipeline"),
    ],
)
def test_an_option_without_effect_is_refused_with_both_names(name, words, message, capsys):
    said = refusal(COMMANDS[name], capsys, words)
    assert re.search(message, said), said


def test_a_revision_is_refused_for_a_folder_alone(tmp_path, capsys):
    words = f"--revision main --pretrained_model_name_or_path {tmp_path}"
    for command in (train, finetune):
        assert "`--revision` must be given only with a model on the Hub, got" in refusal(command, capsys, words)
    model, *_ = train.parse_args(["--revision", "main", "--pretrained_model_name_or_path", str(tmp_path / "none")])
    assert model.revision == "main"


def test_an_image_encoder_is_refused_for_a_dreampose_pipeline_alone(tmp_path, capsys):
    words = ["--image_encoder_name_or_path", "clip", "--pretrained_model_name_or_path", str(tmp_path)]
    index = tmp_path / "model_index.json"
    index.write_text('{"_class_name": "StableDiffusionPipeline"}')
    assert train.parse_args(words)[0].image_encoder_name_or_path == "clip"
    index.write_text('{"_class_name": "DreamPosePipeline"}')
    assert "`--image_encoder_name_or_path` must be given only with Stable Diffusion, got" in refusal(
        train, capsys, " ".join(words)
    )


@pytest.mark.parametrize(
    "words",
    [
        "--train_mode full --use_dora False --lora_alpha none --sample_inference_steps 0",
        "--max_train_steps none --num_train_epochs 2",
        "--densepose model.pt --person score",
        "--prior_dataset data --prior_prob 0.5 --push_to_hub --hub_model_id you/name --no_hub_private_repo",
    ],
)
def test_options_with_effect_or_switched_off_are_taken(words):
    assert len(finetune.parse_args(words.split())) == len(finetune.OPTIONS)


def test_values_of_presets_and_files_are_taken(tmp_path):
    """A saved `options.yaml` holds all options, with effect or without."""
    options = finetune.parse_args(["--preset", "paper"])
    (tmp_path / "options.yaml").write_text("rank: 8\nprior_prob: 0.5\nperson: score\n")
    read = finetune.parse_args(["--config", str(tmp_path / "options.yaml"), "--train_mode", "full"])
    assert options[1].train_mode == read[1].train_mode == "full" and read[1].rank == 8


def test_every_row_belongs_to_a_command():
    for need in NEEDS:
        for name in need.names.split():
            assert any({name, need.other} <= defaults_of(command).keys() for command in COMMANDS.values()), name


def test_a_pipeline_of_encoders_takes_no_option_of_the_training():
    used = {"output_dir", "seed", "mixed_precision", "report_to", "allow_tf32"}
    defaults = defaults_of(train_encoders)
    values = defaults | {"component": "pipeline"}
    for item in dataclasses.fields(TrainOptions):
        said = find_idle_option({item.name: 1}, values, defaults)
        assert (said is None) == (item.name in used), item.name
