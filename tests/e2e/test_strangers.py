"""Where the monitor's sockets are not in the private folder, hearts have keys; and only engines are watched."""

from __future__ import annotations

import pytest

TCP = """
from pytest_ipcluster.cluster.profile import RunFolder

RunFolder.heart_urls = lambda self: ("tcp://127.0.0.1:*", "tcp://127.0.0.1:*")
"""

TESTS = """
import json, os, stat
from pathlib import Path

import psutil, pytest, zmq

SOON = 60


def talk(request):
    return request.getfixturevalue("_ipcluster_keeper")


def test_death_is_told_and_the_engine_replaced(ipcluster, ipcluster_client, heart_failure):
    with heart_failure.expect(slot=1, within=SOON):
        heart_failure.kill(1)


def test_engine_that_a_test_asked_for_is_watched_in_this_test(ipcluster, heart_failure, heart_monitor, request):
    with heart_failure.expect(slot=0, within=SOON):
        heart_failure.kill(0)
    ipcluster.restore()
    talk(request).hearts.wait_for_heart(ipcluster.engines[0].heart, SOON)


def test_hearts_have_keys_that_nobody_else_can_read(ipcluster, ipcluster_client, heart_monitor, request):
    keeper = talk(request)
    assert keeper.hearts.ping_url.startswith("tcp://127.0.0.1:")
    assert {engine.heart for engine in ipcluster.engines} == heart_monitor.hearts
    assert stat.S_IMODE(keeper.folder.key_file.stat().st_mode) == 0o600
    keys = json.loads(keeper.folder.key_file.read_text()).values()
    told = [repr(event) for event in keeper.events.since()]
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        told += [*process.cmdline(), *process.environ().values()]
    told += [log.read_text(errors="replace") for log in keeper.folder.logs.iterdir()]
    told += [path.read_text() for path in keeper.folder.profile.glob("*.py")]
    assert len(keys) == 3
    assert not any(key in text for key in keys for text in told)


def test_stranger_is_not_watched(ipcluster_client, heart_monitor, request):
    from pytest_ipcluster.hearts.heart import Heart
    from pytest_ipcluster.hearts.keys import HeartKeys
    from pytest_ipcluster.hearts.verdicts import Pong

    keeper = talk(request)
    keys = HeartKeys.read(keeper.folder.key_file) if keeper.folder.key_file.exists() else None
    stranger = Heart(keeper.hearts.ping_url, keeper.hearts.pong_url, heart_id=b"stranger", keys=keys)
    before = set(heart_monitor.hearts)
    mark = len(keeper.events)
    stranger.start()
    try:
        while not heart_monitor.ledger.tally[Pong.STRANGER]:  # ended by the time limit of the test
            keeper.hearts.call(lambda: None)
    finally:
        stranger.stop()
    assert heart_monitor.hearts == before
    assert not [event for event in keeper.events.since(mark) if event.heart == b"stranger"]
"""


@pytest.mark.parametrize("monitor", ["thread", "process"])
def test_over_tcp_the_hearts_have_keys(run, pytester, monitor):
    pytester.makeconftest(TCP)
    run(TESTS, f"--ipcluster-monitor={monitor}", "--ipcluster-n=2").assert_outcomes(passed=4)


def test_over_unix_sockets_no_keys_are_needed_and_only_engines_are_watched(run):
    result = run(TESTS, "--ipcluster-n=2", "-k", "not keys")
    result.assert_outcomes(passed=3, deselected=1)
