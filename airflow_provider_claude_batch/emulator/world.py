"""Everything that one running emulator holds."""

import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from starlette.types import Scope

from airflow_provider_claude_batch.emulator.cache import Cache
from airflow_provider_claude_batch.emulator.chance import derived_id
from airflow_provider_claude_batch.emulator.clock import Clock
from airflow_provider_claude_batch.emulator.database import Database
from airflow_provider_claude_batch.emulator.errors import ApiError
from airflow_provider_claude_batch.emulator.faults import Faults, parse_fault_option
from airflow_provider_claude_batch.emulator.journal import Journal
from airflow_provider_claude_batch.emulator.settings import Settings
from airflow_provider_claude_batch.emulator.store import Store

if TYPE_CHECKING:
    from airflow_provider_claude_batch.emulator.stream import HangUp


class World:
    """State, time, failures and records, behind all endpoints."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = Database(settings.state)
        self.clock = Clock(self.database, settings.now, settings.speed)
        self.store = Store(self.database, self.clock)
        self.cache = Cache(self.database)
        self.faults = Faults(self.database)
        self.faults.add([fault for option in settings.faults for fault in parse_fault_option(option)])
        self.journal = Journal(self.database)
        self.stopping = threading.Event()
        self.hang_up: HangUp = _no_server

    def workspace(self, key: str | None) -> str:
        """Name the workspace of a key, which is kept only as a hash."""
        if not key:
            raise ApiError(401, "x-api-key header is required")
        name = self.settings.keys.get(key) if self.settings.keys else f"key:{key}"
        if name is None:
            raise ApiError(401)
        return derived_id("wrkspc_", name)

    def reset(self) -> None:
        """Forget batches, caches, faults, calls and clock changes."""
        self.database.clear()
        self.faults.clear()
        self.clock.reset()

    def close(self) -> None:
        self.stopping.set()
        with suppress(OSError):
            self.clock.save()


def _no_server(_scope: Scope, _abruptly: bool) -> None:
    raise RuntimeError("no server is attached")
