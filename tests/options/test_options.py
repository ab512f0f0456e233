import dataclasses
import inspect
import typing

import pytest
import yaml

from tests.launch import ROOT
from training import distill, finetune, train_encoders
from training.data.pair_settings import PairSettings
from training.engine.loop import train
from training.engine.session import open_session
from training.models.denoiser import StageOneLoss
from training.models.lora import build_lora_configs
from training.options.encoders import EncoderOptions
from training.options.few_steps import METHOD_OPTIONS
from training.options.parsing import PRESETS_DIR, format_options, parse, read_config, save_options
from training.options.run import HubOptions, TrainOptions
from training.options.stage_one import (
    DataOptions,
    HeldOutOptions,
    ModelOptions,
    ObjectiveOptions,
    PairOptions,
    ValidationOptions,
)
from training.options.subject import (
    DecoderOptions,
    LoraOptions,
    SubjectObjectiveOptions,
    SubjectOptions,
    SubjectTrainOptions,
)


STAGE_1 = (ModelOptions, DataOptions, PairOptions, ObjectiveOptions, TrainOptions, ValidationOptions, HubOptions)
ENCODERS = (EncoderOptions, DataOptions, TrainOptions)
STAGE_2 = (SubjectOptions, LoraOptions, DecoderOptions, SubjectObjectiveOptions, SubjectTrainOptions, HubOptions)
DISTILLATION = (*METHOD_OPTIONS, PairOptions, HeldOutOptions, HubOptions)
PRESETS = {
    "train/paper": STAGE_1,
    "train/tiny": STAGE_1,
    "train_encoders/tiny_vae": ENCODERS,
    "train_encoders/tiny_doubled_vae": ENCODERS,
    "train_encoders/tiny_image_encoder": ENCODERS,
    "train_encoders/tiny_pipeline": ENCODERS,
    "finetune/paper": STAGE_2,
    "finetune/tiny": STAGE_2,
    "distill/full": DISTILLATION,
    "distill/tiny": DISTILLATION,
}


def write(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return str(path)


def test_defaults_preset_file_and_flags_win_in_this_order(tmp_path):
    config = write(tmp_path, "height: 96\nlearning_rate: 2.0e-3\n")
    defaults = parse(STAGE_1, [])
    assert [type(options) for options in defaults] == list(STAGE_1)
    assert defaults == tuple(kind() for kind in STAGE_1)
    model, data, pairs, objective, run, *_ = parse(
        STAGE_1, ["--learning-rate", "3e-3", "--config", config, "--preset", "tiny"]
    )
    assert run.learning_rate == 3e-3 and data.height == 96
    # Options that neither names come from the preset, and options that the preset does not name have their defaults.
    preset = yaml.safe_load((PRESETS_DIR / "train" / "tiny.yaml").read_text())
    assert data.width == preset["width"] != DataOptions.width and model.train_image_encoder is True
    assert "adam_epsilon" not in preset and run.adam_epsilon == 1e-8 and pairs.pose_radius == 2


def test_a_number_that_yaml_reads_as_text_is_a_number(tmp_path):
    config = write(tmp_path, "learning_rate: 1e-5\n")
    assert yaml.safe_load("learning_rate: 1e-5") == {"learning_rate": "1e-5"}
    assert parse(STAGE_1, ["--config", config])[4].learning_rate == 1e-5


def test_none_booleans_and_lists(tmp_path):
    config = write(
        tmp_path, "vae_channels: [8, 16]\nema_decay: null\ncheckpoints_total_limit: none\nchannels_last: false\n"
    )
    encoders, _, run = parse(ENCODERS, ["--preset", "tiny_vae", "--config", config], presets="train_encoders")
    assert encoders.vae_channels == [8, 16]
    assert (run.ema_decay, run.checkpoints_total_limit, run.channels_last) == (None, None, False)
    encoders, _, run = parse(ENCODERS, ["--channels_last", "--ema_decay", "0.5", "--vae_channels", "4", "8"])
    assert encoders.vae_channels == [4, 8] and run.channels_last is True and run.ema_decay == 0.5
    config = write(tmp_path, "snr_gamma: 5.0\n")
    assert parse(STAGE_1, ["--config", config])[3].snr_gamma == 5.0
    assert parse(STAGE_1, ["--config", config, "--snr_gamma", "None"])[3].snr_gamma is None


@pytest.mark.parametrize(
    "text, message",
    [
        ("learning_rat: 1e-5", "`learning_rat` in .* is no option of this command. Did you mean `learning_rate`?"),
        ("12: 3", "`12` in .* is no option of this command.$"),
        ("height: null", "`height` in .* must be a whole number, got None"),
        ("height: [8, 16]", r"`height` in .* must be a whole number, got \[8, 16\]"),
        ("height: {a: 1}", "`height` in .* must be a whole number, got {'a': 1}"),
        ("mixed_precision: no", "`mixed_precision` in .* must be text or null, got False. .* in quotes"),
        ("- height", "`config` must hold one mapping of options, got list"),
        ("height: [", "`config` must be a readable YAML file"),
        ("height: 8\nwidth: 8\nheight: 16", "config.yaml: `height` in line 3 would replace another value: give each"),
        ("height: 8\n'height': 16", "config.yaml: `height` in line 2 would replace another value: give each key once"),
        ("<<: {height: 8}\nheight: 16", "config.yaml: `<<` in line 1 would replace another value: give each key once"),
        ("train_data: 2024-13-45", "config.yaml: `train_data` in line 1 has an impossible number or date.$"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        parse(STAGE_1, ["--config", write(tmp_path, text)])


@pytest.mark.parametrize(
    "start, end, message",
    [
        ("learning_rate: 0x1", "", "`learning_rate` in .*config.yaml must be a number, got a value of int.$"),
        ("height: [0b1", "]", "`height` in .*config.yaml must be a whole number, got a value of list.$"),
        ("? 0x1", "\n: 8", "`a value of int` in .*config.yaml is no option of this command.$"),
        ("height: 1", "", "config.yaml: `height` in line 1 has an impossible number or date.$"),
    ],
)
def test_a_huge_number_in_a_file_is_refused_by_name(tmp_path, start, end, message):
    """Python does not write integers of more than 4300 digits, though it reads binary and hexadecimal ones."""
    with pytest.raises(ValueError, match=message):
        parse(STAGE_1, ["--config", write(tmp_path, start + "0" * 50_000 + end)])


def test_a_missing_file_is_refused():
    with pytest.raises(ValueError, match="`config` must be a readable YAML file, got missing.yaml"):
        parse(STAGE_1, ["--config", "missing.yaml"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--learning_rat", "1"], "unrecognized arguments: --learning_rat 1"),
        (["--learn", "1"], "unrecognized arguments: --learn 1"),
        (["--preset", "large"], "argument --preset: invalid choice: 'large'"),
        (["--height", "tall"], "argument --height: invalid int value: 'tall'"),
        (["--ema_decay", "much"], "argument --ema_decay: invalid float value: 'much'"),
        (["--reference_frames", "last"], "argument --reference_frames"),
    ],
)
def test_a_bad_flag_is_refused_by_name(capsys, arguments, message):
    with pytest.raises(SystemExit):
        parse(STAGE_1, arguments)
    assert message in capsys.readouterr().err


def test_a_value_of_the_wrong_type_in_a_file_is_refused_by_name(tmp_path, capsys):
    config = write(tmp_path, "train_batch_size: many")
    with pytest.raises(SystemExit):
        parse(STAGE_1, ["--config", config])
    said = capsys.readouterr().err
    assert f"in the file {config}: argument --train_batch_size: invalid int value: 'many'" in said
    with pytest.raises(SystemExit):
        parse(STAGE_1, ["--train_batch_size", "many", "--config", write(tmp_path, "height: 8")])
    assert config not in capsys.readouterr().err, "the value is not in the file"


def test_a_value_out_of_range_names_the_preset_or_file_that_has_it(tmp_path):
    config = write(tmp_path, "height: 7\nwidth: 64\n")
    with pytest.raises(ValueError, match=f"`height` must be .* got 7. `height` comes from the file {config}.$"):
        parse(STAGE_1, ["--config", config])
    with pytest.raises(ValueError, match="`height` must be a positive multiple of 8, got 9.$"):
        parse(STAGE_1, ["--config", config, "--height", "9"])
    with pytest.raises(
        ValueError, match="`lr_warmup_steps` must be 0 .*. `lr_warmup_steps` comes from the preset tiny.$"
    ):
        parse(STAGE_1, ["--preset", "tiny", "--lr_scheduler", "constant"])


@pytest.mark.parametrize(
    ("words", "keeps"),
    [
        ([], True),
        (["--pretrained_model_name_or_path", "CompVis/stable-diffusion-v1-4"], True),
        (["--pretrained_model_name_or_path", "someone/other"], False),
        (["--config", "model.yaml"], False),
    ],
)
def test_a_revision_goes_with_its_model(words, keeps, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.yaml").write_text("pretrained_model_name_or_path: someone/other\n")
    model, *_ = parse(STAGE_1, ["--preset", "paper", *words])
    assert (model.revision is not None) == keeps
    model, *_ = parse(STAGE_1, ["--preset", "paper", *words, "--revision", "main"])
    assert model.revision == "main"


@pytest.mark.parametrize(
    "kind, values, message",
    [
        (DataOptions, {"height": 0}, "`height` must be a positive multiple of 8, got 0"),
        (DataOptions, {"width": 100}, "`width` must be a positive multiple of 8, got 100"),
        (PairOptions, {"pose_radius": -1}, "`pose_radius` must be at least 0, got -1"),
        (PairOptions, {"reference_frames": "last"}, "`reference_frames` must be one of any, first, got 'last'"),
        (PairOptions, {"min_crop_scale": 1.5}, r"`min_crop_scale` must be within \(0, 1\], got 1.5"),
        (
            PairOptions,
            {"min_crop_scale": 0.5, "latent_cache_dir": "cache"},
            "`min_crop_scale` must be 1 with `latent_cache_dir`, since each crop has its own latents, got 0.5",
        ),
        (
            PairOptions,
            {"streaming": True, "latent_cache_dir": "cache"},
            "`latent_cache_dir` must be none with `streaming`, which keeps nothing, got 'cache'",
        ),
        (ObjectiveOptions, {"image_dropout_prob": 1.5}, r"`image_dropout_prob` must be within \[0, 1\], got 1.5"),
        (ObjectiveOptions, {"high_noise_fraction": -0.1}, r"`high_noise_fraction` must be within \[0, 1\], got -0.1"),
        (ObjectiveOptions, {"pose_dropout_prob": 0.95}, "`joint_dropout_prob` must sum to at most 1, got 1.05"),
        (ObjectiveOptions, {"snr_gamma": 0.0}, "`snr_gamma` must be above 0, got 0.0"),
        (
            ObjectiveOptions,
            {"noise_offset": float("nan")},
            "`noise_offset` must be a finite number, at least 0, got nan",
        ),
        (ObjectiveOptions, {"high_noise_start": 1000}, r"`high_noise_start` must be within \[0, 999\], got 1000"),
        (EncoderOptions, {"latent_channels": 0}, "`latent_channels` must be at least 1, got 0"),
        (
            EncoderOptions,
            {"component": "unet"},
            "`component` must be one of vae, .*, got 'unet'",
        ),
        (EncoderOptions, {"vae_channels": []}, r"`vae_channels` must be a list of .*, got \[\]"),
        (EncoderOptions, {"unet_channels": [8, 0]}, r"`unet_channels` must be a list of .*, got \[8, 0\]"),
        (EncoderOptions, {"patch_size": 7}, "`image_size` must be a multiple of `patch_size`, got 64, 7"),
        (EncoderOptions, {"kl_weight": -1.0}, "`kl_weight` must be a finite number, at least 0, got -1.0"),
        (TrainOptions, {"max_train_steps": -1}, "`max_train_steps` must be a finite number, at least 0, got -1"),
        (TrainOptions, {"learning_rate": 0.0}, "`learning_rate` must be a finite number above 0, got 0.0"),
        (TrainOptions, {"max_grad_norm": 0.0}, "`max_grad_norm` must be above 0, got 0.0"),
        (TrainOptions, {"ema_decay": 1.0}, r"`ema_decay` must be within \[0, 1\), got 1.0"),
        (TrainOptions, {"seed": -1}, "`seed` must be a finite number, at least 0, got -1"),
        (TrainOptions, {"mixed_precision": "fp8"}, "`mixed_precision` must be one of no, fp16, bf16, got 'fp8'"),
        (TrainOptions, {"report_to": "paper"}, "`report_to` must be one of tensorboard, wandb, all, got 'paper'"),
        (
            TrainOptions,
            {"optimizer": "muon", "use_8bit_adam": True},
            "`optimizer` must be adamw with `use_8bit_adam`, got muon",
        ),
        (ValidationOptions, {"num_validation_pairs": 0}, "`num_validation_pairs` must be at least 1, got 0"),
        (SubjectOptions, {"height": 100}, "`height` must be a positive multiple of 8, got 100"),
        (SubjectOptions, {"min_crop_scale": 0.0}, r"`min_crop_scale` must be within \(0, 1\], got 0.0"),
        (SubjectOptions, {"prior_prob": 1.0}, r"`prior_prob` must be within \[0, 1\), got 1.0"),
        (LoraOptions, {"train_mode": "some"}, "`train_mode` must be one of lora, full, got 'some'"),
        (SubjectOptions, {"person": "both"}, "`person` must be one of largest, score, centre, got 'both'"),
        (SubjectOptions, {"num_cached_crops": -1}, "`num_cached_crops` must be .* at least 0, got -1"),
        (
            LoraOptions,
            {"quantize_base": True, "train_mode": "full"},
            "`quantize_base` must go with `train_mode` lora: .*, got full",
        ),
        (LoraOptions, {"lora_alpha": 0}, "`lora_alpha` must be at least 1, got 0"),
        (DecoderOptions, {"decoder_max_train_steps": -1}, "`decoder_max_train_steps` must be .* at least 0, got -1"),
        (DecoderOptions, {"decoder_learning_rate": 0.0}, "`decoder_learning_rate` must be .* above 0, got 0.0"),
        (SubjectObjectiveOptions, {"pose_dropout_prob": 1.1}, r"`pose_dropout_prob` must be within \[0, 1\], got 1.1"),
        (SubjectTrainOptions, {"learning_rate": 0.0}, "`learning_rate` must be a finite number above 0, got 0.0"),
        (HubOptions, {"push_to_hub": True}, "`hub_model_id` is missing: with `push_to_hub`"),
        (HubOptions, {"hub_picture": "no/such.png"}, "`hub_picture` must be a file of .*, got 'no/such.png'"),
        (HubOptions, {"hub_picture": __file__}, "`hub_picture` must be a file of .png, .* got '.*test_options.py'"),
        (HubOptions, {"hub_model_id": "a/b/c"}, "`hub_model_id` must be a repository's id on the Hub, got 'a/b/c'"),
    ],
)
def test_values_out_of_range_are_refused(kind, values, message):
    with pytest.raises(ValueError, match=message):
        kind(**values)


def test_the_parser_passes_range_errors_on():
    with pytest.raises(ValueError, match="`height` must be a positive multiple of 8, got 7"):
        parse(STAGE_1, ["--height", "7"])


def test_options_are_frozen_and_each_has_help():
    for kind in (*STAGE_1, *STAGE_2, EncoderOptions):
        for item in dataclasses.fields(kind):
            text = item.metadata["help"]
            word = text.split()[0]
            assert not text.endswith(".") and ". " not in text, item.name
            assert word[0].islower() or not word[:2].istitle(), f"{item.name} begins in lower case, but for names"
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(kind(), dataclasses.fields(kind)[0].name, None)


def test_saved_options_are_read_back(tmp_path):
    options = parse(STAGE_1, ["--preset", "tiny", "--output_dir=-odd name", "--mixed_precision", "no"])
    path = save_options(tmp_path / "run", *options)
    assert path.name == "options.yaml" and path.read_text() == format_options(*options)
    assert set(yaml.safe_load(path.read_text())) == {
        item.name for kind in STAGE_1 for item in dataclasses.fields(kind)
    }
    assert parse(STAGE_1, ["--config", str(path)]) == options


def test_a_resumed_run_names_the_options_that_changed(tmp_path, caplog):
    save_options(tmp_path, *parse(STAGE_1, []))
    save_options(tmp_path, *parse(STAGE_1, ["--resume_from_checkpoint", "latest"]))
    assert not caplog.records
    save_options(tmp_path, *parse(STAGE_1, ["--resume_from_checkpoint", "latest", "--seed", "3", "--width", "64"]))
    (record,) = caplog.records
    assert record.message == f"Unlike the run before in {tmp_path}: `width` 64 (was 512), `seed` 3 (was 0)."
    save_options(tmp_path, *parse(STAGE_1, ["--seed", "4"]))
    assert len(caplog.records) == 1, "a new run is one of its own"


@pytest.mark.parametrize("content", ["- seed", "5", "seed: [", "", "\udcff"])
def test_saved_options_that_were_edited_are_named(tmp_path, content):
    path = tmp_path / "options.yaml"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=f"`resume_from_checkpoint` must .*{path}"):
        save_options(tmp_path, *parse(STAGE_1, ["--resume_from_checkpoint", "latest"]))


@pytest.mark.parametrize("name, kinds", PRESETS.items())
def test_every_preset_parses(name, kinds):
    hints = {key: hint for kind in kinds for key, hint in typing.get_type_hints(kind).items()}
    assert read_config(PRESETS_DIR / f"{name}.yaml", hints)
    folder, preset = name.split("/")
    assert len(parse(kinds, ["--preset", preset], presets=folder)) == len(kinds)


def test_every_preset_is_tested():
    files = PRESETS_DIR.rglob("*.yaml")
    assert {path.relative_to(PRESETS_DIR).with_suffix("").as_posix() for path in files} == set(PRESETS)


def test_the_paper_preset_has_the_paper_s_settings():
    model, data, pairs, objective, run, *_ = parse(STAGE_1, ["--preset", "paper"])
    assert model.pretrained_model_name_or_path == "CompVis/stable-diffusion-v1-4"
    assert model.revision == "ebb811dd71cdc38a204ecbdd6ac5d580f529fd8c" and not model.train_image_encoder
    assert (data.height, data.width, pairs.pose_radius) == (640, 512, 2)
    assert (objective.image_dropout_prob, objective.pose_dropout_prob, objective.joint_dropout_prob) == (0.05,) * 3
    assert (run.num_train_epochs, run.max_train_steps, run.learning_rate) == (5, None, 5e-6)
    assert run.train_batch_size * run.gradient_accumulation_steps == 16


def test_the_paper_preset_of_a_subject_has_the_paper_s_settings():
    _, lora, decoder, objective, run, *_ = finetune.parse_args(["--preset", "paper"])
    assert lora.train_mode == "full"
    assert (run.max_train_steps, run.learning_rate) == (500, 1e-5)
    assert (decoder.decoder_max_train_steps, decoder.decoder_learning_rate) == (1500, 5e-5)
    assert (objective.image_dropout_prob, objective.pose_dropout_prob, objective.joint_dropout_prob) == (0, 0, 0)


def test_the_full_preset_of_distillation_has_the_settings_of_lcm_lora():
    teacher, student, consistency, _, run, *_ = distill.parse_args(["--preset", "full"])
    assert teacher.gradient_checkpointing and (student.train_mode, student.rank) == ("lora", 64)
    assert (consistency.num_ddim_timesteps, run.learning_rate, run.max_train_steps) == (50, 1e-4, 1000)


def test_the_tiny_presets_lead_from_one_to_the_next():
    encoders = [
        train_encoders.parse_args(["--preset", f"tiny_{name}"]) for name in ("vae", "image_encoder", "pipeline")
    ]
    folders = [run.output_dir for *_, run in encoders]
    pipeline = encoders[2][0]
    assert [pipeline.vae_dir, pipeline.image_encoder_dir] == folders[:2]
    model, data, pairs, _, run, *_ = parse(STAGE_1, ["--preset", "tiny"])
    assert model.pretrained_model_name_or_path == folders[2] and model.train_image_encoder
    assert len({(group.height, group.width) for _, group, _ in encoders} | {(data.height, data.width)}) == 1
    assert run.output_dir not in folders and pairs.reference_frames == "first"
    assert f"--pipeline {run.output_dir} " in (ROOT / "Makefile").read_text()


SET_BY_PHASES = {"tracker_prefix", "first_tracker_step", "description"}


def test_loop_arguments_are_the_loop_s_keywords():
    keywords = inspect.signature(train).parameters
    arguments = TrainOptions().loop_arguments(100)
    taken = {name for name, parameter in keywords.items() if parameter.kind is parameter.KEYWORD_ONLY}
    assert set(arguments) == taken - {"validate", "validation_steps", *SET_BY_PHASES}


def test_session_arguments_are_the_session_s():
    taken = set(inspect.signature(open_session).parameters)
    assert set(TrainOptions().session_arguments()) == taken - {"settings", "first_step", "quantize_base"}


def test_every_option_of_a_pair_reaches_the_samples():
    values = {"pose_radius": 1, "reference_frames": "any", "max_reference_distance": 7, "fit": "crop"}
    values |= {"min_crop_scale": 0.5, "bad_rows": "skip"}
    names = {item.name for item in dataclasses.fields(PairOptions)}
    assert set(values) == names - {"latent_cache_dir", "streaming"}
    assert PairOptions(**values).settings(noise_offset=0.1) == PairSettings(noise_offset=0.1, **values)
    assert PairOptions().settings() == PairSettings(), "the same defaults"


def test_the_options_of_a_subject_are_arguments_of_their_functions():
    assert SubjectOptions(fit="crop", min_crop_scale=0.5).settings(1, 0.1) == PairSettings(
        pose_radius=1, fit="crop", min_crop_scale=0.5, noise_offset=0.1
    )
    assert set(LoraOptions().config_arguments()) == set(inspect.signature(build_lora_configs).parameters)
    assert set(DecoderOptions().loop_arguments()) < set(SubjectTrainOptions().loop_arguments(1))
    taken = set(inspect.signature(StageOneLoss).parameters)
    assert set(SubjectObjectiveOptions().loss_arguments()) == taken - {"pipeline", "noise_scheduler", "shape"}


def test_steps_follow_from_epochs_unless_given():
    run = TrainOptions(num_train_epochs=3, train_batch_size=4, gradient_accumulation_steps=2)
    assert run.loop_arguments(50)["max_train_steps"] == 19  # 150 samples, 8 per step
    assert run.loop_arguments(50, num_processes=2)["max_train_steps"] == 10
    assert dataclasses.replace(run, max_train_steps=7).loop_arguments(50)["max_train_steps"] == 7
    assert dataclasses.replace(run, max_train_steps=7).loop_arguments(None)["max_train_steps"] == 7
    with pytest.raises(ValueError, match="`max_train_steps` is missing: with `streaming`"):
        run.loop_arguments(None)
