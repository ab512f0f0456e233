"""Bad command lines of all entry points: one line, exit code 1 or 2, nothing written, and no model loaded."""

import shlex

import huggingface_hub
import pytest
import transformers
from diffusers import DiffusionPipeline
from PIL import Image

import animate
from pipeline_dreampose import DreamPosePipeline
from tests.tiny_components import get_dummy_image, get_dummy_iuv
from training import (
    convert_original_checkpoint,
    evaluation,
    export_tiny,
    extract_poses,
    finetune,
    prepare_dataset,
    push_model,
    train,
    train_encoders,
)
from training.media.pictures import write_video
from training.options import command
from training.options.command import run_command


LONG = "x" * 300
ANIMATE = (animate, "--model model --image photo.png --poses poses")
DRIVE = (animate, "--model model --image photo.png --driving dance.mp4 --densepose file --output new.mp4")
TRAIN = (train, "--pretrained_model_name_or_path model --train_data data --output_dir run")
FINETUNE = (finetune, "--pretrained_model_name_or_path model --instance_data_dir photos --output_dir run")
ENCODERS = (train_encoders, "--train_data data --output_dir run")
EVALUATE = (evaluation, "--model model --dataset data --output run")
EXTRACT = (extract_poses, "--input poses --output_dir run")
PREPARE = (prepare_dataset, "--output_dir run --densepose densepose.pt --video_dir photos --device cpu")
CONVERT = (convert_original_checkpoint, "--unet a.pth --adapter b.pth --output_dir run")
EXPORT = (export_tiny, "--sample_dir run")
PUSH = (push_model, "--hub_model_id you/model")

# Files for `--config`.
CONFIGS = {
    "bomb": "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefghi", "bcdefghij")
    ),
    "deep": "train_data: " + "[" * 20_000 + "]" * 20_000,
    "large": "train_data: " + "x" * 200_000,
    "tag": "train_data: !!python/object/apply:os.system ['touch pwned']",
    "set": "train_data: !!set {a, b}",
    "date": "train_data: 2024-01-01",
    "no_date": "train_data: 2024-13-45",
    "digits": "height: " + "9" * 5000,
    "list": "- 1",
    "number": "5",
    "empty": "",
    "mapping": "train_data: {a: b}",
    "key": "? [a, b]\n: 1",
    "long_key": "? " + "x" * 50_000 + "\n: 1",
    "long_value": "height: [" + "x" * 50_000 + "]",
    "nulls": "train_data: [null]",
    "binary": b"\xff\xfe\x00train_data",
    "tab": "train_data:\t- a\n\t- b",
}  # fmt: skip

CASES = [
    # Numbers out of range, for every command that takes them.
    *((ANIMATE, f"--{name} {value}", f"`{name}` must be") for name, value in (
        ("fps", "inf"), ("fps", "nan"), ("fps", "0"), ("fps", "-1"), ("fps", "1e9"), ("fps", "1e-9"),
        ("scale", "0"), ("scale", "100000"), ("strip_frames", "0"), ("strip_frames", "99999999"),
        ("chunk_size", "0"), ("chunk_size", "-3"), ("chunk_size", "99999999"),
        ("num_inference_steps", "0"), ("num_inference_steps", "1000000000"), ("height", "0"), ("height", "-64"),
        ("width", "99999"), ("seed", "-1"), ("seed", "18446744073709551616"), ("image_guidance_scale", "nan"),
        ("image_guidance_scale", "inf"), ("pose_guidance_scale", "-1"), ("pose_guidance_scale", "1e308"),
    )),
    (ANIMATE, "--seed 1.5", "argument --seed: invalid int value: '1.5'"),
    (ANIMATE, "--seed " + "9" * 5000, "argument --seed: invalid int value"),
    (ANIMATE, "--height x", "argument --height: invalid int value"),
    (ANIMATE, "--grid 1 nan", "`grid` must be a finite number"),
    (ANIMATE, "--grid 1,,2 1", "argument --grid: invalid scales value"),
    (ANIMATE, "--grid 1", "argument --grid: expected 2 arguments"),
    (ANIMATE, "--grid 1 2 --output a.mp4", "`--output` must end in .png"),
    (ANIMATE, "--output a.avi", "`--output` must end in .mp4"),
    (ANIMATE, "--output .", "`--output` must end in .mp4"),
    (ANIMATE, "--output ..", "`--output` must end in .mp4"),
    (ANIMATE, "--output /", "`--output` must end in .mp4"),
    *((base, f"--{name} ''", f"argument --{name}: must be a path, got ''$") for base, name in (
        (ANIMATE, "output"), (ANIMATE, "poses"), (EVALUATE, "output"), (EXTRACT, "input"), (EXTRACT, "output_dir"),
        (PREPARE, "output_dir"), (PREPARE, "video_dir"), (CONVERT, "unet"), (CONVERT, "output_dir"),
        (EXPORT, "sample_dir"), (PUSH, "folder"),
    )),
    *((ANIMATE, f"--output new.mp4 --{name} ''", f"`{name}` must .*, got '': there is no such folder, and it is no id")
      for name in ("model", "lora")),
    *((base, f"--{name} ''", f"`{name}` must be a folder that can be written, got '', which is empty.$")
      for base, name in ((TRAIN, "output_dir"), (FINETUNE, "output_dir"), (ENCODERS, "output_dir"),
                         (TRAIN, "latent_cache_dir"))),
    (ANIMATE, "--output file", "`output` must be a folder that can be written, got 'file', which is a file"),
    (ANIMATE, "--output folder.mp4", "`output` must be a file .*, which is a folder"),
    (ANIMATE, "--output file/a.mp4", "`output` must be a file .*, which is below the file"),
    (ANIMATE, f"--output {LONG}.mp4", "`output` must be a file .*, which is too long"),
    (ANIMATE, "--output " + "/".join(["long"] * 1000) + ".mp4", "`output` must be a file .*, which is too long"),
    (ANIMATE, "--output link.mp4", "`output` must be a file .* is a link that leads nowhere"),
    (ANIMATE, "--output photo.mp4", "`output` must spare what is read"),
    (ANIMATE, "--output users", "`output` must be a folder whose numbered PNGs"),
    (ANIMATE, "--output stopped.mp4", r"stopped.mp4.frames' holds frames of a stopped run \(1\). Give `--resume`"),
    (ANIMATE, "--output mine.mp4", "`output` must replace only files of earlier runs, got 'mine.png', which no run"),
    (ANIMATE, "--output mine.gif", "got 'mine.png', .*, or give `--overwrite` to replace it"),
    (ANIMATE, "--output mine.png --grid 1 2", "`output` must replace only files of earlier runs, got 'mine.png'"),
    *((ANIMATE, f"--grid 1 2 --{words}", f"`--{words.split()[0]}` must be given without `--grid`") for words in (
        "gif", "resume", "fps 12", "strip_frames 8", "chunk_size 8", "image_guidance_scale 2", "pose_guidance_scale 2",
    )),
    (ANIMATE, "--output frames --fps 30", "`--fps` must be given only with `--gif` or an `--output` that"),
    (ANIMATE, "--revision main", "`--revision` must be given only with a `--model` on the Hub, got 'main'"),
    (ANIMATE, "--output stopped.mp4 --resume --overwrite", "`overwrite` must be given without `resume`"),
    (ANIMATE, "--output new.mp4 --image none.png", "`image` must be a file"),
    (ANIMATE, "--output new.mp4 --image poses", "`image` must be a file"),
    (ANIMATE, "--output new.mp4 --image file", "`image` must be a readable picture"),
    (ANIMATE, "--output new.mp4 --poses none", "`poses` must be a folder"),
    (ANIMATE, "--output new.mp4 --poses photos", "`poses` must hold"),
    (ANIMATE, "--output new.mp4 --model no/such", "there is no such folder, and the Hub cannot be reached"),
    (ANIMATE, "--output new.mp4 --model a/b/c", "there is no such folder, and it is no id"),
    (ANIMATE, f"--output new.mp4 --model {LONG}", "it is no id"),
    (ANIMATE, "--output new.mp4 --model photos", "`model` must be the folder of a DreamPosePipeline"),
    (ANIMATE, "--output new.mp4 --lora no/such", "`lora` must be .* the Hub cannot be reached"),
    (ANIMATE, "--output new.mp4 --device nothing", "`device` must"),
    (ANIMATE, "--dtype int8", "invalid choice: 'int8'"),
    (ANIMATE, f"--{LONG * 30}", "unrecognized arguments: --xxx.* [.][.][.] x"),
    ((animate, ""), "", "the following arguments are required: --model"),
    # A driving video.
    *((DRIVE, f"--{name} {value}", f"`{name}` must be") for name, value in (
        ("start", "-1"), ("start", "9999999"), ("end", "0"), ("end", "9999999"), ("every", "0"), ("every", "9999999"),
        ("max_gap", "-1"), ("median", "1000"),
    )),
    (DRIVE, "--start 1.5", "argument --start: invalid int value: '1.5'"),
    (DRIVE, "--start 3 --end 3", "`--end` must be more than `--start`, 3, got 3"),
    (DRIVE, "--poses poses", "argument --poses: not allowed with argument --driving"),
    ((animate, "--model model --image photo.png"), "", "one of the arguments --poses --driving is required"),
    ((animate, "--model model --image photo.png"), "--driving dance.mp4",
     "`--densepose` must be given with `--driving`, got 'dance.mp4' without it"),
    (DRIVE, "--driving none.mp4", "`driving` must be a folder or a readable video, got 'none.mp4': it does not exist"),
    (DRIVE, "--driving file", "`driving` must be a folder or a readable video, got 'file'"),
    (DRIVE, "--driving pipe", "`driving` must be a folder or a readable video, got 'pipe': it is not a file"),
    (DRIVE, "--driving photos", "`driving` must hold pictures .*, got 'photos'"),
    (DRIVE, "--driving ''", "argument --driving: must be a path, got ''"),
    (DRIVE, "--densepose none", "`densepose` must be a TorchScript file"),
    (DRIVE, "--densepose ''", "`densepose` must be a TorchScript file"),
    (DRIVE, "--person tallest", "argument --person: invalid choice: 'tallest'"),
    (DRIVE, "--output dance.mp4", "`output` must spare what is read"),
    (DRIVE, "--output kept/new.mp4", "`output` must be a folder that can be written, .*which is a file"),
    (DRIVE, "--save_poses mine.png", "`save_poses` must be a folder that can be written, .*, which is a file"),
    (DRIVE, "--output mine --save_poses other/../mine", "`--save_poses` must be another folder than `--output`"),
    (DRIVE, "--save_poses users", "`save_poses` must be a folder whose numbered PNGs are of an earlier run"),
    (DRIVE, "--save_poses rated", "`save_poses` must replace only files of earlier runs, got 'rated/fps.json'"),
    (DRIVE, "--save_poses .", "`save_poses` must spare what is read"),
    (DRIVE, "--save_poses new --output new", "`--save_poses` must be another folder than `--output`, got 'new'"),
    (DRIVE, "--sound", "`sound` must be given with a `driving` that has sound, got 'dance.mp4' with no sound"),
    (DRIVE, "--sound --fps 20", "`--fps` must be given without `--sound`, .*, got 20.0"),
    (DRIVE, "--sound --output new.gif", "`--sound` must be given only with an `--output` that ends in .mp4"),
    (DRIVE, "--sound --output new.png --grid 1 1", "`--sound` must be given without `--grid`"),
    (DRIVE, "--image_iuv none.png", "`image_iuv` must be a readable picture, got 'none.png': it is not a file"),
    (DRIVE, "--image_iuv photo.png", "`image_iuv` must hold part codes 1..24 in its blue channel, got [0-9]+ at most"),
    (DRIVE, "--image_iuv black.png", "`image_iuv` must hold part codes .*, got 0 at most in 'black.png'. Nobody is"),
    (DRIVE, "--image_iuv lossy.jpg", "`image_iuv` must be a lossless RGB picture .*, got JPEG, which mixes U and V"),
    (DRIVE, "--image_iuv gray.png", "`image_iuv` must be a lossless RGB picture .*, got mode L in 'gray.png'"),
    (DRIVE, "--image_iuv wide.png", "`image_iuv` must have the proportions of the photo, 24 x 32, got 64 x 32"),
    (DRIVE, "--image_iuv poses/0.png --align none", "`--image_iuv` must be given without `--align none`"),
    (DRIVE, "--align arms", "argument --align: invalid choice: 'arms'"),
    (ANIMATE, "--align place", "`--align` must be given with `--image_iuv` or `--densepose`, .*, got 'place'"),
    (ANIMATE, "--densepose file --align none", "`--densepose` must be given with `--driving`, or without `--align n"),
    (ANIMATE, "--densepose file --image_iuv poses/0.png", "`--densepose` must be given with `--driving`, or without"),
    (ANIMATE, "--sound", "`--sound` must be given only with `--driving`"),
    *((ANIMATE, f"--{words}", f"`--{words.split()[0]}` must be given only with `--densepose`") for words in (
        "person score", "max_gap 3", "median 1",
    )),
    (ANIMATE, "--start 1 --output new.mp4", "`start` must be less than the number of frames, 1, got 1"),
    (ANIMATE, "--end 2 --output new.mp4", "`end` must be at most the number of frames, 1, got 2"),
    (ANIMATE, "--poses rated --output new.mp4", r"`poses` must have an `fps` within \[0.01, 1000\] in its fps.json"),
    (EXTRACT, "--output_dir rated", "`output_dir` must replace only files of earlier runs, got 'rated/fps.json'"),
    (EXTRACT, "--input rated", r"`input` must have an `fps` within \[0.01, 1000\] in its fps.json, got 'fast'"),
    # YAML files.
    *((TRAIN, f"--config {name}.yaml", rule) for name, rule in (
        ("bomb", "has an anchor, an alias or a tag"), ("deep", "nested more deeply"),
        ("large", "more than 100000 char"), ("tag", "an alias or a tag"),
        ("set", "an alias or a tag"), ("date", "`train_data` in .* must be text"),
        ("no_date", "`config` must be a readable YAML file"), ("digits", "`config` must be a readable YAML file"),
        ("list", "must hold one mapping"), ("number", "must hold one mapping"), ("empty", "must hold one mapping"),
        ("mapping", "nested more deeply|must be text"), ("key", "`config` must be a readable YAML file"),
        ("long_key", "is no option of this command"), ("long_value", "`height` in .* must be a whole number"),
        ("nulls", "must be text"), ("binary", "`config` must be a readable YAML file"),
        ("tab", "`config` must be a readable YAML file"), ("none", "it does not exist"),
    )),
    (TRAIN, "--config poses", "it is no file"),
    (TRAIN, "--config pipe", "it is no file"),
    (FINETUNE, "--config bomb.yaml", "has an anchor, an alias or a tag"),
    (ENCODERS, "--config deep.yaml", "nested more deeply"),
    # Trainers.
    *((base, f"--{name} {value}", f"`{name}` must be") for base in (TRAIN, FINETUNE, ENCODERS) for name, value in (
        ("seed", "18446744073709551616"), ("seed", "-1"), ("max_train_steps", "9" * 30),
        ("learning_rate", "nan"), ("learning_rate", "0"), ("train_batch_size", "0"),
        ("train_batch_size", "99999999999"), ("adam_beta1", "1"),
        ("ema_decay", "1"), ("dataloader_num_workers", "100000"), ("logging_steps", "0"), ("height", "99999992"),
        ("output_dir", "file"), ("output_dir", "file/run"), ("output_dir", LONG), ("mixed_precision", "fp8"),
        ("report_to", "everything"),
    )),
    (TRAIN, "--rank 4", "unrecognized arguments"),
    (TRAIN, "--pose_radius 1000", "`pose_radius` must be at most 64"),
    (TRAIN, "--latent_cache_dir file", "`latent_cache_dir` must be a folder"),
    (TRAIN, "--snr_gamma inf", "`snr_gamma` must be"),
    (TRAIN, "--validation_inference_steps 100000", "`validation_inference_steps` must be at most 1000"),
    (TRAIN, "--hub_model_id a/b/c", "`hub_model_id` must be a repository's id"),
    (TRAIN, "--hub_picture none.png", "`hub_picture` must be a file"),
    (TRAIN, "--pretrained_model_name_or_path no/such", "there is no such folder, and the Hub cannot be reached"),
    (FINETUNE, "--rank 9999999", "`rank` must be at most 1280"),
    (FINETUNE, "--lora_alpha 99999999999", "`lora_alpha` must be at most"),
    (FINETUNE, "--num_cached_crops 99999999999", "`num_cached_crops` must be at most"),
    (FINETUNE, "--sample_inference_steps 5000", "`sample_inference_steps` must be at most 1000"),
    (FINETUNE, "--instance_data_dir none", "`instance_data_dir` must"),
    (FINETUNE, "--instance_data_dir ''", "`instance_data_dir` must be a folder of photos, got ''"),
    (TRAIN, "--resume_from_checkpoint ''", "`resume_from_checkpoint` must .*, got ''"),
    (FINETUNE, "--pretrained_model_name_or_path none", "`pretrained_model_name_or_path` is missing"),
    (ENCODERS, "--component decoder", "invalid choice: 'decoder'"),
    (ENCODERS, "--vae_channels 0", "`vae_channels` must be"),
    (ENCODERS, "--unet_channels 1 2 3 4 5 6 7 8 9", "`unet_channels` must be at most 8 numbers"),
    (ENCODERS, "--num_hidden_layers 100000", "`num_hidden_layers` must be at most 256"),
    (ENCODERS, "--component pipeline --vae_dir none", "`vae_dir` is missing"),
    ((train_encoders, "--output_dir run"), "--component pipeline --vae_dir no/such --image_encoder_dir photos",
     "`vae_dir` must be the folder of a trained model, got 'no/such'"),
    # Evaluation.
    *((EVALUATE, f"--{name} {value}", f"`{name}` must be") for name, value in (
        ("num_clips", "0"), ("num_clips", "99999999"), ("frames_per_clip", "0"), ("num_consecutive", "2"),
        ("seed", "18446744073709551616"), ("scale", "100000"), ("num_inference_steps", "1000000000"),
        ("image_guidance_scale", "nan"), ("num_pictures", "-1"), ("chunk_size", "0"), ("output", "file"),
        ("output", "file/run"), ("output", LONG), ("device", "nothing"), ("inception", "none.pt"),
    )),
    (EVALUATE, "--resume --overwrite", "`overwrite` must be given without `resume`"),
    (EVALUATE, "--model no/such --dataset procedural", "the Hub cannot be reached"),
    (EVALUATE, "--num_consecutive 16 --i3d file --dataset procedural", "`i3d` must come with clips of at least 17"),
    (EVALUATE, "--revision main", "`--revision` must be given only with a `--model` on the Hub, got 'main'"),
    # Poses and data.
    (EXTRACT, "--median 100000", "`median` must be at most 100"),
    (EXTRACT, "--median -1", "`median` must be at least 0"),
    (EXTRACT, "--max_gap 99999999999", "`max_gap` must be at most"),
    (EXTRACT, "--input none", "none"),
    (EXTRACT, "--output_dir file", "`output_dir` must be a folder"),
    (EXTRACT, "--output_dir users", "`output_dir` must be a folder whose numbered PNGs"),
    (EXTRACT, "--output_dir poses", "`output_dir` must spare what is read"),
    (EXTRACT, "--densepose no/such/model.pt", "there is no such folder, and the Hub cannot be reached"),
    (EXTRACT, "--densepose none", "`densepose` must be a TorchScript file"),
    (EXTRACT, "--size 1 1", "`--size` must be given only with a dump"),
    (EXTRACT, "--channel_order iuv", "`channel_order` must fit the pictures, got 'iuv', .* 'vui' fits"),
    (EXTRACT, "--person largest", "`--person` must be given only with `--densepose` or a dump"),
    (EXTRACT, "--input none", "`input` must be a folder"),
    (EXTRACT, "--input a.pkl", "`--size HEIGHT WIDTH` must be given for a dump"),
    (EXTRACT, "--input a.pkl --size 0 0", "`--size` must be at least 1 pixel"),
    (PREPARE, "--num_proc 0", "`--num_proc` must be at least 1"),
    (PREPARE, "--num_proc 99999999", "`--num_proc` must be at most 1024"),
    (PREPARE, "--output_dir file", "`output_dir` must be a folder"),
    (PREPARE, "--video_dir file", "`--video_dir` must be a folder"),
    (PREPARE, "--push_to_hub a/b/c", "`--push_to_hub` must be OWNER/NAME"),
    (PREPARE, "--median 1000", "`median` must be at most 100"),
    (PREPARE, "--splits all", "invalid choice: 'all'"),
    (PREPARE, "--densepose none", "`densepose` must be a TorchScript file"),
    # Conversion, export and push.
    (CONVERT, "--output_dir file", "`output_dir` must be a"),
    (CONVERT, "--output_dir file/run", "`output_dir` must be a"),
    (CONVERT, "--unet none.pth", "none.pth"),
    (CONVERT, "--rank 4", "`--rank` must be given only with `--subject_of`"),
    (CONVERT, "--subject_of model --base x", "`--base` must be given without `--subject_of`, got 'x'"),
    (CONVERT, "--base model --revision main", "`--revision` must be given only with a model on the Hub"),
    (CONVERT, "--output_dir .", "`output_dir` must be a new or empty folder"),
    (CONVERT, "--image_range 0_255", "invalid choice"),
    (EXPORT, "--num_frames 0", "`num_frames` must be at least 1"),
    (EXPORT, "--num_frames 99999999", "`num_frames` must be at most"),
    (EXPORT, "--subject -1", "`subject` must be"),
    (EXPORT, "--motion 99999999999", "`motion` must be at most"),
    (EXPORT, "--image_guidance_scale nan", "`image_guidance_scale` must be"),
    (EXPORT, "--sample_dir file", "`sample_dir` must be a folder"),
    (EXPORT, "--sample_dir own", "`sample_dir` must have no poses but those of this sample"),
    (EXPORT, "--pipeline no/such --model_dir tiny", "`pipeline` must be .* the Hub cannot be reached"),
    (EXPORT, "--model_dir tiny", "`--model_dir` must be given only with .* or `--few_steps`, got 'tiny'"),
    (EXPORT, "--pipeline model --model_dir run", "`--sample_dir` must be another folder than `--model_dir`"),
    (EXPORT, "--pose_guidance_scale 2", "`--pose_guidance_scale` must be given only with `--pipeline`, got 2.0"),
    (PUSH, "--folder none", "`folder` must be the folder of a DreamPosePipeline, got 'none', which does not exist"),
    (PUSH, "--folder file", "`folder` must be the folder of a DreamPosePipeline, got 'file', which is a file"),
    (PUSH, "--folder photos", "which has no model_index.json"),
    (PUSH, "", "the following arguments are required: --folder"),
    *((PUSH, f"--folder model --hub_model_id {name}", "^script.py: error: `hub_model_id` must be OWNER/NAME .{,300}$")
      for name in ("a/b/c", LONG * 5, "''", "a--b", "'a b/c'")),
]  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with the files that the commands name."""
    folder = tmp_path_factory.mktemp("work")
    for name in ("model", "photos", "data", "users", "own/poses", ".stopped.mp4.frames", "folder.mp4"):
        (folder / name).mkdir(parents=True)
    get_dummy_image().save(folder / "photo.png")
    (folder / "poses").mkdir()
    get_dummy_iuv().save(folder / "poses" / "0.png")
    (folder / "model" / "model_index.json").write_text('{"_class_name": "DreamPosePipeline"}')
    for name in ("file", "mine.png", "users/00007.png", "own/poses/mine.png", ".stopped.mp4.frames/00000.png"):
        (folder / name).write_text("the user's")
    (folder / ".stopped.mp4.frames" / "settings.json").write_text("{}")
    write_video([Image.new("RGB", (32, 32), (9, 9, 9))] * 3, folder / "dance.mp4")
    for name, mode, size in (
        ("black.png", "RGB", (24, 32)),
        ("lossy.jpg", "RGB", (24, 32)),
        ("gray.png", "L", (24, 32)),
    ):
        Image.new(mode, size).save(folder / name)
    get_dummy_iuv(width=64).save(folder / "wide.png")
    for name in ("kept", "rated"):
        (folder / name).mkdir()
    (folder / "kept" / ".dreampose_poses").write_text("the user's")
    (folder / "rated" / "fps.json").write_text('{"fps": "fast"}')
    get_dummy_iuv().save(folder / "rated" / "0.png")
    (folder / "link.mp4").symlink_to(folder / "nothing" / "here.mp4")
    for name, text in CONFIGS.items():
        (folder / f"{name}.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    command.os.mkfifo(folder / "pipe")
    return folder


def files_of(folder):
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*") if not path.is_dir()}


def test_there_are_enough_cases_for_each_entry_point():
    counts = {}
    for (script, _), *_ in CASES:
        counts[script] = counts.get(script, 0) + 1
    assert len(CASES) >= 100 and len(counts) == 10 and min(counts.values()) >= 4


@pytest.mark.parametrize(("base", "words", "message"), CASES, ids=[f"{c[0][0].__name__} {c[1][:40]}" for c in CASES])
def test_a_bad_command_ends_in_one_line(base, words, message, work, monkeypatch, capsys):
    script, first = base
    for kind in (DreamPosePipeline, DiffusionPipeline, transformers.PreTrainedModel):
        monkeypatch.setattr(kind, "from_pretrained", lambda *_, **__: pytest.fail("a model was loaded"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(command, "spare_busy_cores", lambda: None)
    monkeypatch.setattr("sys.argv", ["script.py"])
    monkeypatch.chdir(work)
    before = files_of(work)
    with pytest.raises(SystemExit) as stopped:
        run_command(lambda: script.parse_args(shlex.split(f"{first} {words}")), script.main, "")
    code = stopped.value.code
    text = code if isinstance(code, str) else capsys.readouterr().err.splitlines()[-1]
    assert code == 2 or isinstance(code, str), "exit code 2, or 1 with a text"
    assert ": error: " in text and "\n" not in text and len(text) < 3000
    assert command.re.search(message, text), text[:1000]
    assert files_of(work) == before, "nothing is written"
