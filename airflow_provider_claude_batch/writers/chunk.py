"""Chunks: rows as a warehouse takes them at once."""

from collections.abc import Iterable, Iterator

from airflow_provider_claude_batch.row import Row


def chunks(rows: Iterable[Row], most_rows: int, most_chars: int, *, by_batch: bool = False) -> Iterator[list[Row]]:
    """Group rows, those of one batch if so wanted; a few long answers fill a chunk as well as many short ones."""
    chunk: list[Row] = []
    chars = 0
    for row in rows:
        is_full = len(chunk) >= most_rows or chars >= most_chars
        if chunk and (is_full or (by_batch and row.batch_id != chunk[0].batch_id)):
            yield chunk
            chunk, chars = [], 0
        chunk.append(row)
        chars += len(row.text or "") + len(row.content or "")
    if chunk:
        yield chunk
