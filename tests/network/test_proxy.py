"""What the proxy does to bytes and to connections: the faults one by one, both ways."""

from __future__ import annotations

import socket
import threading

import psutil
import pytest

from pytest_ipcluster.network.streams import Rule

SOON = 30.0
BOTH_WAYS = pytest.mark.parametrize("direction", ["up", "down"])


def ends(pair, direction):
    """Return who sends and who receives in this direction."""
    near, far = pair
    return (near, far) if direction == "up" else (far, near)


def receive(one: socket.socket, size: int) -> bytes:
    """Return so many bytes, or those that came before the end."""
    content = b""
    while len(content) < size and (piece := one.recv(min(size - len(content), 1 << 20))):
        content += piece
    return content


def is_silent(one: socket.socket) -> bool:
    """Tell whether there is nothing to be read now, not even an end."""
    one.setblocking(False)
    try:
        one.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    finally:
        one.settimeout(SOON)
    return False


class Witness:
    """A connection that nothing is done to: what was sent before a round trip on it has been seen by the proxy."""

    def __init__(self, network) -> None:
        self._near, self._far = network.connect("iopub", slot=1)

    def round_trip(self, times: int = 5) -> None:
        for _ in range(times):
            self._near.sendall(b"?")
            assert receive(self._far, 1) == b"?"
            self._far.sendall(b"!")
            assert receive(self._near, 1) == b"!"


@pytest.fixture
def network(one_network):
    one_network.begin()
    return one_network


@pytest.fixture
def witness(network):
    return Witness(network)


def send_later(one: socket.socket, content: bytes) -> threading.Thread:
    """Send more than buffers hold, beside the test."""
    thread = threading.Thread(target=one.sendall, args=(content,), daemon=True)
    thread.start()
    return thread


def noise(size: int) -> bytes:
    """Return bytes in which every gap and every swap shows."""
    return b"".join(number.to_bytes(4, "big") for number in range(size // 4))


class TestWithoutFaults:
    @BOTH_WAYS
    def test_everything_passes(self, network, direction):
        sender, receiver = ends(network.connect(), direction)
        content = noise(8_000_000)
        thread = send_later(sender, content)
        assert receive(receiver, len(content)) == content
        thread.join(SOON)

    @BOTH_WAYS
    def test_an_end_passes_and_the_other_direction_goes_on(self, network, direction):
        sender, receiver = ends(network.connect(), direction)
        sender.sendall(b"last")
        sender.shutdown(socket.SHUT_WR)
        assert receive(receiver, 100) == b"last"
        receiver.sendall(b"answer")
        assert receive(sender, 6) == b"answer"

    @BOTH_WAYS
    def test_a_reset_passes(self, network, direction):
        sender, receiver = ends(network.connect(), direction)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sender.close()
        with pytest.raises(ConnectionResetError):
            receiver.recv(1)

    def test_connections_are_counted(self, network):
        near, far = network.connect()
        near.sendall(b"four")
        receive(far, 4)
        state = network.lanes.state(0)["mux"]
        assert (state["accepted"], state["open"], state["half_open"], state["up"]["passed"]) == (1, 1, 0, 5)
        assert network.lanes.state(0)["task"]["accepted"] == 0

    def test_broadcasts_go_where_the_engine_of_the_slot_would_send_them(self, network):
        for slot, leaf in ((0, "broadcast"), (1, "leaf")):
            near = network.enter("broadcast", slot)
            near.sendall(b"x")
            assert receive(network.leave(leaf), 1) == b"x"

    def test_lanes_are_open_before_the_controller_has_told_its_ports(self, network):
        network.file.unlink()
        assert network.is_refused()
        network.write_file()
        near, far = network.connect()
        near.sendall(b"x")
        assert receive(far, 1) == b"x"

    def test_a_controller_that_listens_everywhere_is_reached_here(self, network):
        network.write_file("tcp://*")
        near, far = network.connect()
        near.sendall(b"x")
        assert receive(far, 1) == b"x"

    def test_without_a_controller_a_connection_is_reset(self, network):
        network.targets["mux"].close()
        assert network.is_refused()

    def test_a_listener_takes_so_many_connections_and_no_more(self, network):
        pairs = [network.connect() for _ in range(64)]
        assert network.is_refused()
        pairs[0][0].close()
        receive(pairs[0][1], 1)
        pairs[0][1].close()
        while network.lanes.state(0)["mux"]["open"] == 64:
            pass  # the proxy hears of it next
        network.connect()


class TestFreeze:
    @BOTH_WAYS
    def test_nothing_passes_and_nothing_is_lost(self, network, witness, direction):
        sender, receiver = ends(network.connect(), direction)
        network.lanes.freeze(0)
        content = noise(20_000_000)
        thread = send_later(sender, content)
        witness.round_trip()
        assert is_silent(receiver)
        network.lanes.heal(0)
        assert receive(receiver, len(content)) == content
        thread.join(SOON)

    @BOTH_WAYS
    def test_one_direction_can_be_frozen(self, network, witness, direction):
        sender, receiver = ends(network.connect(), direction)
        network.lanes.freeze(0, direction=direction)
        sender.sendall(b"question")
        receiver.sendall(b"answer")
        assert receive(sender, 6) == b"answer"
        witness.round_trip()
        assert is_silent(receiver)

    @BOTH_WAYS
    @pytest.mark.parametrize("fault", ["freeze", "delay"])
    def test_a_sender_is_held_up_in_the_end(self, network, direction, fault):
        sender, _ = ends(network.connect(), direction)
        network.lanes.freeze(0) if fault == "freeze" else network.lanes.delay(0, 3600.0)
        sender.settimeout(1.0)
        with pytest.raises(TimeoutError):
            sender.sendall(bytes(500_000_000))
        process = psutil.Process(network.lanes.process.pid)
        assert process.memory_info().rss < 200_000_000

    def test_nobody_can_connect(self, network, witness):
        network.lanes.freeze(0)
        near = network.enter()
        near.sendall(b"hello")
        witness.round_trip()
        network.targets["mux"].setblocking(False)
        with pytest.raises(BlockingIOError):
            network.targets["mux"].accept()
        network.targets["mux"].settimeout(SOON)
        network.lanes.heal(0)
        assert receive(network.leave(), 5) == b"hello"

    @BOTH_WAYS
    def test_an_end_is_not_seen(self, network, witness, direction):
        sender, receiver = ends(network.connect(), direction)
        network.lanes.freeze(0)
        sender.sendall(b"last words")
        sender.close()
        witness.round_trip()
        assert is_silent(receiver)
        network.lanes.heal(0)
        assert receive(receiver, 100) == b"last words"

    def test_an_end_is_not_seen_though_the_other_direction_is_open(self, network, witness):
        near, far = network.connect()
        network.lanes.freeze(0, direction="up")
        near.close()
        for _ in range(5):
            far.sendall(b"are you there?")
            witness.round_trip()
        assert is_silent(far)
        network.lanes.heal(0)
        assert far.recv(1) == b""

    def test_only_what_was_named_is_frozen(self, network):
        network.lanes.freeze(0, channels=["mux", "heartbeat"])
        for channel, slot in (("task", 0), ("mux", 1)):
            near, far = network.connect(channel, slot)
            near.sendall(b"x")
            assert receive(far, 1) == b"x"

    def test_a_heartbeat_has_two_listeners(self, network, witness):
        pairs = [network.connect(channel) for channel in ("hb_ping", "hb_pong")]
        network.lanes.freeze(0, channels="heartbeat")
        for near, _ in pairs:
            near.sendall(b"x")
        witness.round_trip()
        assert all(is_silent(far) for _, far in pairs)


class TestDelay:
    @BOTH_WAYS
    def test_what_is_delayed_comes_after_what_was_sent_later(self, network, witness, direction):
        sender, receiver = ends(network.connect(), direction)
        network.lanes.delay(0, 3600.0)
        sender.sendall(b"late")
        witness.round_trip()
        assert is_silent(receiver)
        network.lanes.delay(0, 0.1)
        assert receive(receiver, 4) == b"late"

    @BOTH_WAYS
    def test_order_is_kept_under_jitter(self, network, direction):
        sender, receiver = ends(network.connect(), direction)
        network.lanes.delay(0, 0.02, 0.02)
        content = noise(4000)
        for start in range(0, len(content), 4):
            sender.sendall(content[start : start + 4])
        assert receive(receiver, len(content)) == content

    def test_what_waits_goes_at_once_when_healed(self, network, witness):
        near, far = network.connect()
        network.lanes.delay(0, 3600.0)
        near.sendall(b"in an hour")
        witness.round_trip()
        network.lanes.heal(0)
        assert receive(far, 10) == b"in an hour"

    def test_pieces_wait_beside_each_other(self, network, witness):
        near, far = network.connect()
        network.lanes.delay(0, 1.0)
        for _ in range(40):
            near.sendall(b"x")
            witness.round_trip(1)
        far.settimeout(20)  # one after the other they would take 40 s
        assert receive(far, 40) == b"x" * 40

    def test_the_same_seed_gives_the_same_jitter(self):
        rules = [Rule(), Rule(), Rule()]
        for rule, seed in zip(rules, ("7 0", "7 0", "8 0"), strict=True):
            rule.random.random()
            rule.change({"seed": seed, "delay": 1.0})
        first, same, other = ([rule.random.random() for _ in range(5)] for rule in rules)
        assert first == same != other


class TestRate:
    @BOTH_WAYS
    def test_only_so_much_passes(self, network, witness, direction):
        sender, receiver = ends(network.connect(), direction)
        network.lanes.rate(0, 1000)
        content = noise(200_000)  # more than three minutes
        thread = send_later(sender, content)
        first = receive(receiver, 40)
        witness.round_trip()
        assert network.lanes.state(0)["mux"][direction]["passed"] < len(content) / 2
        network.lanes.heal(0)
        assert first + receive(receiver, len(content) - 40) == content
        thread.join(SOON)


class TestReset:
    def test_both_ends_see_it(self, network):
        near, far = network.connect()
        other = network.connect("task")
        assert network.lanes.reset(0, channels="mux") == 1
        for one in (near, far):
            with pytest.raises(ConnectionResetError):
                one.recv(1)
        other[0].sendall(b"x")
        assert receive(other[1], 1) == b"x"

    def test_a_new_connection_can_be_made(self, network):
        network.connect()
        network.lanes.reset(0)
        near, far = network.connect()
        near.sendall(b"x")
        assert receive(far, 1) == b"x"
        assert network.lanes.reset(1) == 0


class TestHalfOpen:
    @pytest.fixture(params=["down", "up"])
    def halves(self, request, network):
        """Return the end that is told, and the one that is not."""
        near, far = network.connect()
        assert network.lanes.half_open(0, direction=request.param) == 1
        return (near, far) if request.param == "down" else (far, near)

    def test_one_end_sees_a_reset_and_the_other_nothing(self, halves, witness):
        told, untold = halves
        with pytest.raises(ConnectionResetError):
            told.recv(1)
        untold.sendall(b"are you there?")
        witness.round_trip()
        assert is_silent(untold)

    @pytest.mark.usefixtures("halves")
    def test_a_new_connection_can_be_made_beside_it(self, network):
        near, far = network.connect()
        near.sendall(b"x")
        assert receive(far, 1) == b"x"
        state = network.lanes.state(0)["mux"]
        assert (state["open"], state["half_open"]) == (1, 1)

    def test_healing_ends_it_and_what_came_after_it(self, network, halves):
        later = network.connect()
        network.lanes.heal(0)
        for one in (halves[1], *later):
            with pytest.raises(ConnectionResetError):
                one.recv(1)
        assert network.lanes.state(0)["mux"]["half_open"] == 0


class TestCut:
    @BOTH_WAYS
    @pytest.mark.parametrize("after", [0, 1, 100_000, 6_000_000])
    def test_exactly_so_many_bytes_arrive(self, network, direction, after):
        sender, receiver = ends(network.connect(), direction)
        network.lanes.cut(0, after, direction=direction)
        content = noise(8_000_000)
        failed = threading.Event()

        def send():
            try:
                sender.sendall(content)
                sender.recv(1)  # nobody sends: this is where a reset shows that came after the last byte
            except ConnectionError:
                failed.set()

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        assert receive(receiver, len(content)) == content[:after]
        assert failed.wait(SOON)
        assert network.lanes.state(0)["mux"][direction]["cuts"] == 1

    def test_what_the_receiver_was_sending_does_not_matter(self, network, witness):
        near, far = network.connect()
        network.lanes.cut(0, 1_000_000, direction="up")
        thread = send_later(far, bytes(3_000_000))
        near.sendall(noise(1_000_000))
        witness.round_trip()
        assert receive(far, 2_000_000) == noise(1_000_000)
        thread.join(SOON)
        assert not thread.is_alive()
        far.close()
        with pytest.raises(ConnectionResetError):
            receive(near, 10_000_000)

    def test_it_happens_once(self, network):
        near, _ = network.connect()
        network.lanes.cut(0, direction="up")
        near.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            near.recv(1)
        near, far = network.connect()
        near.sendall(b"x")
        assert receive(far, 1) == b"x"


class TestRefuse:
    def test_new_connections_are_reset_and_old_ones_stay(self, network):
        near, far = network.connect()
        network.lanes.refuse(0, channels="mux")
        assert network.is_refused()
        near.sendall(b"x")
        assert receive(far, 1) == b"x"
        network.lanes.heal(0)
        network.connect()


class TestDiscard:
    @BOTH_WAYS
    def test_bytes_are_gone_for_good(self, network, direction):
        sender, receiver = ends(network.connect(), direction)
        network.lanes.discard(0, direction=direction)
        sender.sendall(b"lost")
        while network.lanes.state(0)["mux"][direction]["discarded"] < 4:
            pass  # the proxy has read nothing yet
        network.lanes.heal(0)
        sender.sendall(b"found")
        assert receive(receiver, 5) == b"found"


class TestClear:
    def test_what_waits_is_dropped(self, network):
        near, far = network.connect()
        network.lanes.freeze(0)
        near.sendall(b"farewell")
        waiting = network.enter("task")
        network.lanes.clear(0)
        for one in (near, far, waiting):
            with pytest.raises(ConnectionResetError):
                one.recv(100)
        near, far = network.connect()
        near.sendall(b"x")
        assert receive(far, 1) == b"x"
