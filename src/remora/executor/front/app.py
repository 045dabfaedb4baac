"""All routes behind one guard, which knows the caller and turns refusals into JSON; the control plane."""

from __future__ import annotations

import logging

from aiohttp import web
from aiohttp.typedefs import Handler

from remora import __version__
from remora.errors import ProtocolError
from remora.executor.front.blob_routes import BlobRoutes
from remora.executor.front.bulk_routes import BulkRoutes
from remora.executor.front.front import Front
from remora.executor.front.receiving import Receiving
from remora.executor.front.refusal import Refuse
from remora.executor.front.request import MAX_JSON_NBYTES, PRINCIPAL, json_answer, json_body, session_of
from remora.executor.front.step_routes import StepRoutes
from remora.executor.front.tokens import tenant_of
from remora.executor.front.value_routes import ABANDON, VALUES, ValueRoutes
from remora.executor.hop import WorkerReady
from remora.wire.limits import PROTOCOL
from remora.wire.messages import OpenSession, Refusal, Status

log = logging.getLogger("remora.front")

HEALTH = "/v1/health"


def build_app(front: Front, receiving: Receiving) -> web.Application:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if _guarded(request):
                request[PRINCIPAL] = _principal(front, request)
            return await handler(request)
        except Refuse as refusal:
            return _refused(refusal)
        except ProtocolError as error:
            return _refused(Refuse("protocol", str(error)))
        except web.HTTPException as error:  # of the router: no such path, no such method
            reason = f"{request.method} {request.path}: {error.reason}"
            return _refused(Refuse("protocol", reason, error.status))
        except Exception:
            if request.transport is None:  # the client went away in the middle; nobody reads an answer
                return web.Response(status=400)
            log.exception("a bug in the front, at %s %s", request.method, request.path)
            return _refused(Refuse("bug", "a bug in the executor; its log has the details"))

    app = web.Application(middlewares=[guard], client_max_size=MAX_JSON_NBYTES)
    control, steps = ControlRoutes(front), StepRoutes(front)
    blobs, bulk, values = BlobRoutes(front), BulkRoutes(front), ValueRoutes(front, receiving)
    session = "/v1/sessions/{session}"
    app.add_routes(
        [
            web.get(HEALTH, control.health),
            web.get("/v1/status", control.status),
            web.get("/v1/ops", control.ops),
            web.get("/v1/ops/schemas", control.op_schemas),
            web.post("/v1/sessions", control.open),
            web.delete(session, control.close),
            web.get(f"{session}/steps", steps.socket, allow_head=False),
            web.post(f"{session}/steps", steps.post),
            web.post(f"{session}/blobs/query", blobs.query),
            web.post(f"{session}/blobs/prove", blobs.prove),
            web.head(f"{session}/blobs/{{digest}}", blobs.head),
            web.put(f"{session}/blobs/{{digest}}", blobs.put),
            web.get(f"{session}/bulk/{{bulk}}", bulk.get, allow_head=False),
            web.get(VALUES, values.prove, allow_head=False),
            web.post(VALUES, values.take),
            web.post(ABANDON, values.abandon),
        ]
    )
    return app


def _guarded(request: web.Request) -> bool:
    """Whether a token is asked for. What other executors call is opened by a session's push secret alone: they
    have no token of the client's."""
    resource = request.match_info.route.resource
    path = resource.canonical if resource is not None else ""
    if path in (VALUES, ABANDON) and "Origin" not in request.headers:
        return False
    return request.path != HEALTH


def _principal(front: Front, request: web.Request) -> str:
    if "Origin" in request.headers:  # loopback without a token must not be open to any page in a browser
        raise Refuse("auth", "requests from web pages are not served")
    return front.tokens.principal(request.headers.get("Authorization"))


def _refused(refusal: Refuse) -> web.Response:
    return json_answer(Refusal(refusal.kind, refusal.message), refusal.status)


class ControlRoutes:
    def __init__(self, front: Front) -> None:
        self._front = front

    async def health(self, request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def status(self, request: web.Request) -> web.Response:
        """Counters of the asker's own tenant only."""
        front, tenant = self._front, tenant_of(request[PRINCIPAL])
        return json_answer(
            Status(
                executor=front.name,
                version=__version__,
                protocol=PROTOCOL,
                torch=front.about.torch if front.about else "",
                device=front.about.device if front.about else "",
                uptime_s=front.now() - front.started_at,
                memory_nbytes=front.memory().capacity_nbytes,
                used_nbytes=front.used_nbytes
                + front.blobs.reserved_nbytes
                + (front.blobs.stored_nbytes if front.on_cpu else 0),
                sessions=len(front.table),
                workers_started=front.workers_started,
                principals={p: dict(c) for p, c in front.counters.items() if tenant_of(p) == tenant},
            )
        )

    def _about(self) -> WorkerReady:
        if self._front.about is None:
            raise Refuse("busy", "the executor's worker is starting; try again in a moment")
        return self._front.about

    async def ops(self, request: web.Request) -> web.Response:
        return json_answer(self._about().ops)

    async def op_schemas(self, request: web.Request) -> web.Response:
        return json_answer(self._about().schemas)

    async def open(self, request: web.Request) -> web.Response:
        wants = await json_body(request, OpenSession)
        return json_answer(await self._front.open(request[PRINCIPAL], wants))

    async def close(self, request: web.Request) -> web.Response:
        self._front.end(session_of(self._front, request), "its client closed it")
        return web.Response(status=204)
