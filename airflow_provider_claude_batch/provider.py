"""What Airflow is told about this package."""

from typing import Any

_PACKAGE = "airflow_provider_claude_batch"
_NAME = "Claude Batch"
_DOCS = "https://docs.claude.com/en/docs/build-with-claude/batch-processing"


def get_provider_info() -> dict[str, Any]:
    """Describe the provider, in the shape of Airflow's provider-info schema."""
    return {
        "package-name": "airflow-provider-claude-batch",
        "name": _NAME,
        "description": "Claude Message Batches: half the price, one row per request.",
        "integrations": [
            {
                "integration-name": _NAME,
                "external-doc-url": _DOCS,
                "tags": ["ai"],
            }
        ],
        "operators": _modules("operators"),
        "sensors": _modules("sensor"),
        "triggers": _modules("trigger"),
        "extra-links": [f"{_PACKAGE}.links.{name}" for name in ("ClaudeConsoleLink", "ClaudeBatchesLink")],
        "task-decorators": [{"name": "claude_batch", "class-name": f"{_PACKAGE}.decorator.claude_batch_task"}],
        "config": {
            "claude_batch": {
                "description": "Claude Message Batches.",
                "options": {
                    "deployment": {
                        "description": "A name that keeps this Airflow apart from others in one Anthropic workspace. "
                        "By default the base URL of its API server.",
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "production",
                        "default": "",
                    },
                    "prices": {
                        "description": "Prices of models, beside those that the package knows or in their place: JSON "
                        "as in the example, in dollars per million tokens outside batches, or the path of such a file.",
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": '{"claude-next-1": {"input": 3, "output": 15}}',
                        "default": "",
                    },
                },
            }
        },
    }


def _modules(name: str) -> list[dict[str, Any]]:
    return [{"integration-name": _NAME, "python-modules": [f"{_PACKAGE}.{name}"]}]
