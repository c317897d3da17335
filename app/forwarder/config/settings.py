"""Settings of the process, read from the environment once.

Each field declares its variable. The text is converted by msgspec to the annotated type, which
includes bounds and patterns, or by a parser if a type cannot describe what is accepted.
"""

import os
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import Field, dataclass, field, fields
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_type_hints

import msgspec
from yarl import URL

from forwarder.config import parsers
from forwarder.config.connection_strings import (
    BlobConnection,
    HubConnection,
    blob_connection,
    hub_connection,
)
from forwarder.config.parsers import whole
from forwarder.errors import PolicyError, SettingsError
from forwarder.policy.document import Policy, load
from forwarder.redaction import protect, redact

_SHORTEST_SECRET = 8  # characters; shorter header values, such as a tenant's number, are words


def _variable(
    name: str, default: Any, parser: Callable[[str], Any] | None = None, *, secret: bool = False
) -> Any:
    """Declare a field that is read from the variable `name`; a parser raises ValueError."""
    metadata = {"variable": name, "parser": parser, "secret": secret}
    return field(default=default, repr=not secret, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings, validated. Sizes are in bytes, durations in seconds."""

    hub_connection: HubConnection | None = _variable(
        "EhubNamespaceConnectionString", None, hub_connection, secret=True
    )
    blob_connection: BlobConnection | None = _variable(
        "BlobStorageConnectionString", None, blob_connection, secret=True
    )
    event_hub_name: parsers.Hub = _variable("EventHubName", "insights-logs-kube-audit")
    blob_container_name: parsers.Container = _variable("BlobContainerName", "kubeauditlogcontainer")
    web_sink_url: URL = _variable(
        "WebSinkURL", URL("http://sysdig-agent:7765/k8s_audit"), parsers.web_url, secret=True
    )
    verbose_level: Annotated[int, whole(1, 4)] = _variable("VerboseLevel", 2)
    event_hub_namespace: parsers.Host | None = _variable("EventHubNamespace", None)
    blob_account_url: URL | None = _variable("BlobAccountUrl", None, parsers.account_url)
    consumer_group: parsers.Group = _variable("ConsumerGroup", "$Default")
    start_position: str | datetime | timedelta = _variable(
        "StartPosition", "earliest", parsers.start_position
    )
    hub_transport: Literal["amqp", "websockets"] = _variable("HubTransport", "amqp")
    https_proxy: URL | None = _variable("HTTPS_PROXY", None, parsers.proxy_url, secret=True)
    no_proxy: str = _variable("NO_PROXY", "")
    categories: frozenset[str] = _variable(
        "Categories", frozenset({"kube-audit", "kube-audit-admin"}), parsers.names
    )
    state_directory: Path = _variable("StateDirectory", Path("/var/lib/aks-audit"), Path)
    trusted_ca_file: Path | None = _variable("TrustedCAFile", None, parsers.certificates)
    web_sink_max_events: Annotated[int, whole(1, 10_000)] = _variable("WebSinkMaxEvents", 100)
    web_sink_max_bytes: Annotated[int, whole(1_024)] = _variable("WebSinkMaxBytes", 1_048_576)
    web_sink_concurrency: Annotated[int, whole(1, 100)] = _variable("WebSinkConcurrency", 4)
    web_sink_timeout: parsers.Seconds = _variable("WebSinkTimeout", 10.0)
    web_sink_headers: tuple[tuple[str, str], ...] = _variable(
        "WebSinkHeaders", (), parsers.headers, secret=True
    )
    web_sink_token_file: Path | None = _variable("WebSinkTokenFile", None, parsers.readable)
    web_sink_ca_file: Path | None = _variable("WebSinkCAFile", None, parsers.certificates)
    web_sink_cert_file: Path | None = _variable("WebSinkCertFile", None, parsers.readable)
    web_sink_key_file: Path | None = _variable("WebSinkKeyFile", None, parsers.readable)
    web_sink_max_rejects: Annotated[int, whole(1)] = _variable("WebSinkMaxRejects", 100)
    checkpoint_interval: parsers.Seconds = _variable("CheckpointInterval", 5.0)
    load_balancing_interval: parsers.Seconds = _variable("LoadBalancingInterval", 10.0)
    ownership_expiry: parsers.Seconds = _variable("OwnershipExpiry", 60.0)
    shutdown_grace: parsers.Seconds = _variable("ShutdownGrace", 25.0)
    stall_timeout: parsers.Seconds = _variable("StallTimeout", 300.0)
    dead_letter_max_bytes: Annotated[int, whole(1_024)] = _variable(
        "DeadLetterMaxBytes", 104_857_600
    )
    receive_buffer_bytes: Annotated[int, whole(1_024)] = _variable("ReceiveBufferBytes", 33_554_432)
    audit_policy: Policy | None = _variable("AuditPolicyFile", None, load)
    cluster_annotation: parsers.Truth = _variable("ClusterAnnotation", default=False)
    resource_ids: frozenset[str] = _variable("ResourceIds", frozenset(), parsers.names)
    log_format: Literal["json", "text"] = _variable("LogFormat", "json")
    http_port: Annotated[int, whole(0, 65_535)] = _variable("HttpPort", 5000)
    files: Mapping[str, Path] = field(default_factory=dict, repr=False, compare=False)
    """The files of variables that are given as NAME_FILE, by field."""
    client_id: str = field(default="", compare=False)
    """AZURE_CLIENT_ID, a variable of the Azure SDK; here it is only shown."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Read all variables; SettingsError has every one that is missing or invalid."""
        values: dict[str, Any] = {"files": {}, "client_id": environ.get("AZURE_CLIENT_ID", "")}
        problems: list[str] = []
        for variable_name, item in cls.variables().items():
            try:
                given, path = parsers.variable(environ, variable_name)
                if path:
                    values["files"][item.name] = path
                if given:
                    values[item.name] = _parse(item.name, given)
            except ValueError as error:
                found = error.problems if isinstance(error, PolicyError) else [error]
                problems += [f"{variable_name}: {problem}" for problem in found]
        hub = values.get("hub_connection")
        if hub and hub.entity_path:
            name = values.setdefault("event_hub_name", hub.entity_path)
            if name.lower() != hub.entity_path.lower():
                problems.append(
                    f"EventHubName: '{name}' contradicts EntityPath in "
                    f"EhubNamespaceConnectionString, '{hub.entity_path}'; leave one of them out"
                )
        settings = cls(**values)
        named = {problem.split(":")[0] for problem in problems}
        if "EventHubNamespace" in named:
            named.add("EhubNamespaceConnectionString")  # a login was given, none is missing
        problems += [line for line in settings._contradictions() if line.split(":")[0] not in named]
        if problems:
            raise SettingsError([parsers.redacted(problem) for problem in problems])
        return settings

    @classmethod
    def variables(cls) -> dict[str, Field[Any]]:
        """Return the field of each environment variable, in the order of the documentation."""
        return {item.metadata["variable"]: item for item in fields(cls) if item.metadata}

    def current(self, name: str) -> Any:
        """Return a field, read again if it is in a NAME_FILE, where secrets are renewed.

        If that file cannot be read or is invalid, return the value that was read at the start.
        """
        value = getattr(self, name)
        if name in self.files:
            with suppress(OSError, ValueError):
                value = _parse(name, parsers.text_of(self.files[name]))
                for secret in _secrets_of(value):
                    protect(secret)
        return value

    @property
    def hub_host(self) -> str:
        """The host of the namespace, with a port if one is given."""
        return self.hub_connection.host if self.hub_connection else self.event_hub_namespace or ""

    @property
    def secrets(self) -> tuple[str, ...]:
        """The texts that no output may show; `current` protects those that it reads later."""
        values = [getattr(self, item.name) for item in fields(self) if item.metadata.get("secret")]
        found = [secret for value in values for secret in _secrets_of(value)]
        if self.web_sink_token_file:
            with suppress(OSError):  # it was there at the start
                found.append(self.web_sink_token_file.read_text(errors="replace").strip())
        return tuple(dict.fromkeys(filter(None, found)))

    def _contradictions(self) -> Iterator[str]:
        """Yield a line for each rule across variables that is violated."""
        if not self.hub_connection and not self.event_hub_namespace:
            yield (
                "EhubNamespaceConnectionString: missing; set it to the connection string of the "
                "Event Hubs namespace, or set EventHubNamespace to use Microsoft Entra ID"
            )
        two_ways = "{}: given together with {}; these are two ways of logging in, leave one out"
        if self.hub_connection and self.event_hub_namespace:
            yield two_ways.format("EventHubNamespace", "EhubNamespaceConnectionString")
        if self.blob_connection and self.blob_account_url:
            yield two_ways.format("BlobAccountUrl", "BlobStorageConnectionString")
        if self.ownership_expiry <= self.load_balancing_interval:
            yield (
                f"OwnershipExpiry: {self.ownership_expiry:g} must exceed LoadBalancingInterval, "
                f"{self.load_balancing_interval:g}, or partitions are lost between two renewals"
            )
        headers = {name.lower() for name, _ in self.web_sink_headers}
        logins = {
            "a user in WebSinkURL": self.web_sink_url.user,
            "Authorization in WebSinkHeaders": "authorization" in headers,
            "WebSinkTokenFile": self.web_sink_token_file,
        }
        if len(given := [way for way, value in logins.items() if value]) > 1:
            yield f"WebSinkURL: {' and '.join(given)}: these are two ways of logging in, keep one"
        yield from self._tls_contradictions(self.web_sink_cert_file, self.web_sink_key_file)

    def _tls_contradictions(self, cert: Path | None, key: Path | None) -> Iterator[str]:
        if cert and not key:
            yield "WebSinkKeyFile: missing, WebSinkCertFile needs it"
        if key and not cert:
            yield "WebSinkCertFile: missing, WebSinkKeyFile needs it"
        if cert and key:
            try:  # with a passphrase, because OpenSSL would ask for one on the terminal
                ssl.create_default_context().load_cert_chain(cert, key, password="")
            except ssl.SSLError as error:
                yield (
                    "WebSinkCertFile: with WebSinkKeyFile it is not a certificate and its "
                    f"unencrypted key in PEM format: {error.reason or error}"
                )
        if self.web_sink_url.scheme == "http" and (self.web_sink_ca_file or cert or key):
            yield "WebSinkURL: is http, so WebSinkCAFile, -CertFile and -KeyFile have no effect"


def _secrets_of(value: Any) -> Iterator[str]:
    match value:
        case HubConnection() | BlobConnection():
            yield from value.secrets
        case URL():
            yield value.password or ""
            found = (*value.query.values(), "" if value.password else value.user or "")
            yield from (text for text in found if len(text) >= _SHORTEST_SECRET)
        case tuple():  # headers
            yield from (text for _, text in value if len(text) >= _SHORTEST_SECRET)


def _parse(name: str, given: str) -> Any:
    """Return the value of a field; ValueError tells what is accepted."""
    declared = Settings.__dataclass_fields__[name].metadata
    if not declared["secret"] and redact(given) != given:
        raise ValueError("holds a key or a connection string, which belongs in another variable")
    if declared["parser"]:
        return declared["parser"](given)
    kind = get_type_hints(Settings, include_extras=True)[name]
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError:
        raise ValueError(f"'{given}' is not {parsers.accepted(kind)}") from None
