"""The spelling of options, the help, and how a command ends."""

import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

import animate
from tests.launch import ROOT
from training import evaluation, finetune, train, train_encoders
from training.engine.errors import RunStopped
from training.options import command
from training.options.command import CommandParser, run_command


TRAINERS = {"train": train, "finetune": finetune, "train_encoders": train_encoders}


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")


def help_of(entry_point, capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        entry_point.parse_args([*words, "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def sections_of(text):
    """Return the options of each section of a help text, by its title."""
    parts = re.split(r"^(\S.*):$", text, flags=re.MULTILINE)
    return {
        title: re.findall(r"^  (?:-h, )?(--\w+)", body, re.MULTILINE) for title, body in zip(parts[1::2], parts[2::2])
    }


@pytest.mark.parametrize("words", [["--a_b", "1", "--c_d=-x-y"], ["--a-b", "1", "--c-d=-x-y"]])
def test_options_are_spelt_with_underscores_or_hyphens(words):
    parser = CommandParser()
    parser.add_argument("--a_b", type=int)
    parser.add_argument("--c_d")
    parser.add_argument("rest", nargs="*")
    assert vars(parser.parse_args([*words, "--", "--e-f"])) == {"a_b": 1, "c_d": "-x-y", "rest": ["--e-f"]}


@pytest.mark.parametrize("name", TRAINERS)
def test_the_help_of_a_trainer_shows_each_option_once_and_the_most_used_first(name, capsys):
    module = TRAINERS[name]
    sections = sections_of(help_of(module, capsys))
    shown = [option for options in sections.values() for option in options]
    assert len(shown) == len(set(shown)) and not any("-" in option[2:] for option in shown)
    first, *others = sections
    assert sections[first] == ["--help", "--preset", "--config", *(f"--{name}" for name in module.MOST_USED)]
    assert len(module.MOST_USED) == 10
    titles = {kind.__doc__.partition(":")[0]: set(kind.__dataclass_fields__) for kind in module.OPTIONS}
    expected = [title.lower() for title, names in titles.items() if names - set(module.MOST_USED)]
    assert [title.partition(" (")[0].lower() for title in others] == expected
    names = {f"--{name}" for kind in module.OPTIONS for name in kind.__dataclass_fields__}
    switches = {option for option in shown if option.startswith("--no_")}
    assert set(shown) - switches - {"--help", "--preset", "--config"} == names
    assert {option.replace("--no_", "--") for option in switches} <= names


@pytest.mark.parametrize(("module", "others"), [(animate, 3), (evaluation, 3)])
def test_the_help_of_a_command_has_named_groups(module, others, capsys):
    sections = sections_of(help_of(module, capsys))
    assert list(sections)[:2] == ["options", "most used"] and len(sections) == 2 + others
    assert len(sections["most used"]) <= 10


def test_the_help_repeats_no_type_and_offers_only_what_is_taken(capsys):
    text = help_of(train_encoders, capsys)
    assert "--vae_channels INT ...  " in text and "(default: 48 96 128)" in text
    shown = {name: help_of(module, capsys) for name, module in TRAINERS.items()}
    assert {name for name, text in shown.items() if "--validation_steps" in text} == {"train", "train_encoders"}
    for module in TRAINERS.values():
        first, second = module.__doc__.strip().splitlines()[2:4]
        assert first.startswith("python training/") and second.startswith("accelerate launch ")


def test_the_help_shows_the_defaults_of_the_preset(capsys, tmp_path):
    (tmp_path / "more.yaml").write_text("seed: 41\n")
    plain = help_of(train, capsys)
    assert "peak learning rate (default: 5e-06)" in plain and re.search(r"--seed INT .*\(default: 0\)", plain)
    preset = help_of(train, capsys, "--preset", "tiny", "--config", str(tmp_path / "more.yaml"))
    assert "peak learning rate (default: 0.001)" in preset
    assert re.search(r"--seed INT .*\(default: 41\)", preset)


def run(main, monkeypatch, extra="training"):
    """Run a command in this process; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["/some/where/command.py"])
    monkeypatch.setattr(command, "spare_busy_cores", lambda: None)
    with pytest.raises(SystemExit) as stopped:
        run_command(lambda: SimpleNamespace(), main, "The frames are kept. `--resume` renders the others.", extra)
    return stopped.value.code


def fail_with(error):
    def main(options):
        raise error

    return main


def test_bad_input_ends_in_one_line(monkeypatch):
    said = run(fail_with(ValueError("`seed` must be at least 0, got -1.")), monkeypatch)
    assert said == "command.py: error: `seed` must be at least 0, got -1."


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RunStopped("The disk is full; the checkpoints are untouched.")]
)
def test_a_full_disk_ends_in_one_line(error, monkeypatch):
    assert run(fail_with(error), monkeypatch) == f"command.py: error: {error}"


def test_a_closed_pipe_ends_in_one_line():
    """As in `command | head -1`: no traceback, and no message from Python at its end."""
    code = "from training.options.command import ending_in_one_line as end\nwith end('', None): print('text')"
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert process.returncode == 1 and process.stderr.count("\n") == 1
    assert process.stderr.startswith("-c: error: a pipe was closed, such as that of the output")


@pytest.mark.parametrize(("extra", "target"), [("training", '".[training]"'), (None, ".")])
def test_a_missing_package_ends_in_one_line_that_names_the_extra(extra, target, monkeypatch):
    missing = ModuleNotFoundError("No module named 'datasets.x'", name="datasets.x")
    said = run(fail_with(missing), monkeypatch, extra)
    assert said == (
        "command.py: error: the package 'datasets' is not installed. Install what this command needs: pip install -e "
        + target
    )


@pytest.mark.parametrize("name", ["training.absent", "somebody_s_remote_code"])
def test_another_missing_module_keeps_its_traceback(name, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["command.py"])
    monkeypatch.setattr(command, "spare_busy_cores", lambda: None)
    with pytest.raises(ModuleNotFoundError):
        run_command(lambda: None, fail_with(ModuleNotFoundError("", name=name)), "")


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_ctrl_c_ends_in_one_line_of_one_process(rank, lines, monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert run(fail_with(KeyboardInterrupt()), monkeypatch) == 130
    said = capsys.readouterr().err
    assert said == "\ncommand.py: stopped. The frames are kept. `--resume` renders the others.\n" * lines


def test_idle_threads_sleep_unless_the_user_configured_openmp(monkeypatch):
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    command.spare_busy_cores()
    assert os.environ.pop("OMP_WAIT_POLICY") == "PASSIVE"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command.spare_busy_cores()
    assert "OMP_WAIT_POLICY" not in os.environ


@pytest.mark.slow
@pytest.mark.parametrize("script", ["training/train.py", "training/extract_poses.py"])
def test_openmp_is_configured_before_torch_is_imported(script, tmp_path):
    """A hook on torch's library records the setting that OpenMP reads at that moment."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "class Hook:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch._C': print('policy', os.environ.get('OMP_WAIT_POLICY'))\n"
        "sys.meta_path.insert(0, Hook())\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    environment |= {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "HF_HUB_OFFLINE": "1"}
    words = ["--train_data", "/none"] if "train.py" in script else ["--input", "/none", "--output_dir", "out"]
    command = [sys.executable, str(ROOT / script), *words]
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert process.stdout.splitlines()[0] == "policy PASSIVE", process.stderr


@pytest.mark.slow
def test_ctrl_c_while_a_video_is_rendered(tmp_path):
    """The real signal: one line, no traceback, and the finished frames are kept."""
    words = ["--model", "model_card/tiny", "--image", "model_card/sample/photo.png", "--device", "cpu"]
    words += ["--poses", "model_card/sample/poses", "--chunk_size", "1", "--output", str(tmp_path / "video.mp4")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "animate.py", *words], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    frames = tmp_path / ".video.mp4.frames"
    deadline = time.monotonic() + 120
    while len(list(frames.glob("*.png"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "Traceback" not in said
    assert said.rstrip().endswith(
        "stopped. The finished frames are kept. The same command with `--resume` renders the others."
    )
    assert len(list(frames.glob("*.png"))) >= 2
