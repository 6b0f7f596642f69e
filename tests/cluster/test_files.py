"""What a cluster writes is found, and read only when it is whole."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from pytest_ipcluster.cluster import files as files_module
from pytest_ipcluster.cluster.files import ClusterFiles, profile_folder, read_finished_json
from pytest_ipcluster.cluster.roles import read_roles
from pytest_ipcluster.errors import ClusterError

CONTROLLER = {"class": "local", "state": {"pid": 11, "output_file": "/log/controller", "state": "running"}}
LOCAL_SET = {
    "n": 2,
    "pid": -1,
    "state": "running",
    "engines": {"0": {"pid": 21, "output_file": "/log/0"}, "1": {"pid": 22, "output_file": "/log/1"}},
}


@pytest.fixture
def files(tmp_path) -> ClusterFiles:
    files = ClusterFiles(tmp_path, "abc")
    files.create_folders()
    return files


def write(files: ClusterFiles, content: dict[str, object] | str) -> None:
    files.cluster_file.write_text(content if isinstance(content, str) else json.dumps(content))


def test_files_carry_the_clusters_id(files):
    names = [path.name for path in (files.client_file, files.engine_file, files.cluster_file)]
    assert names == ["ipcontroller-abc-client.json", "ipcontroller-abc-engine.json", "cluster-abc.json"]


def test_files_of_a_cluster_without_an_id_are_named_as_ipyparallel_does(tmp_path):
    files = ClusterFiles(tmp_path, "")
    assert files.client_file.name == "ipcontroller-client.json"
    assert files.cluster_file.name == "cluster-.json"


def test_a_connection_file_that_is_not_there_is_none(files):
    assert files.client_connection() is None


def test_a_connection_file_that_is_half_written_is_none(files):
    files.client_file.write_text('{"key": "abc')
    assert files.client_connection() is None


def test_a_missing_engine_file_is_an_error_that_names_it(files):
    with pytest.raises(ClusterError, match=r"ipcontroller-abc-engine\.json"):
        files.engine_connection()


def test_removing_takes_only_this_clusters_files(files):
    other = files.profile / "security" / "ipcontroller-other-client.json"
    for path in (files.client_file, files.cluster_file, files.logs / "ipengine-abc-0.log", other):
        path.touch()
    files.remove()
    assert [path.name for path in files.profile.rglob("*") if path.is_file()] == [other.name]


def test_files_without_an_id_are_left_alone(tmp_path):
    files = ClusterFiles(tmp_path, "")
    files.create_folders()
    files.client_file.touch()
    files.remove()
    assert files.client_file.exists()


def test_a_profile_that_does_not_exist_is_not_made(tmp_path):
    ClusterFiles(tmp_path / "profile_nosuch", "abc").create_folders()
    assert list(tmp_path.iterdir()) == []


def test_the_default_profile_is_made_as_ipython_would(tmp_path):
    ClusterFiles(tmp_path / "profile_default", "abc").create_folders()
    assert (tmp_path / "profile_default" / "security").is_dir()


def test_a_profile_is_looked_for_where_ipython_would(monkeypatch, tmp_path):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    assert profile_folder("x") == tmp_path / "profile_x"
    monkeypatch.delenv("IPYTHONDIR")
    assert profile_folder("x") == Path.home() / ".ipython" / "profile_x"


@pytest.mark.parametrize("content", ["", '{"controller": {"sta', "[]", "null"])
def test_a_cluster_file_that_says_nothing_yet_names_nobody(files, content):
    write(files, content)
    assert list(read_roles(files.cluster_file)) == []


def test_the_controller_is_named_before_the_engines_are(files):
    write(files, {"controller": CONTROLLER, "engines": {"class": "local", "sets": {}}})
    roles = read_roles(files.cluster_file)
    assert [(role.name, role.pid) for role in roles] == [("controller", 11)]


def test_each_local_engine_is_named_with_its_log(files):
    write(files, {"controller": CONTROLLER, "engines": {"class": "local", "sets": {"1": LOCAL_SET}}})
    roles = read_roles(files.cluster_file)
    assert [(role.pid, role.log) for role in roles.engines] == [(21, Path("/log/0")), (22, Path("/log/1"))]


def test_a_set_that_is_one_job_is_one_role(files):
    job = {"n": 2, "pid": 31, "output_file": "/log/mpi", "state": "running"}
    write(files, {"controller": CONTROLLER, "engines": {"class": "mpi", "sets": {"1": job}}})
    assert [role.pid for role in read_roles(files.cluster_file).engines] == [31]


def test_a_job_without_a_pid_has_a_role_without_a_pid(files):
    job = {"n": 2, "job_id": "77", "state": "running"}
    write(files, {"controller": CONTROLLER, "engines": {"class": "slurm", "sets": {"1": job}}})
    assert [role.pid for role in read_roles(files.cluster_file).engines] == [None]


def test_a_file_that_is_being_written_is_read_when_it_is_complete(tmp_path, monkeypatch):
    file, waits = tmp_path / "cluster.json", []

    def sleep(_seconds: float) -> None:
        waits.append(file.read_text())
        file.write_text('{"controller": {}}' if len(waits) == 3 else '{"contr')

    file.touch()
    monkeypatch.setattr(files_module, "time", SimpleNamespace(sleep=sleep))
    assert read_finished_json(file) == {"controller": {}}
    assert waits == ["", '{"contr', '{"contr']


def test_a_file_that_is_never_complete_or_not_there_has_no_content(tmp_path):
    (tmp_path / "cluster.json").write_text('{"contr')
    assert read_finished_json(tmp_path / "cluster.json") is None
    assert read_finished_json(tmp_path / "none.json") is None
