"""How an inner run talks to the outer one, and what its tasks do on engines."""

from __future__ import annotations

import json
import os
import time


def tell(word, **facts):
    """Say how far the run is."""
    with open(os.environ["RUN_WORDS"], "w") as words:
        words.write(json.dumps({"word": word, **facts}) + "\n")


def wait():
    """Wait until the outer run lets one of those who wait go on."""
    go = os.open(os.environ["RUN_GO"], os.O_RDONLY | os.O_NONBLOCK)
    while not _is_told(go):
        time.sleep(0.01)  # in pieces: a signal that comes just before it does not wake it
    os.close(go)


def _is_told(go):
    """Take one byte, for the others' turns stay in the pipe; tell whether there was one, or nobody can write any."""
    try:
        os.read(go, 1)
    except BlockingIOError:
        return False
    return True


def stay():
    """Wait for somebody to end this process, or for a minute."""
    for _ in range(6000):
        time.sleep(0.01)  # in pieces, as above: nothing comes but signals


def spin():
    """Keep an engine busy for ever."""
    tell("busy")
    while True:
        pass


def escape():
    """Start a process that is nobody's child, in a session of its own, with an empty environment."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        grandchild = os.fork()
        if grandchild == 0:
            os.execve("/bin/sleep", ["sleep", "60"], {})
        os.write(write, str(grandchild).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as pid:
        return int(pid.read())  # ends when exec has closed the last copy of the other end
