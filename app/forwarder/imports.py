"""Imports of large libraries without the parts that nothing here uses: 16 MiB of memory.

While a library is imported, objects without content take the place of modules that it needs for
something else; whoever imports these later gets the real ones. aiohttp (3.14) reads the public CAs
into a context for callers that give none, and all here give one. prometheus-client (0.26) has an
HTTP server. azure-storage-blob (12.31) imports `requests` for its synchronous transport, and
`cryptography` for clients that encrypt their blobs.
"""

import os
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Final

_CIPHERS: Final = "cryptography.hazmat.primitives.ciphers"
_OF_STORAGE: Final = (
    "azure.core.pipeline.transport._requests_basic",
    "cryptography.hazmat.backends",
    "cryptography.hazmat.primitives.padding",
    *(_CIPHERS + name for name in ("", ".aead", ".algorithms", ".modes")),
)


def import_basics() -> None:
    """Import what the forwarder needs in any case."""
    os.environ.setdefault("FROZENLIST_NO_EXTENSIONS", "1")  # 1 MiB of C++ for lists of hooks
    create = ssl.create_default_context
    ssl.create_default_context = lambda *_, **__: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        with _without("http.server", "wsgiref.simple_server"):
            import aiohttp  # noqa: F401, PLC0415
            import prometheus_client  # noqa: F401, PLC0415
    finally:
        ssl.create_default_context = create


def import_storage() -> None:
    """Import the client of storage accounts."""
    with _without(*_OF_STORAGE):
        import azure.storage.blob.aio  # noqa: F401, PLC0415


@contextmanager
def _without(*names: str) -> Iterator[None]:
    absent = {name: ModuleType(name) for name in names if name not in sys.modules}
    for module in absent.values():
        vars(module)["__getattr__"] = lambda _: object
    sys.modules.update(absent)
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
