"""A trigger that beats in the triggerer's event loop and writes down by how much it was late."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

BEAT = 0.005


class Metronome(BaseTrigger):
    """Beat while the file `beat` lies in its folder; then say in the file `stall` how late the latest beat came."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return f"{__name__}.{type(self).__name__}", {"folder": self.folder}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        while True:
            if self._is_on():
                self._tell(await self._longest_stall())
            await asyncio.sleep(1)
        yield TriggerEvent(None)  # makes it a generator

    async def _longest_stall(self) -> float:
        longest, last = 0.0, time.monotonic()
        while self._is_on():
            await asyncio.sleep(BEAT)
            now = time.monotonic()
            longest, last = max(longest, now - last - BEAT), now
        return longest

    def _is_on(self) -> bool:
        return (Path(self.folder) / "beat").exists()

    def _tell(self, stall: float) -> None:
        unfinished = Path(self.folder) / "stall.part"
        unfinished.write_text(str(stall))
        unfinished.replace(Path(self.folder) / "stall")
