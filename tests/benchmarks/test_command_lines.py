"""Command lines of all benchmarks: help, default output and bad values."""

import argparse
import importlib
import re
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks.scripts import OUTPUT_DIR, run_script
from benchmarks.subjects.trials import numbers_of_subjects
from tests.launch import ROOT


FILES = [path for path in (ROOT / "benchmarks").glob("*/*.py") if "def parse_args(" in path.read_text()]
NAMES = sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES)


@pytest.fixture
def required(tmp_path):
    """Words that a script cannot do without, by its name."""
    for name in ("frames", "iuv"):
        (tmp_path / name).mkdir()
    return {
        "benchmarks.claims.real_clip": ["--data", str(tmp_path)],
        "benchmarks.speed.data": ["--frames", "frames", "--iuv", "iuv"],
        "benchmarks.subjects.sweep": ["--", "--prior_dataset", "prior"],
    }


def actions_of(script, words, monkeypatch):
    """Return the actions of a script's parser, without the one of `--help`."""
    seen, parse = [], script.CommandParser.parse_args
    monkeypatch.setattr(script.CommandParser, "parse_args", lambda self, *a: seen.append(self) or parse(self, *a))
    script.parse_args(words)
    return [action for action in seen[0]._actions if action.dest != "help"], seen[0]


@pytest.mark.parametrize("name", NAMES)
def test_every_option_has_a_help_text_of_one_style_in_a_group(name, required, monkeypatch):
    actions, parser = actions_of(importlib.import_module(name), required.get(name, []), monkeypatch)
    for action in actions:
        assert action.help and not action.help.removesuffix("...").endswith("."), action.dest
        assert not action.help[0].isupper() or action.help[:2].isupper(), action.help
    assert [action.dest for action in parser._optionals._group_actions] == ["help"], "all others have a named group"


@pytest.mark.parametrize("name", NAMES)
def test_no_command_replaces_the_projects_figures_by_default(name, required):
    options = importlib.import_module(name).parse_args(required.get(name, []))
    assert options.output.parent == OUTPUT_DIR and options.output.suffix == ".json" and "{" not in str(options.output)
    if (ROOT / ".git").exists():
        command = ["git", "check-ignore", "--quiet", str(options.output)]
        assert subprocess.run(command, cwd=ROOT).returncode == 0


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_figures_that_the_help_names_exist(name, required, monkeypatch):
    actions, _ = actions_of(importlib.import_module(name), required.get(name, []), monkeypatch)
    (output,) = [action for action in actions if action.dest == "output"]
    committed = output.help.partition("; name ")[2].split()[0]
    assert (ROOT / committed).is_file() and Path(committed).parts[:2] == tuple(name.split(".")[:2])


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("speed.sampling", "--steps 0", "argument --steps: must be a whole number from 1 .*, got '0'"),
        ("speed.sampling", "--repeats -1", "argument --repeats: must be a whole number"),
        ("speed.sampling", "--device cuda", "`device` must be one of this machine, got 'cuda'"),
        ("speed.sampling", "--device nothing", "`device` must be one of this machine, got 'nothing'"),
        ("speed.sampling", "--device meta --lengths 16", "`--lengths` must be given only with `--device cpu`"),
        ("speed.training_step", "--device cuda", "`device` must be one of this machine, got 'cuda'"),
        ("speed.training_step", "--steps 0", "argument --steps: must be a whole number"),
        ("speed.training_step", "--batch_size 1.5", "argument --batch_size: must be a whole number"),
        ("speed.training_memory", "", "must go with CUDA and bitsandbytes, got cpu"),
        ("speed.data", "--frames none --iuv none --num_samples 0", "argument --num_samples: must be a whole number"),
        ("subjects.loading", "--num_subjects 1", "`num_subjects` must be 2 or more"),
        ("subjects.memory", "--steps 2", "`--steps` must be given only with `--device cuda` or `--device cpu`, got 2"),
        ("subjects.gains", "--num_processes 0", "argument --num_processes: must be a whole number"),
        ("claims.ablation", "--num_train " + "9" * 5000, "argument --num_train: must be a whole number"),
    ],
)
def test_a_bad_command_ends_in_one_line(name, words, message, monkeypatch, capsys, tmp_path):
    if "cuda" in words.split() and torch.cuda.is_available():
        pytest.skip("this machine has the device")
    script = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr("sys.argv", [f"{name}.py"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        run_script(script.main, lambda: script.parse_args(words.split()))
    code = stopped.value.code
    text = code if isinstance(code, str) else capsys.readouterr().err.splitlines()[-1]
    assert ": error: " in text and "\n" not in text and len(text) < 500
    assert re.search(message, text), text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "value"), [("num_subjects", 0), ("first_subject", -1)])
def test_subjects_have_numbers(name, value):
    options = argparse.Namespace(num_subjects=2, first_subject=1)
    assert list(numbers_of_subjects(options)) == [1, 2]
    setattr(options, name, value)
    with pytest.raises(ValueError, match=f"`{name}` must be . or more, got {value}"):
        numbers_of_subjects(options)
