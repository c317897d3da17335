"""Settings of the process, read from the environment once."""

import os
import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Self

from yarl import URL

from forwarder.config import parsers
from forwarder.config.connection_strings import (
    BlobConnection,
    HubConnection,
    blob_connection,
    hub_connection,
)
from forwarder.errors import PolicyError, SettingsError
from forwarder.policy.document import Policy, load

_DEFAULT_HUB = "insights-logs-kube-audit"
_KEY = re.compile(r"\b(\w*(?:key|sig|signature)=)[^;&'\s]{8,}", re.IGNORECASE)
_SHORTEST_SECRET = 8  # characters; shorter header values, such as a tenant's number, are words


def _variable(
    name: str, default: Any, parser: Callable[[str], Any] = str, *, secret: bool = False
) -> Any:
    """Declare a field that is read from the variable `name`; a parser raises ValueError."""
    return field(default=default, repr=not secret, metadata={"variable": name, "parser": parser})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting, checked. Sizes are in bytes, durations in seconds."""

    hub_connection: HubConnection | None = _variable(
        "EhubNamespaceConnectionString", None, hub_connection, secret=True
    )
    blob_connection: BlobConnection | None = _variable(
        "BlobStorageConnectionString", None, blob_connection, secret=True
    )
    event_hub_name: str = _variable("EventHubName", _DEFAULT_HUB)
    blob_container_name: str = _variable(
        "BlobContainerName", "kubeauditlogcontainer", parsers.container_name
    )
    web_sink_url: URL = _variable(
        "WebSinkURL", URL("http://sysdig-agent:7765/k8s_audit"), parsers.web_url, secret=True
    )
    verbose_level: int = _variable("VerboseLevel", 2, parsers.whole(1, 4))
    event_hub_namespace: str | None = _variable("EventHubNamespace", None, parsers.host)
    blob_account_url: URL | None = _variable("BlobAccountUrl", None, parsers.account_url)
    consumer_group: str = _variable("ConsumerGroup", "$Default")
    start_position: str | datetime | timedelta = _variable(
        "StartPosition", "earliest", parsers.start_position
    )
    hub_transport: str = _variable("HubTransport", "amqp", parsers.one_of("amqp", "websockets"))
    categories: frozenset[str] = _variable(
        "Categories", frozenset({"kube-audit", "kube-audit-admin"}), parsers.names
    )
    state_directory: Path = _variable("StateDirectory", Path("/var/lib/aks-audit"), Path)
    web_sink_max_events: int = _variable("WebSinkMaxEvents", 100, parsers.whole(1, 10_000))
    web_sink_max_bytes: int = _variable("WebSinkMaxBytes", 1_048_576, parsers.whole(1_024))
    web_sink_concurrency: int = _variable("WebSinkConcurrency", 4, parsers.whole(1, 100))
    web_sink_timeout: float = _variable("WebSinkTimeout", 10.0, parsers.seconds)
    web_sink_headers: tuple[tuple[str, str], ...] = _variable(
        "WebSinkHeaders", (), parsers.headers, secret=True
    )
    web_sink_token_file: Path | None = _variable("WebSinkTokenFile", None, parsers.readable)
    web_sink_ca_file: Path | None = _variable("WebSinkCAFile", None, parsers.certificates)
    web_sink_cert_file: Path | None = _variable("WebSinkCertFile", None, parsers.readable)
    web_sink_key_file: Path | None = _variable("WebSinkKeyFile", None, parsers.readable)
    web_sink_max_rejects: int = _variable("WebSinkMaxRejects", 100, parsers.whole(1))
    checkpoint_interval: float = _variable("CheckpointInterval", 5.0, parsers.seconds)
    load_balancing_interval: float = _variable("LoadBalancingInterval", 10.0, parsers.seconds)
    ownership_expiry: float = _variable("OwnershipExpiry", 60.0, parsers.seconds)
    shutdown_grace: float = _variable("ShutdownGrace", 25.0, parsers.seconds)
    stall_timeout: float = _variable("StallTimeout", 300.0, parsers.seconds)
    dead_letter_max_bytes: int = _variable("DeadLetterMaxBytes", 104_857_600, parsers.whole(1_024))
    receive_buffer_bytes: int = _variable("ReceiveBufferBytes", 33_554_432, parsers.whole(1_024))
    audit_policy: Policy | None = _variable("AuditPolicyFile", None, load)
    cluster_annotation: bool = _variable("ClusterAnnotation", default=False, parser=parsers.truth)
    resource_ids: tuple[str, ...] = _variable("ResourceIds", (), parsers.globs)
    log_format: str = _variable("LogFormat", "json", parsers.one_of("json", "text"))
    http_port: int = _variable("HttpPort", 5000, parsers.whole(0, 65_535))

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Read all variables; SettingsError names every one that is missing or wrong."""
        values: dict[str, Any] = {}
        problems: list[str] = []
        for item in fields(cls):
            name = item.metadata["variable"]
            try:
                if text := variable(environ, name):
                    values[item.name] = item.metadata["parser"](text)
            except PolicyError as error:
                problems += [f"{name}: {problem}" for problem in error.problems]
            except ValueError as error:
                problems.append(f"{name}: {error}")
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
        rules = (*settings._contradictions(), *settings._sink_contradictions())
        problems += [line for line in rules if line.split(":")[0] not in named]
        if problems:
            raise SettingsError([_shown(problem) for problem in problems])
        return settings

    @classmethod
    def variables(cls) -> list[str]:
        """Return the names of all environment variables, in the order of the documentation."""
        return [item.metadata["variable"] for item in fields(cls)]

    @property
    def secrets(self) -> tuple[str, ...]:
        """Every text that no output may show."""
        connections = (self.hub_connection, self.blob_connection)
        found = [
            secret for connection in connections if connection for secret in connection.secrets
        ]
        sent = [value for _, value in self.web_sink_headers] + [*self.web_sink_url.query.values()]
        found += [value for value in sent if len(value) >= _SHORTEST_SECRET]
        return (*found, self.web_sink_url.password) if self.web_sink_url.password else tuple(found)

    def _contradictions(self) -> Iterator[str]:
        """Yield a line for each rule across variables that these settings break."""
        if not self.hub_connection and not self.event_hub_namespace:
            yield (
                "EhubNamespaceConnectionString: missing; give the connection string of the Event "
                "Hubs namespace (or EventHubNamespace to log in with Microsoft Entra ID)"
            )
        two_ways = "given together with {}; these are two ways of logging in, leave one out"
        if self.hub_connection and self.event_hub_namespace:
            yield "EventHubNamespace: " + two_ways.format("EhubNamespaceConnectionString")
        if self.blob_connection and self.blob_account_url:
            yield "BlobAccountUrl: " + two_ways.format("BlobStorageConnectionString")
        if self.ownership_expiry <= self.load_balancing_interval:
            yield (
                f"OwnershipExpiry: {self.ownership_expiry:g} must exceed LoadBalancingInterval, "
                f"{self.load_balancing_interval:g}, or partitions are lost between two renewals"
            )

    def _sink_contradictions(self) -> Iterator[str]:
        if self.web_sink_cert_file and not self.web_sink_key_file:
            yield "WebSinkKeyFile: missing, WebSinkCertFile needs it"
        if self.web_sink_key_file and not self.web_sink_cert_file:
            yield "WebSinkCertFile: missing, WebSinkKeyFile needs it"
        if self.web_sink_cert_file and self.web_sink_key_file:
            try:  # with a pass phrase, or a key that has one would be asked for on the terminal
                ssl.create_default_context().load_cert_chain(
                    self.web_sink_cert_file, self.web_sink_key_file, password=""
                )
            except ssl.SSLError as error:
                yield (
                    "WebSinkCertFile: with WebSinkKeyFile it is not a certificate and its "
                    f"unencrypted key in PEM form: {error.reason or error}"
                )
        logins = {
            "a user in WebSinkURL": self.web_sink_url.user,
            "Authorization in WebSinkHeaders": "authorization"
            in {name.lower() for name, _ in self.web_sink_headers},
            "WebSinkTokenFile": self.web_sink_token_file,
        }
        if len(given := [way for way, value in logins.items() if value]) > 1:
            yield f"WebSinkURL: {' and '.join(given)}: these are two ways of logging in, keep one"
        if self.web_sink_url.scheme == "http" and (
            self.web_sink_ca_file or self.web_sink_cert_file or self.web_sink_key_file
        ):
            yield "WebSinkURL: is http, so WebSinkCAFile, -CertFile and -KeyFile have no effect"


def _shown(problem: str) -> str:
    """Return it as one line, without the key of a connection string in the wrong variable."""
    return _KEY.sub(r"\1***", " ".join(problem.split()))


def variable(environ: Mapping[str, str], name: str) -> str:
    """Return the variable's text, from the file that NAME_FILE names if that is given."""
    text, path = environ.get(name, "").strip(), environ.get(f"{name}_FILE", "").strip()
    if text and path:
        raise ValueError(f"given both as {name} and as {name}_FILE, leave one out")
    if not path:
        return text
    try:
        return Path(path).read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{name}_FILE, '{path}', cannot be read: {error}") from None
