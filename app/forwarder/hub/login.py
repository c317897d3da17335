"""Login with Microsoft Entra ID; every failure is diagnosed.

Only what can apply in a pod is tried: workload identity if the webhook of AKS has set its
variables, else the managed identity of the node. `DefaultAzureCredential` would try developer tools
as well, which takes seconds and hides the cause. The Event Hubs client (5.15.1) asks for a token
1.5 times a second while it is refused. So after a failure the same error is raised again until a
delay has passed, which doubles from one second to a minute.
"""

import asyncio
import base64
import os
import re
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, Final

import msgspec
from azure.core.exceptions import ClientAuthenticationError
from yarl import URL

from forwarder import log
from forwarder.config.network import azure_options, proxy_for
from forwarder.config.settings import Settings
from forwarder.diagnosis import causes
from forwarder.diagnosis.causes import TEXTS, Diagnosis
from forwarder.errors import ForwarderError

_FIRST_DELAY: Final = 1.0
_MAX_DELAY: Final = 60.0
_IMDS: Final = "http://169.254.169.254"
_PUBLIC: Final = "https://login.microsoftonline.com"
_REQUIRED: Final = ("AZURE_TENANT_ID", "AZURE_CLIENT_ID")


class LoginError(ForwarderError, ClientAuthenticationError):
    """There is no token; `diagnosis` says why."""

    def __init__(self, diagnosis: Diagnosis) -> None:
        super().__init__(str(diagnosis))
        self.diagnosis = diagnosis


def login(settings: Settings, stack: AsyncExitStack) -> "Identity | None":
    """Return the credential for Microsoft Entra ID; None if the settings are connection strings."""
    if not settings.event_hub_namespace and not settings.blob_account_url:
        return None
    identity = Identity(settings)
    stack.push_async_callback(identity.close)
    return identity


class Identity:
    """A credential for the Azure clients; `get_token` raises LoginError."""

    def __init__(self, settings: Settings) -> None:
        self._settings, environ = settings, os.environ
        self._file = environ.get("AZURE_FEDERATED_TOKEN_FILE", "")
        client = environ.get("AZURE_CLIENT_ID", "")
        tried, host = "workload identity", environ.get("AZURE_AUTHORITY_HOST") or _PUBLIC
        if not self._file:
            tried = "the managed identity of the node"
            host = environ.get("AZURE_POD_IDENTITY_AUTHORITY_HOST") or _IMDS
        self._url = URL(host if "://" in host else f"https://{host}")
        self._names = {
            "tried": f"{tried} {client}".rstrip(),
            "client": client,
            "tenant": environ.get("AZURE_TENANT_ID", ""),
            "file": self._file,
            "host": self._url.host or host,
            "federate": TEXTS["texts"]["federate"],
        }
        self._credential: Any = None
        self._lock = asyncio.Lock()
        # By scopes: the diagnosis, the delay, and when it ends.
        self._failed: dict[tuple[str, ...], tuple[Diagnosis, float, float]] = {}

    async def close(self) -> None:
        """Close the connection."""
        if self._credential:
            await self._credential.close()

    async def get_token(self, *scopes: str, **options: Any) -> Any:
        """Return a token for these scopes. A failure is repeated until its delay has passed."""
        async with self._lock:
            failure, delay, ends = self._failed.get(scopes, (None, _FIRST_DELAY / 2, 0.0))
            if failure and time.monotonic() < ends:
                raise LoginError(failure)
            try:
                token = await self._ask(*scopes, **options)
            except Exception as error:
                delay = min(2 * delay, _MAX_DELAY)
                failure = self._diagnose(error)
                self._failed[scopes] = failure, delay, time.monotonic() + delay
                raise LoginError(failure) from error
            self._failed.pop(scopes, None)
            return token

    async def _ask(self, *scopes: str, **options: Any) -> Any:
        if self._file:
            if missing := [name for name in _REQUIRED if not os.environ.get(name)]:
                what = TEXTS["token"]["incomplete"].format(error=" and ".join(missing))
                raise LoginError(Diagnosis("token", what, TEXTS["token"]["remedy"]))
            if unreadable := _unreadable(Path(self._file)):
                what = TEXTS["token"]["missing"].format(file=self._file, error=unreadable)
                raise LoginError(Diagnosis("token", what, TEXTS["token"]["remedy"]))
        self._credential = self._credential or self._open()
        return await self._credential.get_token(*scopes, **options)

    def _open(self) -> Any:
        from azure.identity.aio import (  # noqa: PLC0415 - takes half a second and 20 MB
            ManagedIdentityCredential,
            WorkloadIdentityCredential,
        )

        # The endpoint of managed identities is never behind a proxy.
        options = azure_options(self._settings, self._url, proxied=bool(self._file))
        if self._file:
            return WorkloadIdentityCredential(
                authority=str(self._url).rstrip("/"), disable_instance_discovery=True, **options
            )
        return ManagedIdentityCredential(client_id=self._names["client"] or None, **options)

    def _diagnose(self, error: Exception) -> Diagnosis:
        if self._file:  # causes.toml has the network errors of a node's identity endpoint
            at = self._url.host or "", self._url.port or 443
            proxy = proxy_for(self._settings, *at)
            if network := causes.of_connection(error, "login", *at, proxy):
                return network
        # The code may be missing in the description.
        text = re.sub(r"\"error_codes\": ?\[(\d+)", r"AADSTS\1", causes.searchable(error))
        code = re.search(r"AADSTS(\d+)", text)
        names = self._names | _presented(self._file, text)
        names["code"] = code[1] if code else "no code"
        statuses = (getattr(one, "status_code", None) for one in causes.chain(error))
        names["status"] = str(next(filter(None, statuses), ""))
        names["text"] = re.split(r" Trace ID|https?://", log.describe(error))[0].strip()
        diagnosis = causes.first_match(TEXTS["login"], text, names)
        return diagnosis or Diagnosis("other", log.describe(error))


def _unreadable(file: Path) -> str:
    try:
        return "" if file.read_text(encoding="ascii").strip() else "it is empty"
    except (OSError, ValueError) as error:
        return str(getattr(error, "strerror", None) or error)


def _presented(file: str, text: str) -> dict[str, str]:
    """Return issuer, subject and audience of the token in a file, or as the error quotes them."""
    claims: dict[str, Any] = {}
    with suppress(OSError, ValueError, IndexError, msgspec.DecodeError):
        body = Path(file).read_text(encoding="ascii").split(".")[1]
        claims = msgspec.json.decode(base64.urlsafe_b64decode(body + "=="), type=dict[str, Any])
    audience = claims.get("aud")
    if isinstance(audience, list):
        audience = next(iter(audience), None)
    quoted = dict(re.findall(r"(issuer|subject|audience):? '([^']+)'", text, re.IGNORECASE))
    names = {"issuer": "", "subject": "", "audience": "api://AzureADTokenExchange"}
    names |= {name.lower(): value for name, value in quoted.items()}
    found = {"issuer": claims.get("iss"), "subject": claims.get("sub"), "audience": audience}
    return names | {name: str(value) for name, value in found.items() if value}
