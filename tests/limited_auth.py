"""An auth manager with limits: each of its users may read less than the role says."""

from typing import Any

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager


class LimitedAuthManager(SimpleAuthManager):
    """The simple one, whose roles may read every Dag, made stricter for two users."""

    def is_authorized_dag(self, *, user: Any, access_entity: Any = None, details: Any = None, **asked: Any) -> bool:
        """Give `guest` Dags that are called public, `reader` no XComs, and `half` none of the Dag secret."""
        dag_id = details.id if details else None
        if user.username == "guest" and dag_id is not None and not dag_id.startswith("public_"):
            return False
        if user.username == "reader" and access_entity is DagAccessEntity.XCOM:
            return False
        if user.username == "half" and access_entity is DagAccessEntity.XCOM and dag_id == "secret":
            return False
        return super().is_authorized_dag(user=user, access_entity=access_entity, details=details, **asked)
