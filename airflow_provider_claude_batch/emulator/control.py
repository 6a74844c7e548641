"""The endpoints under /emulator: what tests and demos steer the emulator with."""

import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from email.utils import formatdate

import msgspec
from msgspec import Struct
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from airflow_provider_claude_batch.emulator.clock import ClockChange
from airflow_provider_claude_batch.emulator.errors import ApiError
from airflow_provider_claude_batch.emulator.faults import parse_faults
from airflow_provider_claude_batch.emulator.journal import FILTERS
from airflow_provider_claude_batch.emulator.stream import LineStream
from airflow_provider_claude_batch.emulator.world import World

JOURNAL_LIMIT = 1000
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]


class Order(Struct, frozen=True):
    """One call to a control endpoint."""

    world: World
    request: Request
    body: bytes


Control = Callable[[Order], object]


def health(order: Order) -> object:
    """Say that the emulator is up, and its time."""
    return {"status": "ok", **order.world.clock.as_json()}


def change_clock(order: Order) -> object:
    """Move, set, speed up or freeze the clock."""
    order.world.clock.change(msgspec.json.decode(order.body, type=ClockChange))
    return order.world.clock.as_json()


def show_clock(order: Order) -> object:
    """Show the clock."""
    return order.world.clock.as_json()


def add_faults(order: Order) -> object:
    """Add one fault or a list of them."""
    order.world.faults.add(parse_faults(order.body))
    return order.world.faults.as_json()


def show_faults(order: Order) -> object:
    """Show the faults with what remains of them."""
    return order.world.faults.as_json()


def clear_faults(order: Order) -> object:
    """Call all faults off."""
    order.world.faults.clear()
    return order.world.faults.as_json()


def show_journal(order: Order) -> object:
    """Show the calls received, filtered."""
    query = order.request.query_params
    if unknown := sorted(set(query) - {*FILTERS, "limit", "after_id"}):
        raise ValueError(f"unknown filters: {', '.join(unknown)}")
    limit, after_id = int(query.get("limit", JOURNAL_LIMIT)), int(query.get("after_id", 0))
    return order.world.journal.read({name: query[name] for name in FILTERS if name in query}, limit, after_id)


def summarise_journal(order: Order) -> object:
    """Count the calls by operation and status."""
    return order.world.journal.summary()


def reset(order: Order) -> object:
    """Forget everything."""
    order.world.reset()
    return health(order)


def submitted(order: Order) -> object:
    """Stream what was submitted as one batch."""
    batch = order.world.store.find(None, order.request.path_params["batch_id"])
    lines = _submitted_lines(order.world.store.rows_as_submitted(batch))
    return LineStream(lines, {"content-type": "application/x-jsonl"}, order.world.hang_up)


def nothing(order: Order) -> object:
    """Refuse what is no control."""
    raise ApiError(404, f"{order.request.method} {order.request.url.path} is no control; docs/emulator.md lists them")


def control_routes(world: World) -> list[Route]:
    """Put every control endpoint at its path."""
    controls: list[tuple[str, str, Control]] = [
        ("GET", "/emulator/health", health),
        ("GET", "/emulator/clock", show_clock),
        ("POST", "/emulator/clock", change_clock),
        ("GET", "/emulator/faults", show_faults),
        ("POST", "/emulator/faults", add_faults),
        ("DELETE", "/emulator/faults", clear_faults),
        ("GET", "/emulator/journal", show_journal),
        ("GET", "/emulator/journal/summary", summarise_journal),
        ("POST", "/emulator/reset", reset),
        ("GET", "/emulator/batches/{batch_id}/requests", submitted),
    ]
    routes = [Route(path, _endpoint(world, control), methods=[method]) for method, path, control in controls]
    return [*routes, Route("/emulator/{path:path}", _endpoint(world, nothing), methods=METHODS)]


def _refuse_forms(order: Order) -> None:
    """Take JSON alone: what a form or a page can send without asking the browser first is none."""
    given = order.request.headers.get("content-type", "")
    is_json = given.partition(";")[0].strip().lower() == "application/json"
    if (order.body or given) and not is_json and order.request.method not in {"GET", "HEAD"}:
        raise ApiError(415, "the body of a control call is JSON: send the header content-type: application/json")


def _endpoint(world: World, control: Control) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        response = await run_in_threadpool(_control, control, Order(world, request, await request.body()))
        response.headers["date"] = formatdate(world.clock.now(), usegmt=True)
        return response

    return endpoint


def _control(control: Control, order: Order) -> Response:
    try:
        _refuse_forms(order)
        answer = control(order)
    except ApiError as error:
        return _json({"error": error.message}, error.status)
    except (ValueError, msgspec.MsgspecError) as error:
        return _json({"error": str(error)}, 400)
    return answer if isinstance(answer, Response) else _json(answer, 200)


def _submitted_lines(rows: Iterator[sqlite3.Row]) -> Iterator[bytes]:
    for row in rows:
        # A raw body may be pretty-printed; a line must be one line.
        yield (msgspec.json.format(row["body"], indent=-1) if b"\n" in row["body"] else row["body"]) + b"\n"


def _json(value: object, status: int) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
