"""Running the code that the page gives with a result."""

import os
import subprocess
import sys
from zipfile import ZipFile

from tests.launch import ROOT


def run_again(archive, clone, **environment):
    """Unpack a download in a new folder that looks like a clone, run its lines and its command, and return the folder.

    The lines' frames lie there as `0.png`, `1.png`, ..., and the command's video as `video.mp4`.
    """
    (clone / "bin").mkdir(parents=True)
    for name in ("animate.py", "model_card"):
        (clone / name).symlink_to(ROOT / name)
    ZipFile(archive).extractall(clone)
    (clone / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (clone / "bin" / "python").chmod(0o755)
    saving = '\nfor index, frame in enumerate(frames):\n    frame.save(f"{index}.png")\n'
    (clone / "again.py").write_text((clone / "dreampose" / "again.py").read_text() + saving)
    paths = {"PYTHONPATH": str(ROOT), "PATH": f"{clone}/bin:{os.environ['PATH']}"}
    for command in (["python", "again.py"], ["sh", "dreampose/again.sh"]):
        done = subprocess.run(command, cwd=clone, env=os.environ | paths | environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return clone
