"""The parts of libraries that are not imported, compared with the libraries alone."""

import subprocess
import sys
from importlib.util import find_spec

import certifi
import pytest

from support.process import APP

# The wheel of frozenlist 1.8.0 for Python 3.15 has no extension.
EXTENSION = {name for name in ["frozenlist._frozenlist"] if find_spec(name)}


@pytest.mark.parametrize(
    ("ours", "stock", "parts"),
    [
        ("import_storage", "azure.storage.blob.aio", {"requests", "cryptography"}),
        (
            "import_basics",
            "aiohttp, prometheus_client",
            {"aiohttp.tracing", "http.server", *EXTENSION},
        ),
    ],
)
def test_unused_parts_are_not_imported(ours: str, stock: str, parts: set[str]) -> None:
    """It fails when a library no longer imports a part by itself."""
    assert parts <= _modules(f"import {stock}")
    assert not parts & _modules(f"from forwarder.imports import {ours}; {ours}()")
    later = "import aiohttp.tracing, http.server, requests, cryptography; http.server.HTTPServer"
    assert parts - EXTENSION <= _modules(f"from forwarder.imports import {ours}; {ours}(); {later}")


def test_the_default_contexts_of_aiohttp_load_no_cas() -> None:
    names = "connector._SSL_CONTEXT_VERIFIED, connector._SSL_CONTEXT_UNVERIFIED"
    contexts = f"{names}, ssl.create_default_context()"
    trusting = f"print([bool(one.get_ca_certs()) for one in ({contexts})])"
    stock = "import ssl; from aiohttp import connector; "
    assert _run(stock + trusting) == "[True, True, True]\n"
    ours = "from forwarder.imports import import_basics; import_basics(); "
    assert _run(ours + stock + trusting) == "[False, False, True]\n"


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
