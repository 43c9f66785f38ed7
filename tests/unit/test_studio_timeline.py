"""Source and result of the studio show the same moment, frame by frame, as the plan has it."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from musetalk_pipeline.plan import source_of
from serve_app.studio.assets import HERE

FPS, N_SOURCE, N_OUTPUT = 25, 10, 47
PROGRAM = """
  const { sourceAt } = await import(process.argv[1]);
  const [fps, source, output] = process.argv.slice(2).map(Number);
  const middle = (frame) => (frame + 0.5) / fps;
  const shown = (mode) => Array.from({ length: output }, (_, frame) =>
    Math.floor(sourceAt(middle(frame), source / fps, output / fps, mode).at * fps));
  console.log(JSON.stringify(Object.fromEntries(["bounce", "loop", "cut_off", "remap"].map((mode) =>
    [mode, shown(mode)]))));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
def test_source_and_result_show_the_same_moment() -> None:
    module = (HERE / "js" / "timeline.js").as_uri()
    numbers = [str(number) for number in (FPS, N_SOURCE, N_OUTPUT)]
    command = ["node", "--input-type=module", "--eval", PROGRAM, module, *numbers]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    shown = json.loads(ran.stdout)
    frames = range(N_OUTPUT)
    assert shown["bounce"] == [source_of(frame, N_SOURCE) for frame in frames]
    assert shown["loop"] == [frame % N_SOURCE for frame in frames]
    assert shown["remap"] == [int((frame + 0.5) * N_SOURCE / N_OUTPUT) for frame in frames]
    assert shown["cut_off"][:N_SOURCE] == list(range(N_SOURCE))
