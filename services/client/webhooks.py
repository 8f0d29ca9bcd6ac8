"""What a receiver of webhooks has to check, done once.

event = webhooks.verify(request.headers, request.body, secret)
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import time
from collections.abc import Mapping

from services.client.types import WebhookEvent

_SIGNATURE = re.compile(r"t=([0-9]{1,15}),v1=([0-9a-f]{64})")


class SignatureError(ValueError):
    """Not a delivery of the server that has the secret, or not one of now."""


def verify(
    headers: Mapping[str, str], body: bytes | str, secret: str, *, tolerance_s: float = 300.0, now: float | None = None
) -> WebhookEvent:
    """The event of a delivery, once its signature holds. Raises SignatureError.

    `body` is what was received, before any parsing. A delivery is signed anew at each try: one that is older or newer
    than `tolerance_s` was kept and sent again by somebody else. An event may come twice, under the same `id`.
    """
    given = {name.lower(): value for name, value in headers.items()}
    delivery_id, match = given.get("webhook-id"), _SIGNATURE.fullmatch(given.get("webhook-signature", ""))
    if delivery_id is None or match is None:
        raise SignatureError("expected the headers webhook-id and webhook-signature: t=...,v1=...")
    sent = body.encode() if isinstance(body, str) else body
    signed = f"{delivery_id}.{match[1]}.".encode() + sent
    if not hmac.compare_digest(hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest(), match[2]):
        raise SignatureError("the signature is not that of this body under this secret")
    age_s = (time.time() if now is None else now) - int(match[1])
    if abs(age_s) > tolerance_s:
        raise SignatureError(f"signed {age_s:.0f} s ago, and at most {tolerance_s:g} s are allowed")
    event: WebhookEvent = json.loads(sent)
    return event
