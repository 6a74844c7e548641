"""The page's own little server, mounted into Airflow's API server: one document, its files, and JSON for them."""

import logging
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import msgspec
from airflow.api_fastapi.core_api.security import GetUserDep
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response

from airflow_provider_claude_batch import charts, connection
from airflow_provider_claude_batch.entry import Entry
from airflow_provider_claude_batch.errors import ClaudeBatchError
from airflow_provider_claude_batch.page import access, rendered
from airflow_provider_claude_batch.page.archive import Archive, LeftOut, View
from airflow_provider_claude_batch.page.beside import Beside
from airflow_provider_claude_batch.page.listing import Filter, Listing
from airflow_provider_claude_batch.page.live import Live
from airflow_provider_claude_batch.receipt import Receipt
from airflow_provider_claude_batch.submission import State, Submission, gather
from airflow_provider_claude_batch.submit import CONSOLE
from airflow_provider_claude_batch.words import counted
from airflow_provider_claude_batch.writers.sample import Sample

_FILES = Path(__file__).with_name("static")
_TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_CHARTED = timedelta(days=29)
_MOST_ROWS, _MOST_BATCHES, _MOST_NAMED = 50, 1_000, 10
_IN_SHORT = "Connection {} gave no answer: its batches are shown as their receipts tell. Open one to read why."
_WAREHOUSES_AT_ONCE, _PATIENCE = 4, 30.0
_SLOW = "The warehouse has not answered in time: ask again later."
_NOT_THERE = "There is no such submission, or you may not read its Dag."
_UNREAD = (
    "{} of this submission cannot be read now, because the XCom store gives no answer. The page shows what it read "
    "before; errors, examples and the ids of skipped requests may be missing."
)

log = logging.getLogger(__name__)


def build() -> FastAPI:
    """Make the app; it is made when somebody first asks for something."""
    app = FastAPI(title="Claude Batches", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.archive, app.state.live, app.state.warehouses = Archive(), Live(), Beside(_WAREHOUSES_AT_ONCE)
    app.middleware("http")(_with_headers)
    for path, answer in _ROUTES.items():
        app.get(path)(answer)
    return app


async def _with_headers(request: Request, answer: Callable[[Request], Any]) -> Response:
    response: Response = await answer(request)
    for name, value in _HEADERS.items():
        response.headers[name] = value
    response.headers.setdefault("Cache-Control", "no-store")
    return response


Day = Annotated[date | None, Query(ge=date(2000, 1, 1), le=date(2999, 12, 31))]


def wanted(
    *,
    dag_id: str | None = None,
    run_id: str | None = None,
    state: State | None = None,
    model: str | None = None,
    since: Day = None,
    until: Day = None,
) -> Filter:
    """Read the filters."""
    return Filter(dag_id or None, run_id or None, state, model or None, since, until)


Wanted = Annotated[Filter, Depends(wanted)]


def page() -> Response:
    """Answer with the document: it holds nothing that is anybody's."""
    return file("index.html")


def file(name: str) -> Response:
    """Answer with one of our files: no name leads out of their folder."""
    found = {path.name: path for path in _FILES.iterdir()}.get(name)
    if found is None or found.suffix not in _TYPES:
        raise HTTPException(404, "There is no such file.")
    return Response(found.read_bytes(), media_type=_TYPES[found.suffix], headers={"Cache-Control": "no-cache"})


def submissions(
    *,
    request: Request,
    user: GetUserDep,
    by: Wanted,
    limit: Annotated[int, Query(ge=1, le=100)] = 25,
    offset: Annotated[int, Query(ge=0)] = 0,
    live: bool = False,
) -> Response:
    """List submissions; of those that are shown and run, ask the API where that is wanted."""
    view = _readable(request, user)
    found = view.submissions
    listing = _listing(request, found, by)
    shown = listing.found[offset : offset + limit]
    if live:
        _ask(request, shown)
        listing = _listing(request, found, by)
    in_scope = [one for one in found if Filter(by.dag_id, by.run_id).holds(one)]
    return _json(
        {
            **listing.page(offset, limit),
            "dags": sorted({one.first.first.dag_id for one in found}),
            "models": sorted({model for one in in_scope for model in one.models}),
            "capped": view.is_capped,
            "left_out": _named([one for one in view.left_out if by.is_in(one.dag_id, one.run_id)]),
            "live": {"problems": [_IN_SHORT.format(conn_id) for conn_id in _problems(request, shown)]},
        }
    )


def submission(
    *, request: Request, user: GetUserDep, name: str, dag_id: str, run_id: str, live: bool = False
) -> Response:
    """Show one submission with everything that its receipts say."""
    found, left_out, problems = _one(request, user, name, dag_id, run_id)
    if live:
        _ask(request, [found])
    shown = _listing(request, [found], Filter()).show(found, whole=True)
    return _json(
        {
            "submission": shown,
            "console_url": CONSOLE,
            "left_out": _named(left_out),
            "problems": problems,
            "live": {"problems": [*_problems(request, [found]).values()]},
        }
    )


def rows(
    *, request: Request, user: GetUserDep, name: str, dag_id: str, run_id: str, attempt: int = 1, failed: bool = True
) -> Response:
    """Ask the warehouse for some rows of a round."""
    found, *_ = _one(request, user, name, dag_id, run_id)
    loads = [entry for one in found.rounds if one.receipt.attempt == attempt for entry in one.loads]
    answers: list[dict[str, Any]] = []
    asked = request.app.state.warehouses.run(lambda: answers.append(_sampled(loads, failed=failed)))
    asked.wait(_PATIENCE)
    return _json(answers[0] if answers else {"rows": [], "problem": _SLOW})


def drawn(request: Request, user: GetUserDep, by: Wanted) -> Response:
    """Add up what the charts show: of a run all of it, else the last thirty days, where no others are asked for."""
    until = by.until or datetime.now(UTC).date()
    of_any_day = msgspec.structs.replace(by, since=None, until=None)
    found = _listing(request, _readable(request, user).submissions, of_any_day).found
    first = min((charts.day_of(one.submitted_at) for one in found), default=until) if by.run_id else until - _CHARTED
    return _json(charts.draw(found, request.app.state.live.looks, by.since or first, until))


_ROUTES: dict[str, Callable[..., Response]] = {
    "/page": page,
    "/static/{name}": file,
    "/submissions": submissions,
    "/submissions/{name}": submission,
    "/submissions/{name}/rows": rows,
    "/charts": drawn,
}


def _readable(request: Request, user: Any) -> View:
    view: View = request.app.state.archive.view(access.readable(user))
    return view


def _listing(request: Request, found: list[Submission], by: Filter) -> Listing:
    return Listing(found, by, request.app.state.live.looks, datetime.now(UTC))


def _one(
    request: Request, user: Any, name: str, dag_id: str, run_id: str
) -> tuple[Submission, list[LeftOut], list[str]]:
    """Read one submission anew; who may not read its Dag does not learn whether there is one."""
    places = {place for one in _readable(request, user).submissions if one.id == name for place in one.places}
    if (dag_id, run_id) not in places:
        raise HTTPException(404, _NOT_THERE)
    if not access.may_read_xcoms(user, dag_id):
        raise HTTPException(403, "What a submission returned is for those who may read the XComs of its Dag.")
    allowed = [place for place in sorted(places) if place[0] == dag_id or access.may_read_xcoms(user, place[0])]
    read = request.app.state.archive.read(name, allowed)
    found = gather(read.entries)
    if not found:
        raise HTTPException(404, _NOT_THERE)
    problems = [_UNREAD.format(counted(read.unread, "receipt"))] if read.unread else []
    return found[0], read.left_out, problems


def _named(left_out: list[LeftOut]) -> dict[str, Any]:
    """Count receipts that are left out, and name the newest."""
    return {"total": len(left_out), "receipts": left_out[:_MOST_NAMED]}


def _ask(request: Request, shown: list[Submission]) -> None:
    """Ask how what runs stands, as far as receipts do not say it."""
    request.app.state.live.ask(_to_ask(request, shown))


def _to_ask(request: Request, shown: list[Submission]) -> dict[str, dict[str, datetime | None]]:
    """Name batches whose end nobody has seen, by connection: those of which the API still has results."""
    now, live = datetime.now(UTC), request.app.state.live
    found: dict[str, dict[str, datetime | None]] = {}
    for one in (one for submission in shown for one in submission.rounds):
        for shard in one.shards:
            left, batch_id = shard.days_left(now), shard.part.id
            is_known = shard.part.ended_at or shard.loaded_at or live.has_ended(batch_id)
            if one.receipt.conn_id and not is_known and (left is None or left > 0):
                found.setdefault(one.receipt.conn_id, {})[batch_id] = shard.part.created_at
    return found


def _problems(request: Request, shown: list[Submission]) -> dict[str, str]:
    problems: dict[str, str] = request.app.state.live.problems(_to_ask(request, shown))
    return problems


def _sampled(loads: list[Entry], *, failed: bool) -> dict[str, Any]:
    """Ask for rows, or say why there are none."""
    try:
        rendered.check_tables(loads)
        return {"rows": _sample([entry.receipt for entry in loads], failed=failed), "problem": None}
    except ClaudeBatchError as error:
        return {"rows": [], "problem": str(error)}
    except Exception:  # a connection's hook may be anybody's code
        log.exception("A warehouse cannot be asked for rows.")
        return {"rows": [], "problem": "The warehouse cannot be asked: the API server's log says why."}


def _sample(receipts: list[Receipt], *, failed: bool) -> list[Sample]:
    """Ask each table once, whatever the number of loads."""
    ids: dict[tuple[str, str], list[str]] = {}
    for receipt in receipts:
        if receipt.warehouse_conn_id and receipt.table:
            of_table = ids.setdefault((receipt.warehouse_conn_id, receipt.table), [])
            of_table += [*receipt.batch_ids, *([receipt.pseudo_batch] if receipt.is_beginning else [])]
    found: list[Sample] = []
    for (conn_id, table), batch_ids in ids.items():
        writer = connection.open_warehouse(conn_id, table)
        found += writer.sample(batch_ids[:_MOST_BATCHES], failed=failed, limit=_MOST_ROWS)
    return found[:_MOST_ROWS]


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
