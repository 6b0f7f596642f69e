from __future__ import annotations

from importlib.metadata import entry_points

import pytest

from pytest_ipcluster.launchers import FAULTS, capabilities, check_launcher, known_launchers


def test_known_launchers_are_the_entry_points_of_ipyparallel():
    assert known_launchers() == tuple(
        sorted(e.name.lower() for e in entry_points(group="ipyparallel.engine_launchers"))
    )


@pytest.mark.parametrize("name", ["local", "mpi", "ssh", "slurm", "pbs", "sge", "lsf", "htcondor"])
def test_documented_launcher_is_known(name):
    assert name in known_launchers()


@pytest.mark.parametrize("name", ["Local", "LOCAL", "local"])
def test_case_of_a_launcher_does_not_matter(name):
    assert check_launcher(name) == "local"


@pytest.mark.parametrize("path", ["package.module.Class", "package.Class", "package.module:Class"])
def test_import_path_is_accepted_in_the_dotted_spelling(path):
    assert check_launcher(path) == path.replace(":", ".")


def test_import_path_is_not_imported():
    assert check_launcher("no.such.module.Class") == "no.such.module.Class"


@pytest.mark.parametrize("name", ["nope", "", "2.5", ".", "a..b", "local.", None, 3, ["local"]])
def test_unknown_launcher_is_refused_with_the_known_names(name):
    with pytest.raises(ValueError, match=r"one of .*htcondor, local, .* or an import path such as package"):
        check_launcher(name)


def test_local_engines_can_be_hurt_in_every_way():
    assert capabilities("local") == set(FAULTS)


def test_mpi_engines_can_only_be_paused():
    assert capabilities("mpi") == {"pause"}


@pytest.mark.parametrize("name", ["ssh", "slurm", "package.module.Class", "nope"])
def test_engines_of_other_launchers_are_out_of_reach(name):
    assert capabilities(name) == frozenset()


def test_case_does_not_matter_to_capabilities():
    assert capabilities("MPI") == {"pause"}
