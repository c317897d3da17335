"""Faults of the sink. Each lasts for the given seconds and is over when it returns."""

import asyncio
import math
import ssl
import time
from datetime import UTC, datetime, timedelta

import trustme
from cryptography import x509

from faults.environment import FaultEnvironment
from support.webhook import Answer, Rule

SHORT_TIMEOUT = {"WebSinkTimeout": "2"}
"""For a sink that hangs. Elsewhere a POST has 20 seconds: it may take more than two on a busy
machine, and a forwarder that was killed cannot tell whether it repeated one."""


async def away(env: FaultEnvironment, seconds: float) -> None:
    """Nobody listens, and connections are closed."""
    env.again = True  # an answer may be on its way
    await env.webhook.stop()
    await asyncio.sleep(seconds)
    await env.webhook.start()


async def restarts(env: FaultEnvironment, seconds: float) -> None:
    """It is restarted every second."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await asyncio.sleep(0.7)
        await away(env, 0.3)


async def _answers(env: FaultEnvironment, seconds: float, rule: Rule) -> None:
    env.sink = rule
    await asyncio.sleep(seconds)
    env.sink = None


async def is_slow(env: FaultEnvironment, seconds: float) -> None:
    """It takes events, each post in a second."""
    await _answers(env, seconds, lambda post: Answer(env.ledger.answer(post), delay=1))


async def answers_too_late(env: FaultEnvironment, seconds: float) -> None:
    """It takes events, and says so when nobody waits any more."""
    env.again = True
    await _answers(env, seconds, lambda post: Answer(env.ledger.answer(post), delay=3))


async def hangs(env: FaultEnvironment, seconds: float) -> None:
    """It answers nothing and takes nothing."""
    await _answers(env, seconds, lambda _: Answer(503, delay=math.inf))


async def fails(env: FaultEnvironment, seconds: float) -> None:
    """It answers with 500."""
    await _answers(env, seconds, lambda _: 500)


async def is_busy(env: FaultEnvironment, seconds: float) -> None:
    """It answers with 429 and says when to come back."""
    await _answers(env, seconds, lambda _: Answer(429, {"Retry-After": "1"}))


async def is_gone(env: FaultEnvironment, seconds: float) -> None:
    """It answers with 404, as behind a path that is not there."""
    await _answers(env, seconds, lambda _: 404)


async def drops(env: FaultEnvironment, seconds: float) -> None:
    """It closes connections without an answer."""
    await _answers(env, seconds, lambda _: Answer(drop=True))


async def changes_its_token(env: FaultEnvironment, seconds: float) -> None:
    """It wants another token, which comes into the file some seconds later."""
    token = env.folder / "token"
    new = f"{token.read_text()}-and-more"
    env.sink = lambda post: None if post.headers["Authorization"] == f"Bearer {new}" else 401
    await asyncio.sleep(seconds)
    replaced = token.with_suffix(".new")
    replaced.write_text(new)
    replaced.replace(token)  # as the kubelet does


async def lets_its_certificate_expire(env: FaultEnvironment, seconds: float) -> None:
    """Its certificate is out of date, and renewed some seconds later."""
    context = env.webhook.tls
    assert context
    yesterday = datetime.now(UTC) - timedelta(days=1)
    _certify(env, context, yesterday)
    await away(env, 0)  # connections that stand would not notice
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
