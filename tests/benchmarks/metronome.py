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
        beat, stall = Path(self.folder) / "beat", Path(self.folder) / "stall"
        while True:
            if beat.exists():
                stall.write_text(str(await self._longest_stall(beat)))
            await asyncio.sleep(1)
        yield TriggerEvent(None)  # makes it a generator

    async def _longest_stall(self, beat: Path) -> float:
        longest, last = 0.0, time.monotonic()
        while beat.exists():
            await asyncio.sleep(BEAT)
            now = time.monotonic()
            longest, last = max(longest, now - last - BEAT), now
        return longest
