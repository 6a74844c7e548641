"""What of a prompt can be cached: its prefixes, each up to a block."""

from collections.abc import Iterator
from hashlib import blake2b
from itertools import islice
from typing import Any

from msgspec import Struct

from airflow_provider_claude_batch.emulator.models import BY_ID
from airflow_provider_claude_batch.emulator.prompt import characters, content_of, tokens

# How many blocks are tried for a prefix cached earlier, from each breakpoint backwards, itself included.
LOOKBACK = 20
THINKING = frozenset({"thinking", "redacted_thinking"})
# Where it is in the params, whose it is, and the block itself.
Block = tuple[str, str, dict[str, Any]]


class Mark(Struct, frozen=True):
    """A cache_control, and the number of the block after which it makes a breakpoint."""

    at: int
    where: str
    control: Any

    @property
    def ttl(self) -> str:
        return str(self.control.get("ttl", "5m"))


class Prefix(Struct, frozen=True, array_like=True):
    """The beginning of a prompt; one with a ttl is a breakpoint, any other was perhaps cached by an earlier request."""

    key: bytes
    tokens: int
    ttl: str | None


def find_marks(params: dict[str, Any]) -> list[Mark]:
    """Find the breakpoints in the order of the prompt, and that of the params last."""
    blocks = list(_blocks(params))
    marks = [
        Mark(at, f"{where}.cache_control", block["cache_control"])
        for at, (where, _, block) in enumerate(blocks)
        if block.get("cache_control") is not None
    ]
    if params.get("cache_control") is not None:
        # It stands on the last block that can bear it, or nowhere.
        last = [at for at, (_, _, block) in enumerate(blocks) if _cacheable(block)][-1:]
        marks += [Mark(at, "cache_control", params["cache_control"]) for at in last]
    return marks


def find_prefixes(params: dict[str, Any], workspace: str) -> list[Prefix]:
    """List the prefixes, shortest first, that can be read or written; what is too short for the model is none."""
    model, ttls = BY_ID[params["model"]], {mark.at: mark.ttl for mark in find_marks(params)}
    # An alias and its snapshot are one model, and bear one name.
    hashed, length, prefixes = blake2b(f"{workspace} {model.display_name}".encode(), digest_size=16), 0, []
    for at, (where, speaker, block) in enumerate(islice(_blocks(params), max(ttls, default=-1) + 1)):
        hashed.update(f"\n{where} {speaker} ".encode() + content_of(block))
        length += characters(block)
        if tokens(length) >= model.min_cached and any(0 <= mark - at < LOOKBACK for mark in ttls):
            prefixes.append(Prefix(hashed.digest(), tokens(length), ttls.get(at)))
    return prefixes


def _blocks(params: dict[str, Any]) -> Iterator[Block]:
    yield from _listed("tools", "system", params.get("tools"))
    yield from _listed("system", "system", params.get("system"))
    for at, turn in enumerate(params["messages"]):
        yield from _listed(f"messages.{at}.content", turn["role"], turn["content"])


def _listed(where: str, speaker: str, value: Any) -> Iterator[Block]:
    if isinstance(value, str):
        yield f"{where}.0", speaker, {"type": "text", "text": value}
    elif isinstance(value, list):
        for at, block in enumerate(value):
            if isinstance(block, dict):
                yield f"{where}.{at}", speaker, block


def _cacheable(block: dict[str, Any]) -> bool:
    return block.get("type") not in THINKING and (block.get("type") != "text" or bool(block.get("text")))
