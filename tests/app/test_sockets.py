"""The server's own sockets."""

from __future__ import annotations

import socket

from app.sockets import send_at_once


def test_connections_to_a_socket_that_was_bound_without_a_protocol_send_at_once() -> None:
    # As Streamlit binds its own: asyncio sets nothing for it.
    with socket.socket(socket.AF_INET) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        send_at_once()
        with socket.create_connection(listening.getsockname()), listening.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
