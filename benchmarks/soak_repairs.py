"""A hundred engines killed and replaced in one session: does anything leak, is any verdict wrong?

Runs pytest on a module that kills one engine per test through the real fixtures. Prints JSON: what was left of the run,
the verdicts against the kills, and the memory, descriptors and threads of the pytest process, of the hub and, where
there is one, of the process between pytest and ipcluster, at some of the cycles.

    python benchmarks/soak_repairs.py --cycles 100
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from leashes import Leash, leash

SECONDS_LATER = 6.0

MODULE = '''
import json, os
from pathlib import Path

import psutil
import pytest

CYCLES = int(os.environ["SOAK_CYCLES"])
READ_AT = json.loads(os.environ["SOAK_READ_AT"])


def reading(process):
    with process.oneshot():
        return {
            "rss_mb": round(process.memory_info().rss / 2**20, 1),
            "descriptors": process.num_fds(),
            "threads": process.num_threads(),
        }


def roles(ipcluster):
    """Return the processes that live through the whole session, by what they are."""
    cluster_file = Path(ipcluster.connection_file).with_name(f"cluster-{ipcluster.cluster_id}.json")
    hub = psutil.Process(json.loads(cluster_file.read_text())["controller"]["state"]["pid"])
    found = {"pytest": psutil.Process(), "hub": hub}
    parent = psutil.Process(ipcluster.process.pid).parent()
    return found if parent == found["pytest"] else {**found, "warden": parent}


def processes(ipcluster):
    """Count the processes of the run; those that are dead but not reaped, too."""
    return len(psutil.Process().children(recursive=True))


@pytest.fixture(scope="session")
def verdicts(heart_monitor):
    """Every verdict of the session: the heart and the slot's engine, in order."""
    found = []

    def note(heart):
        found.append(heart.decode())

    heart_monitor.add_heart_failure_handler(note)
    yield found
    heart_monitor.remove_heart_failure_handler(note)


@pytest.fixture(scope="session")
def account(verdicts):
    """What the session adds up to, written to a file at its end."""
    killed, readings = [], {}
    yield killed, readings
    text = json.dumps({"killed": killed, "failed": verdicts, "readings": readings})
    Path(os.environ["SOAK_ACCOUNT"]).write_text(text)


@pytest.fixture
def cycle(request, account, ipcluster):
    """The number of this cycle; the reading comes after the repair, whose fixture is set up later."""
    yield request.param
    if request.param in READ_AT:
        read = {name: reading(process) for name, process in roles(ipcluster).items()}
        account[1][request.param] = {**read, "processes": processes(ipcluster)}


@pytest.mark.parametrize("cycle", range(1, CYCLES + 1), indirect=True)
def test_one_engine_dies(cycle, ipcluster, account, heart_failure):
    slot = cycle % len(ipcluster.engines)
    engine = ipcluster.engines[slot]
    account[0].append(engine.ident)
    with heart_failure.expect(slot=slot, cause="killed"):
        heart_failure.kill(slot)
    heart_failure.assert_fired(times=1)


def test_the_last_engines_work(ipcluster, ipcluster_client):
    pids = ipcluster_client[:].apply_async(os.getpid).get(30)
    assert pids == [engine.pid for engine in ipcluster.engines]
'''


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=100, help="engines to kill and replace (default: 100)")
    parser.add_argument("--engines", type=int, default=2, help="engines of the cluster (default: 2)")
    parser.add_argument("--read-at", type=int, nargs="*", help="cycles to read at (default: a tenth, half, and all)")
    given = parser.parse_args()
    at = given.read_at or sorted({max(1, given.cycles // 10), max(1, given.cycles // 2), given.cycles})
    print(json.dumps(soak(given.cycles, given.engines, at), indent=2))


def soak(cycles: int, engines: int, read_at: list[int]) -> dict[str, Any]:
    """Run the session in a folder of its own, and return what it came to."""
    with leash() as held:
        folder = held.folder("s-")  # short: sockets live below it
        begun = time.monotonic()
        code, output = run(folder, cycles, engines, read_at)
        seconds = time.monotonic() - begun
        return {
            "cycles": cycles,
            "engines": engines,
            "exit_code": code,
            "seconds": round(seconds, 1),
            "seconds_per_cycle": round(seconds / cycles, 2),
            **verdicts(folder / "account.json", cycles),
            "leaks": leaks(folder / "temp", held),
            **({"output": output[-4000:]} if code else {}),
        }


def run(folder: Path, cycles: int, engines: int, read_at: list[int]) -> tuple[int, str]:
    """Run pytest on the module; return its exit code and output."""
    (folder / "test_soak.py").write_text(MODULE)
    (folder / "temp").mkdir()
    environment = {
        **os.environ,
        "TMPDIR": str(folder / "temp"),
        "SOAK_CYCLES": str(cycles),
        "SOAK_READ_AT": json.dumps(read_at),
        "SOAK_ACCOUNT": str(folder / "account.json"),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={folder / 'base'}"]
    with (folder / "output").open("wb") as output:
        code = subprocess.call(
            [*command, f"--rootdir={folder}", f"--ipcluster-n={engines}", "test_soak.py"],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    return code, (folder / "output").read_text(errors="replace")


def verdicts(account: Path, cycles: int) -> dict[str, Any]:
    """Compare what was killed with what the monitor made of it: exactly the killed hearts, once each, in order."""
    found = json.loads(account.read_text()) if account.exists() else {"killed": [], "failed": [], "readings": {}}
    killed, failed = Counter(found["killed"]), Counter(found["failed"])
    return {
        "killed": len(found["killed"]),
        "failed": len(found["failed"]),
        "in_order": found["killed"] == found["failed"],
        "wrong_verdicts": {
            "cycles_without_a_kill": cycles - len(found["killed"]),
            "missed_deaths": (killed - failed).total(),
            "false_or_repeated": (failed - killed).total(),
        },
        "readings": found["readings"],
    }


def leaks(temp: Path, held: Leash) -> dict[str, list[str]]:
    """Return what is left of the run six seconds after its end, or as soon as it is nothing."""
    deadline = time.monotonic() + SECONDS_LATER
    while (held.left() or any(temp.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.05)  # other people's processes and folders announce their end by no common event
    return {"processes": sorted(map(str, held.left())), "folders": sorted(path.name for path in temp.iterdir())}


if __name__ == "__main__":
    main()
