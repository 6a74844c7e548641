"""Runs the emulator on a socket until it is told to stop."""

import asyncio
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import Scope

from airflow_provider_claude_batch.emulator.app import build_app
from airflow_provider_claude_batch.emulator.world import World


class LocalServer(uvicorn.Server):
    """A server that can hang up on one client, and that waits for none when it stops."""

    def hang_up(self, scope: Scope, abruptly: bool) -> None:
        """Close the connection of this call, at once or after what is already written."""
        for connection in list(self.server_state.connections):
            if getattr(connection, "scope", None) is scope:
                connection.transport.abort() if abruptly else connection.transport.close()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0.05)  # lets the calls notice, so that nothing has to be cancelled
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """Take the port; connections wait from now on."""
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)


def run(world: World, listener: socket.socket, ready: Callable[[str], None], *, verbose: bool) -> None:
    """Serve until SIGTERM or SIGINT; `ready` is told the base URL once connections are taken."""
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, _exit)
    server = LocalServer(_config(world, verbose=verbose))
    world.hang_up = server.hang_up
    host, port, *_ = listener.getsockname()
    ready(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
    try:
        server.run(sockets=[listener])
    finally:
        world.close()


def _config(world: World, *, verbose: bool) -> uvicorn.Config:
    return uvicorn.Config(
        build_app(world),
        log_level="info" if verbose else "error",
        access_log=verbose,
        lifespan="off",
        date_header=False,
        server_header=False,
        timeout_keep_alive=60,
        timeout_graceful_shutdown=1,
    )


def _exit(_number: int, _frame: FrameType | None) -> None:
    # uvicorn stops gracefully on the signal and then raises it again for us.
    sys.exit(0)
