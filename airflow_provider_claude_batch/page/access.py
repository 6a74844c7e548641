"""Access: who may see what, as Airflow's own auth manager decides it."""

from typing import Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails


def readable(user: Any) -> frozenset[str]:
    """Return the Dags that somebody may read."""
    return frozenset(get_auth_manager().get_authorized_dag_ids(user=user, method="GET"))


def may_read_xcoms(user: Any, dag_id: str) -> bool:
    """Say whether somebody may read what the tasks of a Dag have returned."""
    from airflow.models.dag import DagModel

    manager = get_auth_manager()
    if find_team := getattr(DagModel, "get_team_name", None):  # since Airflow 3.2
        details = DagDetails(id=dag_id, team_name=find_team(dag_id))
    else:
        details = DagDetails(id=dag_id)
    return manager.is_authorized_dag(method="GET", access_entity=DagAccessEntity.XCOM, details=details, user=user)
