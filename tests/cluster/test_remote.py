"""``raises_remote`` accepts what engines raise, and says what is wrong with everything else."""

from __future__ import annotations

import pytest
from ipyparallel.error import CompositeError, EngineError, RemoteError

from pytest_ipcluster import EngineLost, raises_remote


def remote(name: str = "ValueError", message: str = "negative", engine: int = 1) -> RemoteError:
    return RemoteError(name, message, "the \x1b[31mtraceback\x1b[0m", {"engine_id": engine})


def composite(*names: str) -> CompositeError:
    return CompositeError(
        "several", [(name, "negative", "the traceback", {"engine_id": i}) for i, name in enumerate(names)]
    )


@pytest.mark.parametrize("error", [remote(), composite("ValueError", "ValueError")])
def test_the_expected_exception_is_accepted(error):
    with raises_remote(ValueError):
        raise error


def test_a_subclass_is_accepted():
    with raises_remote(ArithmeticError):
        raise remote("ZeroDivisionError")


def test_one_of_several_types_is_accepted():
    with raises_remote((KeyError, ValueError)):
        raise remote()


@pytest.mark.parametrize("told_by", ["EngineError", "EngineLost"], ids=["ipyparallel", "the deadman"])
def test_the_loss_of_an_engine_is_accepted_whoever_was_first_to_tell(told_by):
    with raises_remote(EngineError):
        raise remote(told_by)


def test_the_error_of_the_deadman_does_not_stand_for_that_of_ipyparallel():
    with pytest.raises(AssertionError, match="raised EngineError"), raises_remote(EngineLost):
        raise remote("EngineError")


def test_what_was_caught_is_told():
    error = remote()
    with raises_remote(ValueError) as caught:
        raise error
    assert (caught.name, caught.message, caught.engine, caught.traceback) == (
        "ValueError",
        "negative",
        1,
        "the traceback",
    )
    assert caught.error is error


def test_no_exception_is_a_failure():
    with (
        pytest.raises(AssertionError, match="no engine raised ValueError or KeyError"),
        raises_remote((ValueError, KeyError)),
    ):
        pass


def test_another_exception_is_a_failure_that_names_both():
    with (
        pytest.raises(AssertionError, match=r"raised KeyError\('negative'\), not ValueError"),
        raises_remote(ValueError),
    ):
        raise remote("KeyError")


def test_one_wrong_engine_of_several_is_a_failure():
    with pytest.raises(AssertionError, match="raised KeyError"), raises_remote(ValueError):
        raise composite("ValueError", "KeyError")


def test_a_message_that_does_not_match_is_a_failure_that_shows_it():
    expected = pytest.raises(AssertionError, match="'negative', which does not match 'positive'")
    with expected, raises_remote(ValueError, match="positive"):
        raise remote()


def test_an_exception_of_our_own_side_passes_through():
    with pytest.raises(ValueError, match="ours"), raises_remote(ValueError):
        raise ValueError("ours")
