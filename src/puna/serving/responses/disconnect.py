"""A response in preparation -> sent, or cancelled as soon as the client disconnects."""

import asyncio
from collections.abc import Awaitable, Callable

from fastapi import Request
from starlette.responses import Response

from puna.serving.generation.batch import Batch
from puna.serving.responses.json_pieces import JsonResponse
from puna.serving.responses.logprob_budget import LogprobReservation


async def respond_unless_disconnected(
    request: Request, batch: Batch, answer: Callable[[], Awaitable[JsonResponse]], reservation: LogprobReservation
) -> Response:
    """Run `answer`, but close the batch as soon as the client disconnects.

    The reservation lasts until the response is sent.
    """
    work = asyncio.ensure_future(answer())
    disconnect = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({work, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            return Response(status_code=499)
        response = work.result()
        response.reservation = reservation
        return response
    finally:
        work.cancel()
        disconnect.cancel()
        batch.close()
        if not work.done() or work.cancelled() or work.exception():
            reservation.close()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
