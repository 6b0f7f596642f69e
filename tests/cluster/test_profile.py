"""The private folder is private, our defaults are in its files, and the user's values stand behind them."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest
from traitlets.config import Config
from traitlets.config.loader import PyFileConfigLoader

from pytest_ipcluster.cluster.processes import MARK
from pytest_ipcluster.cluster.profile import (
    EngineSetup,
    RunFolder,
    child_environment,
    named_profile_arguments,
    write_profile,
)

AT_START = ["pytest_ipcluster.hearts.agent", "pytest_ipcluster.cluster.renewal"]


@pytest.fixture
def folder():
    folder = RunFolder()
    yield folder
    folder.remove()


def load(folder: Path, name: str) -> Config:
    return PyFileConfigLoader(f"{name}_config.py", path=str(folder)).load_config()


def written(folder: RunFolder, extra: Config | None = None, setup: EngineSetup | None = None) -> Path:
    write_profile(folder.profile, setup or EngineSetup(), folder.cards, extra or Config())
    return folder.profile


def test_only_the_owner_can_look_into_the_folder(folder):
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o700 for path in folder.path.rglob("*") if path.is_dir())


def test_two_folders_have_different_ids_and_marks(folder):
    other = RunFolder()
    other.remove()
    assert {other.path, other.cluster_id, other.mark}.isdisjoint({folder.path, folder.cluster_id, folder.mark})


def test_a_folder_can_be_removed_twice(folder):
    folder.remove()
    folder.remove()
    assert not folder.path.exists()


def test_hearts_meet_on_sockets_in_the_folder(folder):
    assert folder.heart_urls() == (f"ipc://{folder.path}/ping", f"ipc://{folder.path}/pong")


def test_hearts_meet_on_loopback_when_the_path_is_too_long_for_a_socket(tmp_path, monkeypatch):
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    assert RunFolder().heart_urls() == ("tcp://127.0.0.1:*", "tcp://127.0.0.1:*")


def test_the_cluster_survives_the_loss_of_all_engines(folder):
    assert load(written(folder), "ipcluster").IPClusterStart.early_shutdown == 0


def test_the_start_waits_for_nothing(folder):
    config = load(written(folder), "ipcluster")
    assert config.Cluster.delay == 0
    assert config.LocalEngineSetLauncher.delay == 0


def test_the_hub_beats_fast_and_is_patient(folder):
    config = load(written(folder), "ipcontroller").HeartMonitor
    assert config.period == 50
    assert config.max_heartmonitor_misses == 600
    write_profile(folder.profile, EngineSetup(), folder.cards, Config(), hub_period=20)
    config = load(folder.profile, "ipcontroller").HeartMonitor
    assert (config.period, config.max_heartmonitor_misses) == (20, 1500)


def test_engines_load_the_agent_with_its_settings(folder):
    setup = EngineSetup("ipc://ping", "ipc://pong", ("/a", "/b"), "/keys")
    config = load(written(folder, setup=setup), "ipengine")
    assert config.IPKernelApp.extensions.get_value([]) == AT_START
    assert config.HeartAgent.ping == "ipc://ping"
    assert config.HeartAgent.pong == "ipc://pong"
    assert config.HeartAgent.key_file == "/keys"
    assert config.HeartAgent.importable == ["/a", "/b"]
    assert config.HeartAgent.cards == str(folder.cards)


def test_the_users_configuration_stands_behind_our_defaults(folder):
    extra = Config()
    extra.HeartMonitor.period = 250
    extra.TaskScheduler.scheme_name = "pure"
    config = load(written(folder, extra), "ipcontroller")
    assert config.HeartMonitor.period == 250
    assert config.TaskScheduler.scheme_name == "pure"


def test_extensions_of_the_user_keep_the_agent(folder):
    extra = Config()
    extra.IPKernelApp.extensions = ["theirs"]
    config = load(written(folder, extra), "ipengine")
    assert config.IPKernelApp.extensions == ["theirs", *AT_START]


def test_a_value_that_cannot_be_written_is_refused_by_name(folder):
    extra = Config()
    extra.IPEngine.something = object()
    with pytest.raises(TypeError, match=r"c\.IPEngine\.something = <object .*only plain values"):
        written(folder, extra)


def test_a_change_of_a_value_is_refused_by_name(folder):
    extra = Config()
    extra.IPKernelApp.exec_lines.append("x = 1")
    with pytest.raises(TypeError, match=r"c\.IPKernelApp\.exec_lines: give the whole value"):
        written(folder, extra)


def test_children_are_marked_and_we_are_not(folder):
    assert child_environment(folder, private=True)[MARK] == folder.mark
    assert MARK not in os.environ


def test_children_inherit_nothing_of_another_cluster(folder, monkeypatch):
    monkeypatch.setenv("IPP_CLUSTER_ID", "outer")
    monkeypatch.setenv("SOMETHING_ELSE", "kept")
    environment = child_environment(folder, private=True)
    assert "IPP_CLUSTER_ID" not in environment
    assert environment["SOMETHING_ELSE"] == "kept"


def test_children_know_that_these_are_tests_but_not_which(folder, monkeypatch):
    told = child_environment(folder, private=True)["PYTEST_CURRENT_TEST"]
    assert "test_profile" not in told
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # between two tests there is none
    assert child_environment(folder, private=True)["PYTEST_CURRENT_TEST"] == told
    monkeypatch.delenv("PYTEST_VERSION")
    assert "PYTEST_CURRENT_TEST" not in child_environment(folder, private=True)


@pytest.mark.parametrize("private", [True, False])
def test_only_a_private_profile_moves_ipythons_folder(folder, monkeypatch, private):
    monkeypatch.setenv("IPYTHONDIR", "/theirs")
    expected = str(folder.ipython) if private else "/theirs"
    assert child_environment(folder, private=private)["IPYTHONDIR"] == expected


def test_a_named_profile_gets_what_faults_depend_on_by_the_command_line(folder, tmp_path):
    arguments, engine = named_profile_arguments(folder, EngineSetup(), tmp_path, [])
    assert f"--cluster-id={folder.cluster_id}" in arguments
    assert "--IPClusterStart.early_shutdown=0" in arguments
    assert f"--EngineLauncher.engine_args={engine!r}" in arguments


def test_engine_arguments_of_the_profile_itself_are_kept(folder, tmp_path):
    (tmp_path / "ipcluster_config.py").write_text("c.EngineLauncher.engine_args = ['--debug']")
    arguments, engine = named_profile_arguments(folder, EngineSetup(), tmp_path, [])
    assert engine == ["--debug", f"--config={folder.path / 'ipengine_config.py'}"]
    assert f"--EngineLauncher.engine_args={engine!r}" in arguments


def test_an_argument_of_the_user_is_not_given_twice(folder, tmp_path):
    arguments, _ = named_profile_arguments(
        folder, EngineSetup(), tmp_path, ["--cluster-id=mine", "--IPClusterStart.early_shutdown=9"]
    )
    assert [argument.split("=")[0] for argument in arguments] == ["--EngineLauncher.engine_args"]
