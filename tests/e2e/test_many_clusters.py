"""The benchmark of clusters that start at the same moment counts what happened."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from waiting import WHOLE_RUN

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "many_clusters.py"


def test_a_try_counts_a_cluster_for_each_worker(tmp_path):
    command = [sys.executable, str(BENCHMARK), "--tries=1", "--workers=2", f"--json={tmp_path / 'figures'}"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=WHOLE_RUN, check=False)
    assert ran.returncode == 0, ran.stdout
    figures = json.loads((tmp_path / "figures").read_text())
    assert figures["tries"][0]["clusters"] == 2
    assert figures["summary"]["clean_tries"] == 1
