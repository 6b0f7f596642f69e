"""The warden as its owner meets it: it starts processes, tells how they ended, and outlives its owner."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from waiting import until

from pytest_ipcluster.cluster import guard as guard_module
from pytest_ipcluster.cluster.guard import Guard
from pytest_ipcluster.cluster.processes import MARK, is_alive, wait_gone
from pytest_ipcluster.cluster.profile import RunFolder
from pytest_ipcluster.cluster.warden import OWNER_FILE
from pytest_ipcluster.errors import ClusterError

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
#: Seconds within which everything must be gone; what is measured is whether, not when.
SOON = 10.0


@pytest.fixture(autouse=True)
def short_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have wardens make their folders where no other run sees them as its own."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def guard() -> Iterator[Guard]:
    guard = Guard()
    yield guard
    guard.dismiss()


def spawn(guard: Guard, code: str) -> subprocess.Popen[bytes]:
    return guard.spawn([sys.executable, "-c", code], guard.folder / "out", {**os.environ, MARK: guard.mark})


def said(guard: Guard) -> str:
    return (guard.folder / "out").read_text().strip()


# -- starting processes --------------------------------------------------------------------------


def test_a_child_writes_into_its_file_and_runs_where_the_owner_is(guard, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert spawn(guard, "import os; print(os.getcwd())").wait(SOON) == 0
    assert said(guard) == str(tmp_path)


def test_a_child_leads_a_session_and_does_not_inherit_what_the_warden_ignores(guard):
    code = "import os, signal; print(os.getsid(0) == os.getpid(), signal.getsignal(signal.SIGINT).__name__)"
    spawn(guard, code).wait(SOON)
    assert said(guard) == "True default_int_handler"


def test_a_child_is_given_exactly_this_environment(guard):
    guard.spawn([sys.executable, "-c", "import os; print(*os.environ)"], guard.folder / "out", {"ONLY": "this"}).wait(
        SOON
    )
    assert set(said(guard).split()) - {"LC_CTYPE"} == {"ONLY"}


def test_an_environment_that_is_not_text_arrives_as_it_is(guard):
    value = os.fsdecode(b"caf\xe9")
    code = "import os; print(os.environb[b'NAME'])"
    guard.spawn([sys.executable, "-c", code], guard.folder / "out", {"NAME": value}).wait(SOON)
    assert said(guard) == r"b'caf\xe9'"


def test_a_command_that_cannot_be_run_raises_what_popen_raises(guard):
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        guard.spawn(["no-such-program"], guard.folder / "out", {})
    assert spawn(guard, "").wait(SOON) == 0  # and the warden goes on


@pytest.mark.parametrize(
    ("code", "ended"), [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL)]
)
def test_a_child_is_a_popen_object_that_tells_how_it_ended(guard, code, ended):
    child = spawn(guard, code)
    assert isinstance(child, subprocess.Popen)
    assert child.wait(SOON) == child.poll() == child.returncode == ended


def test_a_child_that_runs_has_no_exit_code_and_can_be_signalled(guard):
    child = spawn(guard, "import time; time.sleep(60)")
    assert child.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.01)
    child.terminate()
    assert child.wait(SOON) == -signal.SIGTERM
    child.kill()  # nothing, for it has ended


def test_orphans_come_to_the_warden(guard):
    code = "import os, subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'input()'], stdin=0).pid)"
    code = code.replace("'input()'", "'import time; time.sleep(60)'")
    spawn(guard, code).wait(SOON)
    assert psutil.Process(int(said(guard))).ppid() == guard.process.pid


# -- the end -------------------------------------------------------------------------------------


def test_dismissed_it_leaves_neither_processes_nor_folder_nor_itself():
    guard = Guard()
    stubborn = "import signal; signal.signal(15, signal.SIG_IGN); print(1, flush=True); signal.pause()"
    child = spawn(guard, stubborn)
    until(lambda: said(guard))
    process = psutil.Process(child.pid)
    guard.dismiss()
    assert not is_alive(process)
    assert not guard.alive
    assert not guard.folder.exists()
    guard.dismiss()  # nothing left to do


def test_what_was_started_may_end_by_itself_within_the_grace(tmp_path):
    guard = Guard(grace=SOON)
    farewell = tmp_path / "farewell"
    code = (
        "import signal, sys, pathlib, time; "
        f"signal.signal(15, lambda *_: sys.exit(pathlib.Path({str(farewell)!r}).touch())); "
        "print(1, flush=True); any(time.sleep(0.01) for _ in iter(int, 1))"  # one long wait could miss the signal
    )
    spawn(guard, code)
    until(lambda: said(guard))
    guard.dismiss()
    assert farewell.exists()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"])
def test_a_signal_does_not_end_the_warden(guard, name):
    os.kill(guard.process.pid, getattr(signal, name))
    assert spawn(guard, "").wait(SOON) == 0


def test_a_forked_child_of_the_owner_does_not_end_it(guard):
    pid = os.fork()
    if pid == 0:
        guard.dismiss()
        os._exit(0)
    os.waitpid(pid, 0)
    assert spawn(guard, "").wait(SOON) == 0


def test_when_the_warden_is_killed_what_it_started_is_told_to_end(guard):
    child = spawn(guard, "import time; time.sleep(60)")
    process = psutil.Process(child.pid)
    guard.process.kill()
    assert not wait_gone({process}, SOON)
    assert child.wait(SOON) == 255  # nobody was there to tell
    with pytest.raises(ClusterError, match="the warden"):
        spawn(guard, "")


def test_a_folder_whose_warden_was_killed_gets_a_new_one():
    folder = RunFolder.guarded()
    first = folder.guard.process
    first.kill()
    until(lambda: not folder.guard.alive)
    folder.keep_guarded()
    assert folder.guard.process != first
    assert folder.guard.folder == folder.path
    folder.remove()
    assert not folder.path.exists()


def test_what_the_system_lacks_is_said(tmp_path, monkeypatch):
    poorer = tmp_path / "poorer.py"
    run = f"import runpy; runpy.run_path({str(guard_module._WARDEN)!r}, run_name='__main__')"
    poorer.write_text("\n".join([*POORER.values(), run]))
    monkeypatch.setattr(guard_module, "_WARDEN", poorer)
    folder = RunFolder.guarded()
    folder.remove()
    assert [limit.split(":")[0] for limit in folder.limits] == ["no pidfd here", "no child subreaper here"]


def test_a_folder_without_a_warden_says_so():
    folder = RunFolder()
    folder.remove()
    assert len(folder.limits) == 1


# -- the owner's end -----------------------------------------------------------------------------

#: An owner that starts a child, and through it an orphan in a session of its own without any mark, says who is
#: who, and ends as it is told to.
OWNER = """
import json, os, signal, subprocess, sys, tempfile
from pathlib import Path
tempfile.tempdir = {temporary!r}
from pytest_ipcluster.cluster import guard as module
module._WARDEN = Path({warden!r})
guard = module.Guard()
escapee = "import os, subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']," \\
    " start_new_session=True, env={{}}).pid, flush=True)"
guard.spawn([sys.executable, "-c", escapee], guard.folder / "out", {{}}).wait(10)
pids = [int((guard.folder / "out").read_text())]
marked = {{**os.environ, "PYTEST_IPCLUSTER_MARK": guard.mark}}
pids.append(guard.spawn([sys.executable, "-c", "import time; time.sleep(60)"], guard.folder / "log", marked).pid)
print(json.dumps([guard.process.pid, str(guard.folder), guard.missing, *pids]), flush=True)
sys.stdin.readline()

def wait_for_the_warden():
    import time
    for _ in range(1000):
        if guard.folder.exists():
            time.sleep(0.01)
    os._exit(0)

{end}
"""

ENDINGS = {
    "returns": "",
    "os._exit": "os._exit(1)",
    "SIGKILL": "os.kill(os.getpid(), signal.SIGKILL)",
    "segfault": "import ctypes; ctypes.string_at(0)",
    "exec": "os.execv(sys.executable, [sys.executable, '-c', ''])",
    "a fork holds the pipe": "os.fork() and os.kill(os.getpid(), signal.SIGKILL); wait_for_the_warden()",
    "a frozen child": "[os.kill(pid, signal.SIGSTOP) for pid in pids]; os._exit(1)",
}

#: Replacements of the warden's script for systems that lack something.
POORER = {
    "pidfd": "import os; del os.pidfd_open",
    "child subreaper": "import ctypes; ctypes.CDLL = lambda *a, **k: type('', (), dict(prctl=lambda *a: -1))",
}


@dataclass(frozen=True)
class Left:
    """What an owner had that has ended: which senses its warden missed, and what there was."""

    missing: list[str]
    folder: Path
    known: set[psutil.Process]
    escapee: psutil.Process


def run_owner(tmp_path: Path, end: str, warden: Path) -> Left:
    code = textwrap.dedent(OWNER).format(temporary=str(tmp_path), warden=str(warden), end=end)
    owner = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    pid, folder, missing, escapee, marked = json.loads(owner.stdout.readline())
    left = Left(missing, Path(folder), {psutil.Process(pid), psutil.Process(marked)}, psutil.Process(escapee))
    assert all(map(is_alive, {*left.known, left.escapee}))
    owner.stdin.write("\n")
    owner.stdin.close()
    owner.wait(SOON)
    owner.stdout.read()  # until its last fork has ended, too
    owner.stdout.close()
    return left


@pytest.mark.parametrize("end", ENDINGS)
def test_nothing_outlives_the_owner_however_it_ends(tmp_path, end):
    left = run_owner(tmp_path, ENDINGS[end], guard_module._WARDEN)
    assert left.missing == []
    assert not wait_gone({*left.known, left.escapee}, SOON)
    assert not left.folder.exists()


@pytest.mark.parametrize("end", ["SIGKILL", "a fork holds the pipe"])
@pytest.mark.parametrize("missing", POORER)
def test_a_poorer_system_is_said_to_be_one_and_what_is_marked_goes_all_the_same(tmp_path, end, missing):
    poorer = tmp_path / "poorer.py"
    run = f"import runpy; runpy.run_path({str(guard_module._WARDEN)!r}, run_name='__main__')"
    poorer.write_text(f"{POORER[missing]}\n{run}\n")
    left = run_owner(tmp_path, ENDINGS[end], poorer)
    assert left.missing == [missing]
    assert not wait_gone(left.known, SOON)
    assert not left.folder.exists()
    if missing == "child subreaper":  # then nothing tells that an orphan without a mark is ours
        left.escapee.kill()
    assert not wait_gone({left.escapee}, SOON)


# -- what an earlier run left ----------------------------------------------------------------------


def signed(folder: Path, owner: psutil.Process | None, mark: str = "nobody's") -> Path:
    folder.mkdir()
    since = owner.create_time() if owner else 1.0
    whose = {"owner": owner.pid if owner else 2**22 + 1, "since": since, "mark": [MARK, mark]}
    (folder / OWNER_FILE).write_text(json.dumps(whose))
    return folder


def test_the_next_run_sweeps_what_one_without_a_chance_has_left(guard, tmp_path):
    orphan = subprocess.Popen(SLEEP, env={**os.environ, MARK: "orphaned"})
    stale = signed(tmp_path / "ipcluster-stale", None, "orphaned")
    spawn(guard, "").wait(SOON)
    until(lambda: not stale.exists())
    assert orphan.wait(SOON) == -signal.SIGKILL


def test_the_next_run_leaves_alone_what_may_be_somebody_elses(guard, tmp_path):
    living = signed(tmp_path / "ipcluster-living", psutil.Process())
    unsigned = tmp_path / "ipcluster-unsigned"
    unsigned.mkdir()
    other = signed(tmp_path / "other-name", None)
    link = tmp_path / "ipcluster-link"
    link.symlink_to(other)
    stale = signed(tmp_path / "ipcluster-stale", None)
    spawn(guard, "").wait(SOON)
    until(lambda: not stale.exists())  # so the sweep has been there
    guard.dismiss()
    assert all(folder.exists() for folder in (living, unsigned, other, link))


def test_the_next_run_leaves_alone_what_has_a_warden(guard, tmp_path):
    guarded = Guard()
    owner_file = guarded.folder / OWNER_FILE
    whose = json.loads(owner_file.read_text())
    with owner_file.open("r+") as file:  # in place: the lock is on the file
        json.dump({**whose, "owner": 2**22 + 1}, file)
        file.truncate()
    stale = signed(tmp_path / "ipcluster-stale", None)
    spawn(guard, "").wait(SOON)
    until(lambda: not stale.exists())
    guard.dismiss()
    assert guarded.folder.exists()
    guarded.dismiss()
