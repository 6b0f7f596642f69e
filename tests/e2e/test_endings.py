"""However a run ends by its own doing, nothing of its cluster is left: no process, no folder, after six seconds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from endings import check
from inner import Run
from ways import FROM_WITHIN, OTHER_PLUGINS, WAYS, Ending


@pytest.mark.parametrize("ending", [*FROM_WITHIN, *OTHER_PLUGINS], ids=lambda ending: ending.way)
def test_nothing_is_left(ending: Ending, tmp_path: Path, record_property):
    check(ending, tmp_path, record_property)


LEAKY = """
import os, subprocess, tempfile
def test_it():
    subprocess.Popen(["sleep", "60"], start_new_session=True)
    tempfile.mkdtemp(prefix="ipcluster-")
"""


def test_the_check_finds_a_process_and_a_folder_that_are_left(tmp_path: Path):
    with Run(tmp_path, {"test_it": LEAKY}) as run:
        assert run.end() == 0, run.output()
        left = run.settle(limit=0.1)
        assert [told.split(": ")[1] for told in left.processes] == ["sleep 60"]
        assert [name.split("-")[0] for name in left.folders] == ["ipcluster"]
        run.spare(run.look().pop())
        assert run.settle(limit=0.1).processes == ()


def test_the_documentation_tells_every_way():
    page = (Path(__file__).parents[2] / "docs" / "explanation" / "endings.md").read_text()
    told = re.findall(r"^\| (.+) \| .+ \|$(?!\n\|---)", page, re.MULTILINE)
    assert told == [ending.way for ending in WAYS]
