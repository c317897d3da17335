"""What can befall the sink. Each lasts for so many seconds and is over when it returns."""

import asyncio
import math
import ssl
import time
from datetime import UTC, datetime, timedelta

import trustme
from cryptography import x509

from faults.play import Play
from support.webhook import Answer, Rule


async def away(play: Play, seconds: float) -> None:
    """Nobody listens, and connections are closed."""
    play.again = True  # an answer may be on its way
    await play.webhook.stop()
    await asyncio.sleep(seconds)
    await play.webhook.start()


async def restarts(play: Play, seconds: float) -> None:
    """It is restarted every second."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await asyncio.sleep(0.7)
        await away(play, 0.3)


async def _answers(play: Play, seconds: float, rule: Rule) -> None:
    play.sink = rule
    await asyncio.sleep(seconds)
    play.sink = None


async def is_slow(play: Play, seconds: float) -> None:
    """It takes events, each post in a second."""
    await _answers(play, seconds, lambda post: Answer(play.ledger.answer(post), delay=1))


async def answers_too_late(play: Play, seconds: float) -> None:
    """It takes events, and says so when nobody waits any more."""
    play.again = True
    await _answers(play, seconds, lambda post: Answer(play.ledger.answer(post), delay=3))


async def hangs(play: Play, seconds: float) -> None:
    """It answers nothing and takes nothing."""
    await _answers(play, seconds, lambda _: Answer(503, delay=math.inf))


async def fails(play: Play, seconds: float) -> None:
    """It answers with 500."""
    await _answers(play, seconds, lambda _: 500)


async def is_busy(play: Play, seconds: float) -> None:
    """It answers with 429 and says when to come back."""
    await _answers(play, seconds, lambda _: Answer(429, {"Retry-After": "1"}))


async def is_gone(play: Play, seconds: float) -> None:
    """It answers with 404, as behind a path that is not there."""
    await _answers(play, seconds, lambda _: 404)


async def drops(play: Play, seconds: float) -> None:
    """It closes connections without an answer."""
    await _answers(play, seconds, lambda _: Answer(drop=True))


async def changes_its_token(play: Play, seconds: float) -> None:
    """It wants another token, which comes into the file some seconds later."""
    token = play.folder / "token"
    new = f"{token.read_text()}-and-more"
    play.sink = lambda post: None if post.headers["Authorization"] == f"Bearer {new}" else 401
    await asyncio.sleep(seconds)
    replaced = token.with_suffix(".new")
    replaced.write_text(new)
    replaced.replace(token)  # as the kubelet does


async def lets_its_certificate_expire(play: Play, seconds: float) -> None:
    """Its certificate is out of date, and renewed some seconds later."""
    context = play.webhook.tls
    assert context
    yesterday = datetime.now(UTC) - timedelta(days=1)
    _certify(play, context, yesterday)
    await away(play, 0)  # connections that stand would not notice
    await asyncio.sleep(seconds)
    _certify(play, context, None)


def _certify(play: Play, context: ssl.SSLContext, expiry: datetime | None) -> None:
    authority = trustme.CA.from_pem(
        (play.folder / "ca.pem").read_bytes(), (play.folder / "ca.key").read_bytes()
    )
    certificate = authority.issue_cert("127.0.0.1", not_after=expiry)
    certificate.configure_cert(context)
    served = x509.load_pem_x509_certificate(certificate.cert_chain_pems[0].bytes())
    assert (served.not_valid_after_utc < datetime.now(UTC)) == (expiry is not None)
