"""However a run is ended from outside, nothing of its cluster is left: no process, no folder, after six seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
from endings import check
from ways import CLUSTER, FROM_OUTSIDE, Ending


@pytest.mark.parametrize("ending", [*FROM_OUTSIDE, *CLUSTER], ids=lambda ending: ending.way)
def test_nothing_is_left(ending: Ending, tmp_path: Path, record_property):
    check(ending, tmp_path, record_property)
