"""Elements: what tells the elements of a mapped task apart, the same in every run."""

import logging
from collections.abc import Mapping
from typing import Any

log = logging.getLogger(__name__)


def element_of(context: Mapping[str, Any], given: Any = None) -> str:
    """Return the name that the Dag gives, or what `map_index_template` makes of it, or else the map index."""
    index = getattr(context["ti"], "map_index", None)
    if given is not None and str(given):
        return str(given)
    return "" if index is None or index < 0 else _rendered(context) or str(index)


def _rendered(context: Mapping[str, Any]) -> str:
    """Render the template now: Airflow 3.1 does so when the task is over, and leaves out what is not defined."""
    from jinja2 import StrictUndefined, UndefinedError

    task = context["task"]
    if not (template := getattr(task, "map_index_template", None)):
        return ""
    environment = task.dag.get_template_env().overlay(undefined=StrictUndefined)
    try:
        return str(environment.from_string(template).render(context))
    except UndefinedError as error:
        log.warning("map_index_template names no element before the task runs (%s): its map index does.", error)
        return ""
