"""A state backend of the workers that keeps notes outside of Airflow's database, as one for object storage does."""

import json
import os
from pathlib import Path
from typing import Any

from airflow.state.metastore import MetastoreBackend

FOLDER = "EXTERNAL_STATE_FOLDER"


class ExternalState(MetastoreBackend):
    """Keeps each value in a file; Airflow's database has its path."""

    def serialize_task_state_store_to_ref(self, *, value: Any, key: str, scope: Any) -> str:
        path = _path(scope, key)
        path.write_text(json.dumps(value))
        return str(path)

    def deserialize_task_state_store_from_ref(self, stored: str) -> Any:
        return json.loads(Path(stored).read_text())

    def delete(self, scope: Any, key: str, **_: Any) -> None:
        _path(scope, key).unlink(missing_ok=True)


def _path(scope: Any, key: str) -> Path:
    return Path(os.environ[FOLDER], f"{scope.task_id}-{key}.json")
