"""Imports large libraries without the parts that are not used, which saves 17 MiB of memory.

While a library is imported, empty modules stand in for dependencies of features that are not used.
They are removed afterwards, so that a later import gets the real modules. aiohttp (3.14) has
tracing, and loads the public CAs twice for callers without an SSL context, but all callers here
pass one. prometheus-client (0.26) has an HTTP server. azure-storage-blob (12.31) imports `requests`
for its synchronous transport, and `cryptography` for client-side encryption.
"""

import os
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Final

_CIPHERS: Final = "cryptography.hazmat.primitives.ciphers"
_UNUSED_BY_STORAGE: Final = (
    "azure.core.pipeline.transport._requests_basic",
    "cryptography.hazmat.backends",
    "cryptography.hazmat.primitives.padding",
    *(_CIPHERS + name for name in ("", ".aead", ".algorithms", ".modes")),
)


def import_basics() -> None:
    """Import the libraries that every forwarder needs."""
    os.environ.setdefault("FROZENLIST_NO_EXTENSIONS", "1")  # the C++ extension takes 1 MiB
    ssl.SSLContext.set_default_verify_paths = lambda _: None  # type: ignore[assignment]
    try:
        with _without("aiohttp.tracing", "http.server", "wsgiref.simple_server"):
            import aiohttp  # noqa: F401, PLC0415
            import prometheus_client  # noqa: F401, PLC0415
    finally:
        del ssl.SSLContext.set_default_verify_paths  # the inherited one is in effect again


def import_storage() -> None:
    """Import the client for storage accounts."""
    with _without(*_UNUSED_BY_STORAGE):
        import azure.storage.blob.aio  # noqa: F401, PLC0415


@contextmanager
def _without(*names: str) -> Iterator[None]:
    """Replace modules that are not imported yet by empty ones, whose attributes are `object`."""
    empty = {name: ModuleType(name) for name in names if name not in sys.modules}
    for module in empty.values():
        vars(module)["__getattr__"] = lambda _: object
    sys.modules.update(empty)
    try:
        yield
    finally:
        for name in empty:
            del sys.modules[name]
