"""Requests for tests, as a Dag would write them and as they are after reading."""

from typing import Any

from airflow_provider_claude_batch.request import Defaults, Reading, Request

PARAMS = {"model": "claude-haiku-4-5", "max_tokens": 8, "messages": [{"role": "user", "content": "hi"}]}
NOTHING = Defaults({})


def raw(custom_id: Any = "a", **params: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "params": {**PARAMS, **params}}


def request(custom_id: str = "a", betas: tuple[str, ...] = (), **params: Any) -> Request:
    (one,) = Reading([raw(custom_id, **params)], Defaults({}, betas))
    return one
