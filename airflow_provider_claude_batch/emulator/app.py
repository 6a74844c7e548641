"""The API's endpoints, each a function from a call to its answer."""

from collections.abc import Awaitable, Callable

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from airflow_provider_claude_batch.emulator.batch import Batch
from airflow_provider_claude_batch.emulator.body import read_object
from airflow_provider_claude_batch.emulator.call import Call, Endpoint, serve
from airflow_provider_claude_batch.emulator.chance import new_id
from airflow_provider_claude_batch.emulator.control import METHODS, control_routes
from airflow_provider_claude_batch.emulator.errors import ApiError, invalid, no_results
from airflow_provider_claude_batch.emulator.intake import Intake, Submission, take_in
from airflow_provider_claude_batch.emulator.message import message
from airflow_provider_claude_batch.emulator.models import BY_ID, MODELS
from airflow_provider_claude_batch.emulator.origin import OwnHostsOnly
from airflow_provider_claude_batch.emulator.page import PageQuery, page
from airflow_provider_claude_batch.emulator.prefix import find_prefixes
from airflow_provider_claude_batch.emulator.prompt import input_tokens
from airflow_provider_claude_batch.emulator.results import TAMPERING, result_lines, tamper
from airflow_provider_claude_batch.emulator.rules import Asked, Problem, find_count_problem, find_problem
from airflow_provider_claude_batch.emulator.settings import DAY
from airflow_provider_claude_batch.emulator.store import End
from airflow_provider_claude_batch.emulator.stream import LineStream
from airflow_provider_claude_batch.emulator.world import World

INTERRUPTIONS = frozenset({"cut_results", "stall_results"})
RUNNING_DELETE = "In progress batches cannot be deleted. Consider canceling the batch instead."
STREAMING = "stream: the emulator does not stream; leave `stream` out"


def create(call: Call) -> Response:
    """Take a batch in."""
    world, slow = call.world, call.world.faults.take(frozenset({"slow_batch"}), call.operation, None)
    submission = Submission(call.workspace or "", call.version, call.betas, slow.seconds if slow else None)
    batch = take_in(Intake(world, submission), call.body)
    call.batch_id, call.requests, call.now = batch.id, batch.requests, batch.created_at
    return _batch(call, batch)


def list_batches(call: Call) -> Response:
    """List the batches of the workspace."""
    batches, has_more = call.world.store.page(call.workspace or "", PageQuery.of(call.request.query_params))
    return _json(page([_as_json(call, batch) for batch in batches], has_more=has_more))


def retrieve(call: Call) -> Response:
    """Show one batch."""
    batch = _find(call)
    response = _batch(call, batch)
    if batch.status(call.now) != "ended":
        response.headers["retry-after"] = "10"
    return response


def cancel(call: Call) -> Response:
    """Let a batch end soon."""
    batch = _find(call)
    status = batch.status(call.now)
    if status == "ended" and call.world.settings.cancel_ended == "error":
        raise invalid(f"Message Batch {batch.id} has already ended and cannot be canceled.")
    if status == "in_progress":
        _cancel(call, batch)
    return _batch(call, _find(call))


def delete(call: Call) -> Response:
    """Forget a batch that has ended."""
    batch = _find(call)
    if batch.status(call.now) != "ended":
        raise invalid(RUNNING_DELETE)
    call.world.cache.catch_up(batch.workspace, call.now)  # what its rows wrote outlives them
    call.world.store.delete(batch)
    return _json({"id": batch.id, "type": "message_batch_deleted"})


def results(call: Call) -> Response:
    """Stream the results, tampered with where faults say so."""
    batch = _find(call)
    if not batch.has_results(call.now):
        raise no_results(batch.id)
    call.world.cache.catch_up(batch.workspace, call.now)
    lines = result_lines(call.world.store, batch)
    for kind in TAMPERING:
        if fault := call.world.faults.take(frozenset({kind}), call.operation, batch.id):
            lines = tamper(lines, fault)
    interruption = call.world.faults.take(INTERRUPTIONS, call.operation, batch.id)
    headers = {
        "content-type": "application/x-jsonl",
        "content-disposition": f'attachment; filename="{batch.id}_results.jsonl"',
    }
    return LineStream(lines, headers, call.world.hang_up, interruption)


def messages(call: Call) -> Response:
    """Answer one request at once."""
    params = read_object(call.body)
    asked = Asked(params, call.version, call.betas, call.world.settings.removed_params, batched=False)
    if problem := find_problem(asked):
        raise _refusal(problem)
    if params.get("stream"):
        raise invalid(STREAMING)
    workspace = call.workspace or ""
    cached = call.world.cache.ask(workspace, find_prefixes(params, workspace), call.now)
    return _json(message(params, new_id("msg_"), "standard", cached))


def count_tokens(call: Call) -> Response:
    """Count what a request would be billed for as input."""
    params = read_object(call.body)
    if problem := find_count_problem(params, call.version, call.world.settings.removed_params):
        raise _refusal(problem)
    return _json({"input_tokens": input_tokens(params)})


def list_models(call: Call) -> Response:
    """List the models."""
    query = PageQuery.of(call.request.query_params)
    ids = [model.id for model in MODELS]
    start = _index(ids, query.after_id) + 1 if query.after_id else 0
    end = _index(ids, query.before_id) if query.before_id else len(ids)
    chosen = MODELS[start:end]
    shown = chosen[-query.limit :] if query.backwards else chosen[: query.limit]
    return _json(page([model.as_json() for model in shown], has_more=len(chosen) > len(shown)))


def retrieve_model(call: Call) -> Response:
    """Show one model."""
    model = BY_ID.get(call.request.path_params["model_id"])
    if model is None:
        raise ApiError(404, f"model: {call.request.path_params['model_id']}")
    return _json(model.as_json())


def nowhere(call: Call) -> Response:
    """Refuse a path that the API does not have."""
    raise ApiError(404, f"{call.request.method} {call.request.url.path}: Not Found")


def build_app(world: World) -> Starlette:
    """Put every endpoint at its path; a path that is none is a 404 in the API's envelope."""
    batches, one = "/v1/messages/batches", "/v1/messages/batches/{batch_id}"
    endpoints: list[tuple[str, str, str, Endpoint]] = [
        ("POST", batches, "create", create),
        ("GET", batches, "list", list_batches),
        ("GET", one, "retrieve", retrieve),
        ("DELETE", one, "delete", delete),
        ("POST", f"{one}/cancel", "cancel", cancel),
        ("GET", f"{one}/results", "results", results),
        ("POST", "/v1/messages", "messages", messages),
        ("POST", "/v1/messages/count_tokens", "count_tokens", count_tokens),
        ("GET", "/v1/models", "models", list_models),
        ("GET", "/v1/models/{model_id}", "models", retrieve_model),
    ]
    routes = [Route(path, _endpoint(world, name, answer), methods=[method]) for method, path, name, answer in endpoints]
    anything = Route("/{path:path}", _endpoint(world, "unknown", nowhere), methods=METHODS)
    own_hosts_only = Middleware(OwnHostsOnly, allowed=world.settings.allowed_hosts)
    return Starlette(routes=[*routes, *control_routes(world), anything], middleware=[own_hosts_only])


def _endpoint(world: World, operation: str, answer: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return await serve(world, request, operation, answer)

    return endpoint


def _find(call: Call) -> Batch:
    batch = call.world.store.find(call.workspace, call.batch_id or "")
    call.now = max(call.now, batch.created_at)  # whatever became of the clock, nothing is told of a time before it
    return batch


def _cancel(call: Call, batch: Batch) -> None:
    """What is finished by now stays and the rest is canceled, unless it finishes all the same."""
    late = call.world.faults.take(frozenset({"late_cancel"}), call.operation, batch.id)
    finished = batch.requests if late else batch.finished(call.now)
    ends_at = min(call.now + call.world.settings.cancel_seconds, batch.created_at + DAY)
    call.world.store.cancel(batch, call.now, End(batch.requests, finished, "canceled", ends_at))


def _batch(call: Call, batch: Batch) -> Response:
    return _json(_as_json(call, batch))


def _as_json(call: Call, batch: Batch) -> dict[str, object]:
    now = max(call.now, batch.created_at)
    return batch.as_json(now, _base_url(call), live=call.world.settings.live_counts)


def _base_url(call: Call) -> str:
    return str(call.request.base_url).rstrip("/")


def _refusal(problem: Problem) -> ApiError:
    return ApiError(404 if problem.kind == "not_found_error" else 400, problem.message, problem.kind)


def _index(ids: list[str], model_id: str) -> int:
    if model_id not in ids:
        raise ApiError(404, f"model: {model_id}")
    return ids.index(model_id)


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
