"""Each part of a library that is not imported, against the library alone."""

import subprocess
import sys

import certifi
import pytest

from support.process import APP


@pytest.mark.parametrize(
    ("ours", "stock", "parts"),
    [
        ("import_storage", "azure.storage.blob.aio", {"requests", "cryptography"}),
        ("import_basics", "aiohttp, prometheus_client", {"http.server", "frozenlist._frozenlist"}),
    ],
)
def test_unused_parts_are_not_imported(ours: str, stock: str, parts: set[str]) -> None:
    """The test fails when a library no longer imports a part by itself."""
    assert parts <= _modules(f"import {stock}")
    assert not parts & _modules(f"from forwarder.imports import {ours}; {ours}()")
    later = "import http.server, requests, cryptography; assert http.server.HTTPServer"
    assert parts - {"frozenlist._frozenlist"} <= _modules(
        f"from forwarder.imports import {ours}; {ours}(); {later}"
    )


def test_the_default_context_of_aiohttp_trusts_nobody() -> None:
    trusted = "print(aiohttp.connector._SSL_CONTEXT_VERIFIED.cert_store_stats()['x509_ca'])"
    assert int(_run(f"import aiohttp; {trusted}")) > 0
    ours = "from forwarder.imports import import_basics; import_basics(); import aiohttp; "
    assert int(_run(ours + trusted)) == 0


def _modules(statements: str) -> set[str]:
    return set(_run(f"{statements}\nimport sys; print(*sys.modules)").split())


def _run(statements: str) -> str:
    environment = {"PYTHONPATH": str(APP), "SSL_CERT_FILE": certifi.where()}
    return subprocess.run(
        [sys.executable, "-c", statements],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
