"""The models that the emulator knows."""

from msgspec import Struct

EXTENDED_OUTPUT_BETA = "output-300k-2026-03-24"
EXTENDED_OUTPUT = 300_000


class Model(Struct, frozen=True):
    """One line of the models endpoint."""

    id: str
    display_name: str
    line: str
    released: str
    max_tokens: int
    min_cached: int = 1_024
    extended: bool = False
    max_input_tokens: int = 1_000_000

    def cap(self, betas: frozenset[str]) -> int:
        """Say how much output one batched request may ask for."""
        return EXTENDED_OUTPUT if self.extended and EXTENDED_OUTPUT_BETA in betas else self.max_tokens

    def as_json(self) -> dict[str, object]:
        return {
            "type": "model",
            "id": self.id,
            "display_name": self.display_name,
            "created_at": f"{self.released}T00:00:00Z",
            "capabilities": None,
            "deprecated_at": None,
            "lifecycle": "active",
            "line": self.line,
            "max_input_tokens": self.max_input_tokens,
            "max_tokens": self.max_tokens,
            "retires_at": None,
        }


# Newest first, as the endpoint lists them.
MODELS = (
    Model("claude-fable-5-2", "Claude Fable 5.2", "fable", "2026-11-09", 128_000, 512),
    Model("claude-mythos-5-2", "Claude Mythos 5.2", "mythos", "2026-11-09", 128_000, 512),
    Model("claude-haiku-5-5", "Claude Haiku 5.5", "haiku", "2026-10-07", 64_000, 512, extended=True),
    Model("claude-sonnet-5-5", "Claude Sonnet 5.5", "sonnet", "2026-09-28", 128_000, extended=True),
    Model("claude-opus-5-5", "Claude Opus 5.5", "opus", "2026-09-22", 128_000, 512, extended=True),
    Model("claude-fable-5-1", "Claude Fable 5.1", "fable", "2026-09-01", 128_000, 512),
    Model("claude-mythos-5-1", "Claude Mythos 5.1", "mythos", "2026-09-01", 128_000, 512),
    Model("claude-fable-5", "Claude Fable 5", "fable", "2026-07-15", 128_000, 512),
    Model("claude-mythos-5", "Claude Mythos 5", "mythos", "2026-07-15", 128_000, 512),
    Model("claude-opus-5", "Claude Opus 5", "opus", "2026-07-01", 128_000, 512, extended=True),
    Model("claude-sonnet-5", "Claude Sonnet 5", "sonnet", "2026-07-01", 128_000, extended=True),
    Model("claude-opus-4-8", "Claude Opus 4.8", "opus", "2026-05-20", 128_000, extended=True),
    Model("claude-opus-4-7", "Claude Opus 4.7", "opus", "2026-04-16", 128_000, 2_048, extended=True),
    Model("claude-mythos-preview", "Claude Mythos Preview", "mythos", "2026-04-07", 128_000, 2_048),
    Model("claude-sonnet-4-6", "Claude Sonnet 4.6", "sonnet", "2026-02-17", 64_000, extended=True),
    Model("claude-opus-4-6", "Claude Opus 4.6", "opus", "2026-02-05", 128_000, 4_096, extended=True),
    Model("claude-opus-4-5", "Claude Opus 4.5", "opus", "2025-11-24", 64_000, 4_096, max_input_tokens=200_000),
    Model("claude-opus-4-5-20251101", "Claude Opus 4.5", "opus", "2025-11-24", 64_000, 4_096, max_input_tokens=200_000),
    Model("claude-haiku-4-5", "Claude Haiku 4.5", "haiku", "2025-10-15", 64_000, 4_096, max_input_tokens=200_000),
    Model(
        "claude-haiku-4-5-20251001", "Claude Haiku 4.5", "haiku", "2025-10-15", 64_000, 4_096, max_input_tokens=200_000
    ),
    Model("claude-sonnet-4-5", "Claude Sonnet 4.5", "sonnet", "2025-09-29", 64_000, max_input_tokens=200_000),
    Model("claude-sonnet-4-5-20250929", "Claude Sonnet 4.5", "sonnet", "2025-09-29", 64_000, max_input_tokens=200_000),
)
BY_ID = {model.id: model for model in MODELS}
