"""A log is read for what went wrong and for what to try."""

from __future__ import annotations

import pytest

from pytest_ipcluster.cluster.diagnosis import advice, controller_lost, engines_lost, not_recognized, reason, tail

STAMP = "2026-01-01 00:00:00.000"
CONTROLLER_STOPPED = (
    "Exception in callback <coro=<IPClusterStart.start_cluster() done> "
    "exception=RuntimeError('Controller stopped with {} while waiting for [...]')>"
)


def test_the_tail_is_the_last_lines(tmp_path):
    log = tmp_path / "log"
    log.write_text("\n".join(map(str, range(100))))
    assert tail(log, 3) == "97\n98\n99"


def test_our_own_questions_to_the_hub_are_no_news(tmp_path):
    log = tmp_path / "log"
    log.write_text(
        f"{STAMP} [IPController] news\n"
        f"{STAMP} [IPController] client::client b'x' requested 'connection_request'\n"
        f"{STAMP} [IPController] client::client [b'x'] connected\n"
        f"{STAMP} [IPController] client::client b'x' requested 'queue_request'\n"
        f"{STAMP} [IPController] queue::client b'x' submitted request 'uuid_1' to 0\n"
    )
    assert tail(log) == f"{STAMP} [IPController] news"


def test_beats_that_a_dead_engine_misses_are_no_news(tmp_path):
    log = tmp_path / "log"
    log.write_text(f"{STAMP} [IPController] news\n" + f"{STAMP} [IPController] heartbeat::missed b'x' : 7\n" * 100)
    assert tail(log) == f"{STAMP} [IPController] news"


def test_a_log_that_is_not_there_has_no_tail(tmp_path):
    assert tail(tmp_path / "none") == ""
    assert tail(None) == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Traceback\n  File x\nValueError: wrong\nafterwards", "ValueError: wrong"),
        ("zmq.error.ZMQError: Address already in use", "zmq.error.ZMQError: Address already in use"),
        (
            "usage: x\n__main__.py: error: argument --nosuch: expected one argument",
            "argument --nosuch: expected one argument",
        ),
        (
            "[x] CRITICAL | Bad config encountered during initialization: not an int",
            "during initialization: not an int",
        ),
        (
            "ValueError: the reason\nRuntimeError: Controller stopped with 1 while waiting for [...]",
            "ValueError: the reason",
        ),
        ("all is well", ""),
    ],
)
def test_the_reason_is_the_last_complaint(text, expected):
    assert reason(text) == expected


def test_advice_follows_the_sign_in_the_log():
    assert "ports" in advice("zmq.error.ZMQError: Address already in use", "else")
    assert advice("nothing to see", "else") == "else"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f"{STAMP} [IPClusterStart] WARNING | engine set stopped 1: {{'exit_code': 1}}", "all engines have ended"),
        (
            "Exception in callback <coro=<IPClusterStart.start_cluster() done> exception=FileNotFoundError(2)>",
            "ipcluster could not start the engines",
        ),
        (CONTROLLER_STOPPED, ""),
        (f"{STAMP} [IPClusterStart] Starting 2 engines", ""),
    ],
)
def test_lost_engines_are_read_out_of_ipclusters_output(tmp_path, line, expected):
    (tmp_path / "log").write_text(line + "\n")
    assert engines_lost(tmp_path / "log") == expected


@pytest.mark.parametrize("line", [CONTROLLER_STOPPED, f"{STAMP} [IPClusterStart] Starting 2 engines"])
def test_a_controller_that_was_waited_for_is_read_out_of_ipclusters_output(tmp_path, line):
    (tmp_path / "log").write_text(line + "\n")
    told = "the controller ended before ipcluster could start the engines" if line is CONTROLLER_STOPPED else ""
    assert controller_lost(tmp_path / "log") == told


WARNING = f"{STAMP} [IPController] WARNING | Config option `nosuch` not recognized by `HeartMonitor`."


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--n=2", "--", "--HeartMonitor.nosuch=1"], "Config option `nosuch` not recognized by `HeartMonitor`."),
        (["--n=2", "--HeartMonitor.period=1"], ""),
    ],
)
def test_a_setting_that_does_not_exist_is_told_when_it_is_an_argument(arguments, expected):
    assert not_recognized(f"{STAMP} news\n{WARNING}\n{STAMP} more\n", arguments) == expected
