"""Which engines count as clean. The clients here are made up, for what must be shown are answers that do not come."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from ipyparallel.error import NoEnginesRegistered

from pytest_ipcluster.cluster import cleaning
from pytest_ipcluster.cluster.cleaning import Leftovers, clean_engines
from pytest_ipcluster.cluster.hub import Unfinished

FOREVER = 1e9
BUSY = "the engine was still busy with what a test had left"
NUMBERS = itertools.count()


class Task:
    """A task that answers, or not, and whose output may get lost."""

    def __init__(
        self, *complaints: str, ready: bool = True, error: Exception | None = None, heard: bool = True
    ) -> None:
        self._complaints, self._ready, self._error, self._heard = complaints, ready, error, heard
        self.msg_ids = [f"task {next(NUMBERS)}"]

    def wait(self, timeout: float) -> None:
        if not self._ready:
            time.sleep(min(timeout, 0.01))  # the real one waits for an answer that does not come

    def ready(self) -> bool:
        return self._ready

    def successful(self) -> bool:
        return self._error is None

    def exception(self) -> Exception | None:
        return self._error

    def get(self, timeout: float) -> list[list[str]]:
        assert timeout == 0
        return [list(self._complaints)]

    def wait_for_output(self, timeout: float) -> bool:
        assert 0 <= timeout < FOREVER
        return self._heard


class View:
    def __init__(self, tasks: Iterable[Task]) -> None:
        self.left = list(tasks)
        self.sent: list[Task] = []

    def apply_async(self, function: object, *_: object) -> Task:
        assert callable(function)
        self.sent.append(self.left.pop(0) if len(self.left) > 1 else self.left[0])
        return self.sent[-1]


class Client:
    """A client of one engine, which does these tasks one after the other; those of broadcasts it does."""

    ids = (7,)

    def __init__(self, *tasks: Task, broadcast: Task | None = None) -> None:
        self.direct = View(tasks)
        self.broadcast = View([broadcast or Task()])
        self.aborted: list[str] = []

    def __getitem__(self, numbers: list[int]) -> View:
        assert numbers == [7]
        return self.direct

    def broadcast_view(self, numbers: list[int]) -> View:
        assert numbers == [7]
        return self.broadcast

    def abort(self, *, jobs: list[str], targets: str, block: bool) -> Future[None]:
        assert (targets, block) == ("all", False)
        assert jobs  # ipyparallel takes none for all
        self.aborted += jobs
        return self.heed()

    def heed(self) -> Future[None]:
        """Return the engine's answer to what it was told to refuse."""
        answer: Future[None] = Future()
        answer.set_result(None)
        return answer


class Slots:
    """Answers what is under way, then that nothing is, or for ever the same."""

    def __init__(self, *answers: Unfinished, for_ever: bool = False) -> None:
        self._answers = itertools.cycle(answers) if for_ever else iter(answers)
        self.asked: list[bool] = []

    def engines(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(id=7)]

    def unfinished(self, *, direct: bool) -> Unfinished:
        self.asked.append(direct)
        return next(self._answers, Unfinished())


def clean(client: Client, patience: float = 1.0, *under_way: Unfinished) -> Leftovers:
    """Clean the client's engine; the hub answers with what is ``under_way``, then that nothing is."""
    return clean_engines(client, Slots(*under_way), patience)


def test_an_engine_that_answers_on_both_ways_is_clean():
    client = Client(Task())
    left = clean(client)
    assert not left
    assert client.aborted == []
    assert [len(view.sent) for view in (client.direct, client.broadcast)] == [1, 1]


@pytest.mark.parametrize("lost", ["direct", "broadcast"])
def test_an_engine_that_does_not_answer_on_one_way_is_stuck(lost):
    never = Task(ready=False)
    client = Client(never) if lost == "direct" else Client(Task(), broadcast=never)
    assert clean(client, 0.05).stuck == {7: BUSY}


def test_tasks_that_are_under_way_are_aborted_by_name_and_the_engine_is_renewed_again():
    client = Client(Task())
    given, waiting = Unfinished(given={7: frozenset({"a", "b"})}), Unfinished(waiting=frozenset({"c"}))
    assert not clean(client, 10, given, waiting)
    assert client.aborted == ["a", "b", "c"]
    assert len(client.direct.sent) == 3


def test_the_tasks_of_the_renewal_itself_are_not_under_way():
    client = Client(Task())
    own = [client.direct.left[0].msg_ids[0], client.broadcast.left[0].msg_ids[0]]
    clean(client, 1, Unfinished(direct=frozenset({*own, "theirs"})))
    assert client.aborted == ["theirs"]


def test_what_was_sent_directly_matters_only_to_an_engine_that_is_late():
    slots = Slots()
    clean_engines(Client(Task()), slots, 1)
    assert slots.asked == [False]
    slots = Slots(Unfinished(direct=frozenset({"before"})))
    client = Client(Task(ready=False))
    assert clean_engines(client, slots, 0.05).stuck == {7: BUSY}
    assert slots.asked[0]
    assert client.aborted == ["before"]


def test_tasks_that_a_test_is_known_to_have_abandoned_are_counted_when_they_are_gone():
    given = Unfinished(given={7: frozenset({"a", "b"})})
    assert clean_engines(Client(Task()), Slots(given), 10, abandoned={"b", "c"}).dropped == 1


def test_a_task_that_is_seen_once_may_have_ended_and_one_that_is_seen_twice_was_dropped():
    once, twice = Unfinished(given={7: frozenset({"a", "b"})}), Unfinished(given={7: frozenset({"b"})})
    assert clean(Client(Task()), 10, once).dropped == 0
    assert clean(Client(Task()), 10, once, twice).dropped == 1


def test_tasks_that_are_known_to_be_abandoned_are_aborted_wherever_they_are_and_the_engine_is_renewed_again():
    client, slots = Client(Task()), Slots()
    assert not clean_engines(client, slots, 10, abandoned={"a", "b"})
    assert client.aborted == ["a", "b"]
    assert [len(view.sent) for view in (client.direct, client.broadcast)] == [2, 2]
    assert slots.asked == [False, False]


def test_an_engine_that_was_told_what_to_refuse_is_renewed_when_it_has_heard_that():
    class Slow(Client):
        def heed(self) -> Future[None]:
            self.answer: Future[None] = Future()
            threading.Timer(0.1, self.answer.set_result, [None]).start()
            return self.answer

    heard = []
    client = Slow(Task())
    client.direct.apply_async = lambda *_: heard.append(getattr(client, "answer", Future()).done()) or Task()
    assert not clean_engines(client, Slots(), 10, abandoned={"a"})
    assert heard == [False, True]


def test_the_turn_that_makes_sure_has_its_time_when_that_is_up(monkeypatch):
    monkeypatch.setattr(cleaning, "_LAST_TURN", 30)  # the slowest machine gets there

    class Slow(Task):
        def wait(self, timeout: float) -> None:
            self._ready = timeout > 0.2

    client = Client(*[Slow(ready=False) for _ in range(2)])
    assert not clean_engines(client, Slots(), 0, abandoned={"a"})
    assert len(client.direct.sent) == 2


def test_engines_that_have_all_died_cannot_be_told_anything():
    class Dying(Client):
        def heed(self) -> Future[None]:
            raise NoEnginesRegistered("none")

    left = clean_engines(Dying(Task(error=SystemError("gone"))), Slots(), 10, abandoned={"a"})
    assert left.stuck == {7: "the engine could not be renewed: SystemError: gone"}


def test_tasks_that_do_not_end_are_left():
    given = Unfinished(given={7: frozenset({"a"})}, waiting=frozenset({"b", "c"}))
    left = clean_engines(Client(Task()), Slots(given, for_ever=True), 0.05)
    assert left == Leftovers({7: BUSY}, 2)
    assert str(left) == f"engine 7: {BUSY}; 2 tasks wait for an engine"


def test_what_an_engine_cannot_bring_back_is_told_at_once():
    begun = time.monotonic()
    left = clean(Client(Task("a thread", "a process")), 100)
    assert left.stuck == {7: "a thread; a process"}
    assert time.monotonic() - begun < 50


def test_an_engine_that_fails_the_renewal_is_told_with_its_error():
    left = clean(Client(Task(error=OSError("no folder\nand more"))), 100)
    assert left.stuck == {7: "the engine could not be renewed: OSError: no folder"}


@pytest.mark.parametrize("lost", [1, 3])
def test_output_that_was_lost_before_the_client_could_hear_it_is_asked_for_again(lost):
    assert not clean(Client(*[Task(heard=False)] * lost, Task()), 10)


def test_an_engine_that_is_never_heard_is_stuck():
    assert clean(Client(Task(heard=False)), 0.05).stuck == {7: "the engine's output did not arrive"}


@pytest.mark.parametrize("error", [KeyError(7), IndexError("No such engine: 7"), NoEnginesRegistered("none")])
def test_an_engine_that_the_client_knows_no_more_has_died(error):
    class Unknown(Client):
        def broadcast_view(self, _: list[int]) -> View:
            raise error

    assert clean(Unknown(Task())).stuck == {7: "the engine died"}
