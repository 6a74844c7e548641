"""The `claude-batch` command line."""

import json
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Claude Message Batches from the terminal."""


@app.command()
def forget(
    dag: Annotated[str, typer.Argument(help="The Dag's id.")],
    run: Annotated[str, typer.Argument(help="The run's id.")],
    task: Annotated[str, typer.Argument(help="The id of the task that submits.")],
    *,
    map_index: Annotated[int, typer.Option(help="Which of a mapped task.")] = -1,
) -> None:
    """Let a task submit anew, and pay again, when it is cleared; run it where `airflow` reaches its database."""
    from airflow_provider_claude_batch.errors import ClaudeBatchError
    from airflow_provider_claude_batch.forget import forget as forget_note

    try:
        noted = forget_note(dag, run, task, map_index)
    except ClaudeBatchError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    if noted is None:
        what = "the note of this task, which the workers keep in a state backend that cannot be read here"
    else:
        submitted = noted.submission
        at = f"{submitted.submitted_at:%Y-%m-%d %H:%M} UTC"
        what = f"{submitted.requests:,} requests, submitted at {at} as {submitted.submission}"
    typer.echo(
        f"Forgotten: {what}. When {task} runs again, they are submitted and paid again, and batches of before "
        "that still run are cancelled: clear it now."
    )


@app.command()
def emulate(
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8765,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Name under which others reach the emulator; * for any.")
    ] = None,
    state: Annotated[
        Path | None, typer.Option(help="SQLite file that keeps everything; default: a temporary one.")
    ] = None,
    seed: Annotated[str, typer.Option(help="Another seed draws other outcomes and orders.")] = "0",
    batch_seconds: Annotated[str, typer.Option(help="Emulated seconds until a batch ends: 3, or 2-10.")] = "3",
    cancel_seconds: Annotated[float, typer.Option(help="Emulated seconds from cancel to the end.", min=0)] = 1.0,
    rate: Annotated[
        list[str] | None, typer.Option(help="Share of rows with an outcome: overloaded_error=0.03.")
    ] = None,
    fault: Annotated[
        list[str] | None, typer.Option(help="A failure to come: JSON, or status:status=529,times=2.")
    ] = None,
    now: Annotated[str | None, typer.Option(help="Moment at which the emulated clock starts, in ISO 8601.")] = None,
    speed: Annotated[float | None, typer.Option(help="Emulated seconds per real second; default: 1.", min=0)] = None,
    key: Annotated[list[str] | None, typer.Option(help="Accept only these keys: KEY or KEY=workspace.")] = None,
    removed_params: Annotated[
        Literal["row", "create", "allow"], typer.Option(help="What temperature, top_p and top_k do under 2026-10-21.")
    ] = "row",
    max_body: Annotated[int, typer.Option(help="Largest create body in bytes; above it 413.", min=1)] = 256_000_000,
    live_counts: Annotated[bool, typer.Option("--live-counts", help="Move the counts before the end.")] = False,
    cancel_ended: Annotated[
        Literal["unchanged", "error"], typer.Option(help="How cancelling an ended batch is answered.")
    ] = "unchanged",
    ready_file: Annotated[Path | None, typer.Option(help="Write {url, pid} here as JSON when ready.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show every call.")] = False,
) -> None:
    """Serve an emulator of the Message Batches API: no key, no cost, every failure on demand."""
    import msgspec

    from airflow_provider_claude_batch.emulator.clock import parse_moment
    from airflow_provider_claude_batch.emulator.server import listen, run
    from airflow_provider_claude_batch.emulator.settings import Settings, parse_keys, parse_rates, parse_span
    from airflow_provider_claude_batch.emulator.world import World

    with ExitStack() as stack:
        directory = None if state else stack.enter_context(tempfile.TemporaryDirectory(prefix="claude-batch-"))
        try:
            settings = Settings(
                state=state or Path(directory or "") / "state.sqlite",
                seed=seed,
                batch_seconds=parse_span(batch_seconds),
                cancel_seconds=cancel_seconds,
                rates=parse_rates(rate or []),
                removed_params=removed_params,
                keys=parse_keys(key or []),
                max_body=max_body,
                live_counts=live_counts,
                cancel_ended=cancel_ended,
                now=parse_moment(now) if now else None,
                speed=speed,
                faults=tuple(fault or ()),
                allowed_hosts=(host, *(allow_host or ())),
            )
            listener = stack.enter_context(listen(host, port))
            world = World(settings)
        except (ValueError, OSError, msgspec.MsgspecError) as error:  # an older msgspec's is no ValueError
            raise typer.BadParameter(str(error)) from None
        run(world, listener, lambda url: _announce(url, settings.keys, ready_file), verbose=verbose)


def _announce(url: str, keys: dict[str, str], ready_file: Path | None) -> None:
    # The key of the examples is one of the emulator's own, never a real one.
    key = "emulator-key" if not keys else "one-of-your-keys"
    connection = json.dumps({"conn_type": "anthropic", "host": url, "password": key})
    typer.echo(
        f"Emulating the Message Batches API at {url}\n\n"
        f"Airflow   export AIRFLOW_CONN_ANTHROPIC_DEFAULT='{connection}'\n"
        f"Python    anthropic.Anthropic(api_key={key!r}, base_url={url!r})\n"
        f"curl      curl {url}/v1/messages/batches -H 'x-api-key: {key}' -H 'anthropic-version: 2023-06-01'\n"
        f"control   curl {url}/emulator/health    (faults, clock, journal: see docs/emulator.md)\n\n"
        "Ctrl+C stops it."
    )
    if ready_file is not None:
        # Renamed into place, so that whoever polls for it never reads half of it.
        ready_file.parent.mkdir(parents=True, exist_ok=True)
        draft = ready_file.with_name(f"{ready_file.name}.part")
        draft.write_text(json.dumps({"url": url, "pid": os.getpid()}))
        draft.replace(ready_file)


if __name__ == "__main__":
    app()
