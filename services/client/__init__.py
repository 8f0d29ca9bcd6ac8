"""The API from Python: `Client`, and `AsyncClient` with the same methods to be awaited.

    with Client.from_env() as client:
        job = client.submit({"name": "demo", ...})
        client.steer(job["id"], weights={"accuracy": 0.8, "conciseness": 0.2})
        for event in client.stream_events(job["id"]):
            print(event["seq"], event["type"])

Results are the API's documents, typed (services/client/types.py). Every refusal is an ApiError. What receives webhooks
checks them with `webhooks.verify`.

Connection errors, 429, 502, 503 and 504 are tried again (`Retry`) where that can't do a thing twice: what reads or only
computes, `submit` and `fork` (each call has an Idempotency-Key), `cancel`, `pause`, `upload_dataset`, `revoke_key`.
Everything else is sent again only where it was not carried out: no connection was made, or the answer was 429.
"""

from services.client import webhooks
from services.client.clients import AsyncClient, Client
from services.client.errors import (
    ApiError,
    AuthenticationError,
    Conflict,
    Invalid,
    NotFound,
    NotReady,
    NotSendable,
    PermissionDenied,
    RateLimited,
    StaleVersion,
    Unavailable,
    Unreachable,
)
from services.client.retry import NO_RETRY, Retry

__all__ = [
    "NO_RETRY",
    "ApiError",
    "AsyncClient",
    "AuthenticationError",
    "Client",
    "Conflict",
    "Invalid",
    "NotFound",
    "NotReady",
    "NotSendable",
    "PermissionDenied",
    "RateLimited",
    "Retry",
    "StaleVersion",
    "Unavailable",
    "Unreachable",
    "webhooks",
]
