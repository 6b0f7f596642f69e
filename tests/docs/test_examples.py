from __future__ import annotations

import json
import shutil

import pytest
from pages import ROOT, count_tests

NOTE = """
import json
import pytest

@pytest.fixture(scope="session", autouse=True)
def note(ipcluster, worker_id):
    pids = [ipcluster.process.pid, *(engine.pid for engine in ipcluster.engines)]
    with open(f"cluster-{worker_id}.json", "w") as file:
        json.dump({"pids": pids, "id": ipcluster.cluster_id}, file)
"""


@pytest.fixture
def examples(reader):
    shutil.copytree(ROOT / "examples", reader.pytester.path, dirs_exist_ok=True)
    reader.paste({"conftest.py": NOTE})
    return (reader.pytester.path / "test_sweep.py").read_text(encoding="utf-8")


def test_workers_of_xdist_have_a_cluster_each(reader, examples):
    reader.pytest("-n", "2", "--ipcluster-n=2").assert_outcomes(passed=count_tests(examples))
    one, other = (json.loads(path.read_text()) for path in sorted(reader.pytester.path.glob("cluster-*.json")))
    assert set(one["pids"]).isdisjoint(other["pids"])
    assert one["id"] != other["id"]
    assert reader.left_behind() == []
