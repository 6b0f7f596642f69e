"""A held port is nobody's but the one's who asks for it by number."""

from __future__ import annotations

import socket

import pytest
import zmq

from pytest_ipcluster.cluster.ports import HeldPorts, names_ports


def test_the_ports_are_different_and_enough_for_a_controller():
    ports = HeldPorts()
    assert len(set(ports.numbers)) == 18
    ports.release()
    ports.release()


def test_a_socket_of_zmq_can_take_a_held_port():
    ports = HeldPorts(1)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as taker:
        taker.bind(f"tcp://127.0.0.1:{ports.numbers[0]}")
    ports.release()


def test_a_held_port_is_given_to_nobody_who_asks_for_any():
    ports = HeldPorts()
    others = [socket.create_server(("127.0.0.1", 0)) for _ in range(200)]
    given = {other.getsockname()[1] for other in others}
    for other in others:
        other.close()
    ports.release()
    assert given.isdisjoint(ports.numbers)


def test_the_controller_of_a_private_profile_takes_the_ports_that_were_held(new_cluster):
    with new_cluster() as cluster:
        connection = cluster._files.client_connection()
        config = (cluster.folder.profile / "ipcontroller_config.py").read_text()
    assert str(connection["registration"]) in config
    assert str(connection["mux"]) in config


@pytest.mark.parametrize(
    ("arguments", "traits", "named"),
    [
        (["--n=2", "--", "--ports=1,2"], [], True),
        (["--IPController.client_ports=[1]"], [], True),
        ([], ["ping", "regport"], True),
        (["--log-level=DEBUG", "--", "--ip=127.0.0.1", "--transport=tcp"], ["ping"], False),
    ],
)
def test_a_choice_of_ports_is_recognized(arguments, traits, named):
    assert names_ports(arguments, traits) is named
