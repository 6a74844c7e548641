"""A state backend of the workers that keeps notes outside of Airflow's database, as one for object storage does."""

import json
import os
from pathlib import Path
from typing import Any

from airflow.state.metastore import MetastoreStateStoreBackend

FOLDER = "EXTERNAL_STATE_FOLDER"


class ExternalState(MetastoreStateStoreBackend):
    """Keeps each value in a file; Airflow's database has its path."""

    def serialize_task_state_store_to_ref(self, *, value: Any, key: str, scope: Any) -> str:
        path = Path(os.environ[FOLDER], f"{scope.dag_id}-{scope.task_id}-{scope.map_index}-{key}.json")
        path.write_text(json.dumps(value))
        return str(path)

    def deserialize_task_state_store_from_ref(self, stored: str) -> Any:
        return json.loads(Path(stored).read_text())
