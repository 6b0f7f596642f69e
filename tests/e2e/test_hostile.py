"""Tests that do their worst to a real cluster: the next test finds it as new, and the run tells what that took."""

from __future__ import annotations

import re

import pytest

COMMON = r'''
import builtins, ctypes, io, os, re, resource, signal, subprocess, sys, tempfile, threading, time
from pathlib import Path

import ipyparallel, psutil, pytest
from IPython import get_ipython

from pytest_ipcluster.cluster import processes

SOON = 60
STATE = []  # on engines, this module is imported anew for each test
STOCK = {}
OF_A_START = ("IPP_CONNECTION_INFO", "PYTEST_CURRENT_TEST")  # where the controller is, and who asked for the start


def picture():
    """On an engine: show what a test may rely on."""
    shell = get_ipython()
    return {
        "names": sorted(name for name in shell.user_ns if not re.match(r"_[0-9a-f]{6,}_", name)),
        "builtins": sorted(vars(builtins)),
        "working": (divmod(7, 3), oct(8)),
        "folder": os.getcwd(),
        "path": list(sys.path),
        **{f"${name}": value for name, value in os.environ.items() if name not in OF_A_START},
        "module": list(STATE),
        "handlers": {int(n): str(signal.getsignal(n)).split(" object ")[0] for n in signal.valid_signals()},
        "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "limits": (sys.getrecursionlimit(), resource.getrlimit(resource.RLIMIT_NOFILE), sys.gettrace()),
        "streams": (type(sys.stdout).__name__, type(sys.stderr).__name__, sys.stdout.closed),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "count": shell.execution_count,
    }


def idle(client):
    # Not status["queue"]: after a replacement it can hold tasks for ever that have ended, see cluster.hub.Unfinished.
    status = client.queue_status()
    return status.pop("unassigned") == 0 and all(engine["tasks"] == 0 for engine in status.values())


def look(ipcluster, client):
    """Find the cluster as new."""
    pids = [engine.pid for engine in ipcluster.engines]
    assert client.ids == [0, 1]
    assert [engine.state for engine in ipcluster.engines] == ["idle"] * 2
    assert client[:].apply_async(os.getpid).get(SOON) == pids
    assert client.broadcast_view().apply_async(os.getpid).get(SOON) == pids
    assert client.load_balanced_view().map_async(abs, range(-9, 0)).get(SOON) == list(range(9, 0, -1))
    for found in client[:].apply_async(picture).get(SOON):
        stock = STOCK.setdefault("picture", found)
        changed = {name for name in stock | found if stock.get(name) != found.get(name)}
        assert {name: (stock.get(name), found.get(name)) for name in changed} == {}
    spoken = client[:].apply_async(print, "spoken")
    spoken.get(SOON)
    assert spoken.wait_for_output(SOON)
    assert spoken.stdout == ["spoken\n"] * 2
    deadline = time.monotonic() + SOON
    while not idle(client):
        assert time.monotonic() < deadline
        time.sleep(0.01)  # the hub tells nobody when it has heard of the last result


def begun(folder, name):
    """On an engine: tell that the task runs."""
    (Path(folder) / name).touch()


def until_begun(folder, *names):
    deadline = time.monotonic() + SOON
    while not all((Path(folder) / name).exists() for name in names):
        assert time.monotonic() < deadline
        time.sleep(0.005)  # a file that another process makes has no event here


def gone(process):
    processes.wait_gone([process], SOON)


def loop(folder, name):
    begun(folder, name)
    while True:
        pass


def hold_the_interpreter(folder, name):
    begun(folder, name)
    ctypes.PyDLL(None).sleep(600)


def tell_and(spoil, tmp):
    """On an engine: tell that the task runs, then spoil it."""
    begun(tmp, "a")
    spoil()


def on_one(client, spoil, tmp):
    client[0].apply_async(tell_and, spoil, tmp)
    until_begun(tmp, "a")


# CASES

CASES = {name: case for name, case in list(globals().items()) if name.startswith(("case_", "fatal_"))}


def test_the_stock(ipcluster, ipcluster_client):
    look(ipcluster, ipcluster_client)


@pytest.mark.parametrize(("case", "step"), [(case, step) for case in CASES for step in ("spoil", "next")])
def test_pair(ipcluster, ipcluster_client, tmp_path, case, step):
    """Spoil the cluster in one test, and look at it in the next."""
    if step == "spoil":
        CASES[case](ipcluster, ipcluster_client, str(tmp_path))
    else:
        look(ipcluster, ipcluster_client)
'''

BUSY = r"""
def case_a_loop(ipcluster, client, tmp):
    client[0].apply_async(loop, tmp, "a")
    until_begun(tmp, "a")

def case_loops_by_load_balancing_and_more_than_there_are_engines(ipcluster, client, tmp):
    view = client.load_balanced_view()
    for name in "abcd":
        view.apply_async(loop, tmp, name)
    until_begun(tmp, "a", "b")

def case_a_loop_on_all_by_broadcast(ipcluster, client, tmp):
    client.broadcast_view().apply_async(loop, tmp, "a")
    until_begun(tmp, "a")

def case_an_engine_whose_interpreter_is_held(ipcluster, client, tmp):
    client[1].apply_async(hold_the_interpreter, tmp, "a")
    until_begun(tmp, "a")

def case_a_queue_behind_a_loop(ipcluster, client, tmp):
    client[0].apply_async(loop, tmp, "a")
    for _ in range(100):
        client[0].apply_async(STATE.append, 1)
    until_begun(tmp, "a")
"""

QUEUES = r"""
def wait_and_spoil():
    time.sleep(0.02)
    STATE.append(1)
    get_ipython().user_ns["late"] = 1

def case_a_long_queue(ipcluster, client, tmp):
    for _ in range(300):
        client[:].apply_async(wait_and_spoil)

def case_a_long_queue_of_code(ipcluster, client, tmp):
    for _ in range(200):
        client[:].execute("import time; time.sleep(0.02); late = 1")

def case_a_long_queue_by_load_balancing(ipcluster, client, tmp):
    view = client.load_balanced_view()
    for _ in range(500):
        view.apply_async(wait_and_spoil)

def case_a_queue_by_broadcast(ipcluster, client, tmp):
    view = client.broadcast_view()
    for _ in range(300):
        view.apply_async(wait_and_spoil)

def case_a_queue_by_broadcast_that_is_answered_as_one(ipcluster, client, tmp):
    view = client.broadcast_view(is_coalescing=True)
    for _ in range(300):
        view.apply_async(wait_and_spoil)

def case_a_queue_of_a_client_of_the_tests_own(ipcluster, client, tmp):
    own = ipcluster.client()
    for _ in range(200):
        own[:].apply_async(wait_and_spoil)
        own.load_balanced_view().apply_async(wait_and_spoil)
    own.close(linger=1000)

def case_tasks_that_wait_for_one_that_never_ends(ipcluster, client, tmp):
    view = client.load_balanced_view()
    endless = view.apply_async(loop, tmp, "a")
    with view.temp_flags(after=[endless]):
        for _ in range(50):
            view.apply_async(abs, 1)
    until_begun(tmp, "a")

def case_tasks_whose_condition_never_comes_true(ipcluster, client, tmp):
    view = client.load_balanced_view()
    never = ipyparallel.depend(lambda: False)(wait_and_spoil)
    tasks = [view.apply_async(never) for _ in range(20)]
    assert not tasks[0].done()

def case_tasks_that_are_tried_again_and_again(ipcluster, client, tmp):
    view = client.load_balanced_view()
    with view.temp_flags(retries=1000):
        for _ in range(20):
            view.apply_async(divmod, 1, 0)
"""

STATES = r"""
def on_all(client, function, *args):
    return client[:].apply_async(function, *args).get(SOON)

def case_a_folder_that_is_gone(ipcluster, client, tmp):
    def spoil():
        os.chdir(tempfile.mkdtemp())
        os.rmdir(os.getcwd())
    on_all(client, spoil)

def case_the_import_path(ipcluster, client, tmp):
    def spoil():
        sys.path.clear()
        sys.path = ["/nowhere"]
    on_all(client, spoil)

def case_the_environment(ipcluster, client, tmp):
    def spoil():
        os.environ.clear()
        os.environ["NEW"] = "1"
    on_all(client, spoil)

def case_all_names(ipcluster, client, tmp):
    client[:].execute("for name in list(globals()): del globals()[name]").get(SOON)

def case_names_of_builtins(ipcluster, client, tmp):
    client[:].push({"print": 1, "len": None, "new": 3}, block=True)
    def spoil():
        # Of those that an engine does without: its own threads would not survive a wrong len().
        builtins.divmod = builtins.new = lambda *_: 99
        del builtins.oct
    on_all(client, spoil)

def case_reset(ipcluster, client, tmp):
    client[:].execute("new = 1").get(SOON)
    client[:].execute("get_ipython().run_line_magic('reset', '-f')").get(SOON)

def case_clear(ipcluster, client, tmp):
    client[:].push({"new": 3}, block=True)
    client.clear(block=True)

def case_another_namespace(ipcluster, client, tmp):
    def spoil():
        get_ipython().user_ns = {"new": 1}
    on_all(client, spoil)

def case_history(ipcluster, client, tmp):
    client[:].execute("1 + 1", silent=False).get(SOON)

def case_a_module_of_the_tests(ipcluster, client, tmp):
    def spoil():
        STATE.append("spoiled")
    on_all(client, spoil)

def case_signal_handlers(ipcluster, client, tmp):
    def spoil():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR2})
        signal.setitimer(signal.ITIMER_REAL, 600)
    on_all(client, spoil)

def case_limits(ipcluster, client, tmp):
    def spoil():
        sys.setrecursionlimit(90)
        os.umask(0o777)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        sys.settrace(lambda *_: None)
    on_all(client, spoil)

def case_a_hard_limit(ipcluster, client, tmp):
    def spoil():
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
    on_all(client, spoil)

def case_redirected_output(ipcluster, client, tmp):
    def spoil():
        sys.stdout = sys.stderr = sys.__stdout__ = io.StringIO()
    on_all(client, spoil)
"""

PROCESSES = r"""
def case_a_pause(ipcluster, client, tmp):
    os.kill(ipcluster.engines[1].pid, signal.SIGSTOP)

def fatal_kill(ipcluster, client, tmp):
    os.kill(ipcluster.engines[1].pid, signal.SIGKILL)
    gone(ipcluster.engines[1].process)

def fatal_termination(ipcluster, client, tmp):
    os.kill(ipcluster.engines[1].pid, signal.SIGTERM)
    gone(ipcluster.engines[1].process)

def fatal_end_from_inside(ipcluster, client, tmp):
    def spoil():
        os._exit(3)
    on_one(client, spoil, tmp)
    gone(ipcluster.engines[0].process)

"""

OUTPUTS = r"""
def case_a_closed_output(ipcluster, client, tmp):
    def spoil():
        sys.stdout.close()
    on_one(client, spoil, tmp)

def case_closed_files(ipcluster, client, tmp):
    def spoil():
        os.close(1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    on_one(client, spoil, tmp)

def case_a_thread_that_prints(ipcluster, client, tmp):
    def spoil():
        def noise():
            while True:
                print("noise")
                time.sleep(0.001)
        threading.Thread(target=noise, daemon=True).start()
    on_one(client, spoil, tmp)

def case_a_process_of_an_engine(ipcluster, client, tmp):
    def spoil():
        return subprocess.Popen(["sleep", "600"], start_new_session=True).pid
    STOCK["child"] = psutil.Process(client[0].apply_async(spoil).get(SOON))

def case_none_but_that_process_is_gone(ipcluster, client, tmp):
    assert not STOCK["child"].is_running()

"""

INSIDES = r"""
def case_a_kernel_that_cannot_publish(ipcluster, client, tmp):
    def spoil():
        def refuse(*args, **kwargs):
            raise RuntimeError("no")
        get_ipython().kernel.iopub_socket.send_multipart = refuse
    on_one(client, spoil, tmp)

def case_a_kernel_that_cannot_answer(ipcluster, client, tmp):
    def spoil():
        def refuse(*args, **kwargs):
            raise RuntimeError("no")
        get_ipython().kernel.session.send = refuse
    on_one(client, spoil, tmp)

def case_a_heart_that_was_stopped(ipcluster, client, tmp):
    def spoil():
        from pytest_ipcluster.hearts import agent
        for heart in agent._beating.values():
            heart.stop()
    on_one(client, spoil, tmp)

def case_a_lost_memory(ipcluster, client, tmp):
    def spoil():
        for name in [name for name in sys.modules if name.startswith("pytest_ipcluster")]:
            del sys.modules[name]
    on_one(client, spoil, tmp)
"""

CLUSTERS = r"""
def case_a_cluster_that_was_stopped(ipcluster, client, tmp):
    ipcluster.stop()

def case_a_cluster_that_was_made_smaller(ipcluster, client, tmp):
    ipcluster.restore(1)

def case_a_cluster_that_was_made_larger(ipcluster, client, tmp):
    ipcluster.restore(3)

def controller_of(ipcluster):
    return next(one.process for one in ipcluster.roll_call().members if one.role == "controller")

def fatal_loss_of_the_controller(ipcluster, client, tmp):
    controller = controller_of(ipcluster)
    controller.kill()
    gone(controller)

def fatal_loss_of_the_schedulers(ipcluster, client, tmp):
    for child in controller_of(ipcluster).children():
        child.kill()
        gone(child)

def case_a_frozen_controller(ipcluster, client, tmp):
    controller_of(ipcluster).suspend()

def case_a_frozen_scheduler(ipcluster, client, tmp):
    controller_of(ipcluster).children()[2].suspend()
"""

GROUPS = {
    "busy": BUSY,
    "queues": QUEUES,
    "states": STATES,
    "processes": PROCESSES,
    "outputs": OUTPUTS,
    "insides": INSIDES,
    "clusters": CLUSTERS,
}


@pytest.mark.parametrize("group", GROUPS)
def test_whatever_a_test_does_the_next_finds_the_cluster_as_new(run, group):
    source = COMMON.replace("# CASES", GROUPS[group])
    result = run(source, "-v", "--ipcluster-leaks=off")
    fatal, other = (source.count(f"\ndef {kind}_") for kind in ("fatal", "case"))
    # Only a test in which something of the cluster died fails, and not the one after it.
    result.assert_outcomes(passed=1 + fatal + 2 * other, failed=fatal)
    assert (
        len(re.findall(r"^test_it.py::test_pair\[\w+-next\] PASSED", str(result.stdout), re.MULTILINE)) == fatal + other
    )
