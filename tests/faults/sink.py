"""Faults of the sink. Each lasts for the given seconds and has ended when it returns."""

import asyncio
import math
import ssl
import time
from datetime import UTC, datetime, timedelta

import trustme
from cryptography import x509

from faults.environment import FaultEnvironment
from support.webhook import Response, Rule

SHORT_TIMEOUT = {"WebSinkTimeout": "2"}
"""For a sink that hangs. Otherwise, the timeout is 20 seconds: a POST may take more than two on a
busy machine, and a killed forwarder has no metric that shows whether it retried one."""


async def unavailable(env: FaultEnvironment, seconds: float) -> None:
    """Connections are closed, and new ones are refused."""
    env.duplicates_allowed = True  # a response may be in flight
    await env.webhook.stop()
    await asyncio.sleep(seconds)
    await env.webhook.start()


async def restarts(env: FaultEnvironment, seconds: float) -> None:
    """It restarts every second."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await asyncio.sleep(0.7)
        await unavailable(env, 0.3)


async def _responds(env: FaultEnvironment, seconds: float, rule: Rule) -> None:
    env.sink = rule
    await asyncio.sleep(seconds)
    env.sink = None


async def is_slow(env: FaultEnvironment, seconds: float) -> None:
    """It accepts events; each POST takes a second."""
    await _responds(env, seconds, lambda post: Response(env.ledger.respond(post), delay=1))


async def responds_too_late(env: FaultEnvironment, seconds: float) -> None:
    """It accepts events, but responds after the timeout."""
    env.duplicates_allowed = True
    await _responds(env, seconds, lambda post: Response(env.ledger.respond(post), delay=3))


async def hangs(env: FaultEnvironment, seconds: float) -> None:
    """It does not respond and accepts no events."""
    await _responds(env, seconds, lambda _: Response(503, delay=math.inf))


async def fails(env: FaultEnvironment, seconds: float) -> None:
    """It responds with 500."""
    await _responds(env, seconds, lambda _: 500)


async def is_busy(env: FaultEnvironment, seconds: float) -> None:
    """It responds with 429 and Retry-After."""
    await _responds(env, seconds, lambda _: Response(429, {"Retry-After": "1"}))


async def is_not_found(env: FaultEnvironment, seconds: float) -> None:
    """It responds with 404, as for a wrong path."""
    await _responds(env, seconds, lambda _: 404)


async def drops(env: FaultEnvironment, seconds: float) -> None:
    """It closes connections without a response."""
    await _responds(env, seconds, lambda _: Response(drop=True))


async def changes_its_token(env: FaultEnvironment, seconds: float) -> None:
    """It requires another token, which is written to the file after the given seconds."""
    token = env.folder / "token"
    new = f"{token.read_text()}-and-more"
    env.sink = lambda post: None if post.headers["Authorization"] == f"Bearer {new}" else 401
    await asyncio.sleep(seconds)
    replaced = token.with_suffix(".new")
    replaced.write_text(new)
    replaced.replace(token)  # as the kubelet does


async def certificate_expires(env: FaultEnvironment, seconds: float) -> None:
    """Its certificate is expired, and renewed after the given seconds."""
    context = env.webhook.tls
    assert context
    yesterday = datetime.now(UTC) - timedelta(days=1)
    _certify(env, context, yesterday)
    await unavailable(env, 0)  # open connections would not notice
    await asyncio.sleep(seconds)
    _certify(env, context, None)


def _certify(env: FaultEnvironment, context: ssl.SSLContext, expiry: datetime | None) -> None:
    authority = trustme.CA.from_pem(
        (env.folder / "ca.pem").read_bytes(), (env.folder / "ca.key").read_bytes()
    )
    certificate = authority.issue_cert("127.0.0.1", not_after=expiry)
    certificate.configure_cert(context)
    served = x509.load_pem_x509_certificate(certificate.cert_chain_pems[0].bytes())
    assert (served.not_valid_after_utc < datetime.now(UTC)) == (expiry is not None)
