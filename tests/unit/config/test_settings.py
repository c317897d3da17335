"""Each setting: accepted values, the default, and the error for an invalid value."""

from base64 import b64encode
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import trustme
from azure.storage.blob import BlobServiceClient
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from yarl import URL

from forwarder.config.connection_strings import blob_connection, hub_connection
from forwarder.config.settings import Settings
from forwarder.errors import SettingsError
from forwarder.policy import document
from forwarder.redaction import configure, redact

KEY = "c2VjcmV0IG9mIHRoZSBodWI="
ACCOUNT_KEY = "c2VjcmV0IG9mIHRoZSBzdG9yZQ=="
HOST = "audit.servicebus.windows.net"
ENDPOINT = f"Endpoint=sb://{HOST}/"
LOGIN = f"SharedAccessKeyName=Root;SharedAccessKey={KEY}"
HUB = f"{ENDPOINT};{LOGIN}"
SIGNATURE = f"SharedAccessSignature sr=sb%3a%2f%2f{HOST}&sig=signature&se=1900000000&skn=Root"
ACCOUNT_KEY_OF_64_BYTES = "Kq3v" * 21 + "Kw=="
STORAGE = (
    f"DefaultEndpointsProtocol=https;AccountName=checkpoints;AccountKey={ACCOUNT_KEY};"
    "EndpointSuffix=core.windows.net"
)

FIELDS = {item.metadata["variable"]: item.name for item in fields(Settings) if item.metadata}

DEFAULTS: dict[str, Any] = {
    "EhubNamespaceConnectionString": None,
    "BlobStorageConnectionString": None,
    "EventHubName": "insights-logs-kube-audit",
    "BlobContainerName": "kubeauditlogcontainer",
    "WebSinkURL": URL("http://sysdig-agent:7765/k8s_audit"),
    "VerboseLevel": 2,
    "EventHubNamespace": HOST,  # one kind of login is required
    "BlobAccountUrl": None,
    "ConsumerGroup": "$Default",
    "StartPosition": "earliest",
    "HubTransport": "amqp",
    "HTTPS_PROXY": None,
    "NO_PROXY": "",
    "Categories": {"kube-audit", "kube-audit-admin"},
    "StateDirectory": Path("/var/lib/aks-audit"),
    "TrustedCAFile": None,
    "WebSinkMaxEvents": 100,
    "WebSinkMaxBytes": 1048576,
    "WebSinkConcurrency": 4,
    "WebSinkTimeout": 10,
    "WebSinkHeaders": (),
    "WebSinkTokenFile": None,
    "WebSinkCAFile": None,
    "WebSinkCertFile": None,
    "WebSinkKeyFile": None,
    "WebSinkMaxRejects": 100,
    "CheckpointInterval": 5,
    "LoadBalancingInterval": 10,
    "OwnershipExpiry": 60,
    "ShutdownGrace": 25,
    "StallTimeout": 300,
    "DeadLetterMaxBytes": 104857600,
    "ReceiveBufferBytes": 33554432,
    "AuditPolicyFile": None,
    "ClusterAnnotation": False,
    "ResourceIds": frozenset(),
    "LogFormat": "json",
    "HttpPort": 5000,
}

# (variable, text, parsed value)
ACCEPTED: list[tuple[str, str, Any]] = [
    ("EhubNamespaceConnectionString", HUB, hub_connection(HUB)),
    ("BlobStorageConnectionString", STORAGE, blob_connection(STORAGE)),
    ("EventHubName", "audit", "audit"),
    ("BlobContainerName", "abc", "abc"),
    ("BlobContainerName", "a-1-b" + "c" * 58, "a-1-b" + "c" * 58),
    ("WebSinkURL", "http://falco:9765/k8s-audit", URL("http://falco:9765/k8s-audit")),
    ("WebSinkURL", "https://me:p%40ss@sink/?token=t", URL("https://me:p%40ss@sink/?token=t")),
    ("WebSinkURL", "http://[::1]/k8s", URL("http://[::1]/k8s")),
    ("VerboseLevel", "1", 1),
    ("VerboseLevel", "4", 4),
    ("EventHubNamespace", "a.servicebus.chinacloudapi.cn", "a.servicebus.chinacloudapi.cn"),
    ("BlobAccountUrl", "https://a.blob.core.windows.net", URL("https://a.blob.core.windows.net/")),
    ("ConsumerGroup", "sensor", "sensor"),
    ("StartPosition", "earliest", "earliest"),
    ("StartPosition", "latest", "latest"),
    ("StartPosition", "30s", timedelta(seconds=30)),
    ("StartPosition", "30m", timedelta(minutes=30)),
    ("StartPosition", "6h", timedelta(hours=6)),
    ("StartPosition", "2d", timedelta(days=2)),
    ("StartPosition", "1w", timedelta(weeks=1)),
    ("StartPosition", "0001-01-01T00:00:00+01:00", datetime(1970, 1, 1, tzinfo=UTC)),
    ("StartPosition", "2026-01-31T12:00:00Z", datetime(2026, 1, 31, 12, tzinfo=UTC)),
    (
        "StartPosition",
        "2026-01-31T12:00:00.5+05:30",
        datetime(2026, 1, 31, 12, 0, 0, 500_000, timezone(timedelta(hours=5, minutes=30))),
    ),
    ("StartPosition", "2026-01-31T12:00", datetime(2026, 1, 31, 12, tzinfo=UTC)),
    ("StartPosition", "2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
    ("HubTransport", "amqp", "amqp"),
    ("HubTransport", "websockets", "websockets"),
    ("HTTPS_PROXY", "http://me:p%40ss@proxy:3128", URL("http://me:p%40ss@proxy:3128")),
    ("HTTPS_PROXY", "proxy:3128", URL("http://proxy:3128")),
    ("HTTPS_PROXY", "https://proxy", URL("https://proxy")),
    ("NO_PROXY", "10.0.0.0/8,.svc", "10.0.0.0/8,.svc"),
    ("Categories", "kube-audit", {"kube-audit"}),
    ("Categories", " guard , kube-audit,", {"guard", "kube-audit"}),
    ("StateDirectory", "/data", Path("/data")),
    ("TrustedCAFile", "PEMS/ca.pem", Path("PEMS/ca.pem")),
    ("WebSinkMaxEvents", "1", 1),
    ("WebSinkMaxEvents", "10000", 10_000),
    ("WebSinkMaxBytes", "1024", 1024),
    ("WebSinkMaxBytes", "12582912", 12_582_912),
    ("WebSinkConcurrency", "1", 1),
    ("WebSinkConcurrency", "100", 100),
    ("WebSinkTimeout", "0.5", 0.5),
    ("WebSinkTimeout", "86400", 86_400),
    ("WebSinkHeaders", "{}", ()),
    ("WebSinkHeaders", '{"X-A": "1", "X-B": "two three"}', (("X-A", "1"), ("X-B", "two three"))),
    ("WebSinkTokenFile", "PEMS/token", Path("PEMS/token")),
    ("WebSinkCAFile", "PEMS/ca.pem", Path("PEMS/ca.pem")),
    ("WebSinkCertFile", "PEMS/cert.pem", Path("PEMS/cert.pem")),
    ("WebSinkKeyFile", "PEMS/key.pem", Path("PEMS/key.pem")),
    ("WebSinkMaxRejects", "1", 1),
    ("CheckpointInterval", "0.1", 0.1),
    ("LoadBalancingInterval", "2.5", 2.5),
    ("OwnershipExpiry", "10.5", 10.5),
    ("ShutdownGrace", "86400", 86_400),
    ("StallTimeout", "60", 60),
    ("DeadLetterMaxBytes", "1024", 1024),
    ("ReceiveBufferBytes", "1024", 1024),
    ("AuditPolicyFile", "quiet", document.load("quiet")),
    ("ClusterAnnotation", "true", True),
    ("ClusterAnnotation", "false", False),
    ("ResourceIds", " */A , */b,", frozenset({"*/A", "*/b"})),
    ("LogFormat", "json", "json"),
    ("LogFormat", "text", "text"),
    ("HttpPort", "0", 0),
    ("HttpPort", "65535", 65_535),
]
# Other variables that a variable requires.
REQUIRED_WITH = {
    "WebSinkCAFile": {"WebSinkURL": "https://sink"},
    "WebSinkCertFile": {"WebSinkURL": "https://sink", "WebSinkKeyFile": "PEMS/key.pem"},
    "WebSinkKeyFile": {"WebSinkURL": "https://sink", "WebSinkCertFile": "PEMS/cert.pem"},
}
# Any text is valid for these: only the hub or the system can refuse it.
FREE = {"StateDirectory", "NO_PROXY"}

SECONDS = ["above 0", "86400"]
# (variable, invalid text, words in the error)
REFUSED: list[tuple[str, str, list[str]]] = [
    ("EhubNamespaceConnectionString", "nonsense", ["Key=value"]),
    ("EhubNamespaceConnectionString", LOGIN, ["Endpoint=sb://NAMESPACE"]),
    ("EhubNamespaceConnectionString", HUB.replace("sb:", "https:"), ["Endpoint=sb://NAMESPACE"]),
    ("EhubNamespaceConnectionString", ENDPOINT, ["SharedAccessKeyName and SharedAccessKey"]),
    ("EhubNamespaceConnectionString", HUB.replace(KEY, ""), ["lacks SharedAccessKey "]),
    ("EhubNamespaceConnectionString", STORAGE, ["storage", "BlobStorageConnectionString"]),
    ("EhubNamespaceConnectionString", f'{{"primaryConnectionString": "{HUB}"}}', ["JSON", "tsv"]),
    ("EhubNamespaceConnectionString", b64encode(HUB.encode()).decode(), ["not in base64"]),
    ("EhubNamespaceConnectionString", f"export Hub={HUB}", ["connection string alone"]),
    ("EhubNamespaceConnectionString", SIGNATURE, ["not only its key or signature"]),
    ("BlobStorageConnectionString", "nonsense", ["Key=value"]),
    ("BlobStorageConnectionString", HUB, ["Event Hubs", "EhubNamespaceConnectionString"]),
    ("BlobStorageConnectionString", "AccountName=a", ["lacks", "AccountKey"]),
    ("BlobStorageConnectionString", f"AccountKey={ACCOUNT_KEY}", ["lacks AccountName"]),
    ("BlobStorageConnectionString", f'{{"connectionString": "{STORAGE}"}}', ["JSON", "tsv"]),
    ("BlobStorageConnectionString", f"{STORAGE};BlobEndpoint=a.example", ["BlobEndpoint", "URL"]),
    ("BlobContainerName", "ab", ["3 to 63", "'ab'"]),
    ("BlobContainerName", "a" * 64, ["3 to 63"]),
    ("BlobContainerName", "Audit", ["lower-case", "'Audit'"]),
    ("BlobContainerName", "a--b", ["single hyphens"]),
    ("BlobContainerName", "-ab", ["hyphens between"]),
    ("EventHubName", "audit logs", ["'audit logs'", "the name of an event hub"]),
    ("EventHubName", HUB, ["connection string", "another variable"]),
    ("ConsumerGroup", "$default/", ["the name of a consumer group"]),
    ("ConsumerGroup", ACCOUNT_KEY_OF_64_BYTES, ["holds a key"]),
    ("HTTPS_PROXY", "socks5://proxy", ["http://proxy:3128"]),
    ("HTTPS_PROXY", "http://DOMAIN\\me:p#ss@proxy:3128", ["percent-encode", "%40 for @"]),
    ("TrustedCAFile", "/nowhere/ca", ["'/nowhere/ca'", "No such file"]),
    ("TrustedCAFile", "PEMS/key.pem", ["certificate", "PEM"]),
    ("WebSinkURL", "sysdig-agent:7765", ["http://sysdig-agent:7765/k8s_audit"]),
    ("WebSinkURL", "ftp://sink/", ["http://"]),
    ("WebSinkURL", "http://", ["http://"]),
    ("WebSinkURL", "http://sink:70000/", ["http://"]),
    ("VerboseLevel", "0", ["'0'", "from 1 to 4"]),
    ("VerboseLevel", "5", ["'5'", "from 1 to 4"]),
    ("VerboseLevel", "debug", ["'debug'", "from 1 to 4"]),
    ("EventHubNamespace", f"https://{HOST}/", ["NAME.servicebus.windows.net"]),
    ("EventHubNamespace", HUB, ["connection string"]),
    ("BlobAccountUrl", "checkpoints", ["https://ACCOUNT.blob.core.windows.net"]),
    ("BlobAccountUrl", "https://a.blob.core.windows.net/kubeaudit", ["https://ACCOUNT.blob"]),
    ("BlobAccountUrl", "https://a.dfs.core.windows.net/", ["https://ACCOUNT.blob"]),
    ("BlobAccountUrl", "https://a.blob.core.windows.net/?sig=c2lnbmF0dXJl", ["connection string"]),
    ("StartPosition", "newest", ["'newest'", "earliest", "latest", "ISO 8601", "6h"]),
    ("StartPosition", "6", ["6h"]),
    ("StartPosition", "-6h", ["6h"]),
    ("StartPosition", "3651d", ["3650 days"]),
    ("StartPosition", "99999999w", ["3650 days"]),
    ("StartPosition", "2026-02-30", ["ISO 8601"]),
    ("HubTransport", "AMQP", ["'AMQP'", "amqp, websockets"]),
    ("Categories", " , ", ["commas"]),
    ("WebSinkMaxEvents", "0", ["from 1 to 10000"]),
    ("WebSinkMaxEvents", "10001", ["from 1 to 10000"]),
    ("WebSinkMaxBytes", "1023", ["at least 1024"]),
    ("WebSinkMaxBytes", "1MB", ["'1MB'", "whole number"]),
    ("WebSinkConcurrency", "0", ["from 1 to 100"]),
    ("WebSinkConcurrency", "101", ["from 1 to 100"]),
    ("WebSinkTimeout", "0", SECONDS),
    ("WebSinkTimeout", "10s", ["'10s'", *SECONDS]),
    ("WebSinkHeaders", "X-A: 1", ['{"X-Cluster": "prod"}']),
    ("WebSinkHeaders", '["X-A"]', ['{"X-Cluster": "prod"}']),
    ("WebSinkHeaders", '{"X-A": 1}', ['{"X-Cluster": "prod"}']),
    ("WebSinkHeaders", '{"X A": "1"}', ["'X A'"]),
    ("WebSinkHeaders", '{"X-A": "1\\r\\nX-B: 2"}', ["'X-A'", "cannot be sent"]),
    ("WebSinkHeaders", '{"content-type": "text/plain"}', ["'content-type'", "leave it out"]),
    ("WebSinkHeaders", '{"Host": "sink"}', ["'Host'", "leave it out"]),
    ("WebSinkTokenFile", "/nowhere/token", ["'/nowhere/token'", "No such file"]),
    ("WebSinkCAFile", "/nowhere/ca", ["'/nowhere/ca'", "No such file"]),
    ("WebSinkCAFile", "PEMS/key.pem", ["certificate", "PEM"]),
    ("WebSinkCertFile", "/nowhere/cert", ["'/nowhere/cert'", "No such file"]),
    ("WebSinkCertFile", "PEMS/ca.pem", ["WebSinkKeyFile", "MISMATCH"]),
    ("WebSinkCertFile", "PEMS/token", ["WebSinkKeyFile", "PEM"]),
    ("WebSinkKeyFile", "/nowhere/key", ["'/nowhere/key'", "No such file"]),
    ("WebSinkMaxRejects", "0", ["at least 1"]),
    ("CheckpointInterval", "0", SECONDS),
    ("LoadBalancingInterval", "-1", SECONDS),
    ("OwnershipExpiry", "nan", SECONDS),
    ("OwnershipExpiry", "10", ["must exceed LoadBalancingInterval, 10"]),
    ("ShutdownGrace", "86401", SECONDS),
    ("StallTimeout", "inf", SECONDS),
    ("DeadLetterMaxBytes", "1023", ["at least 1024"]),
    ("ReceiveBufferBytes", "1GB", ["at least 1024"]),
    ("AuditPolicyFile", "/nowhere/policy", ["'/nowhere/policy'", "quiet", "No such file"]),
    ("AuditPolicyFile", "PEMS/token", ["not an object with rules", "audit.k8s.io/v1"]),
    ("ClusterAnnotation", "yes", ["'yes'", "true or false"]),
    ("ResourceIds", " , ", ["commas"]),
    ("LogFormat", "xml", ["'xml'", "json, text"]),
    ("HttpPort", "-1", ["from 0 to 65535"]),
    ("HttpPort", "65536", ["from 0 to 65535"]),
]


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a CA, a client certificate and key, and a token."""
    directory = tmp_path_factory.mktemp("pems")
    authority = trustme.CA()
    client = authority.issue_cert("client.example")
    authority.cert_pem.write_to_path(directory / "ca.pem")
    client.cert_chain_pems[0].write_to_path(directory / "cert.pem")
    client.private_key_pem.write_to_path(directory / "key.pem")
    key = load_pem_private_key(client.private_key_pem.bytes(), None)
    encryption = BestAvailableEncryption(b"pass phrase")
    (directory / "encrypted.pem").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    )
    (directory / "token").write_text("dG9rZW4\n")
    return directory


def read(**variables: str) -> Settings:
    """Read these variables, with a login to the hub added if they have none."""
    given = {name.removesuffix("_FILE") for name in variables}
    if not given & {"EhubNamespaceConnectionString", "EventHubNamespace"}:
        variables["EventHubNamespace"] = HOST
    return Settings.from_env(variables)


def problems(**variables: str) -> list[str]:
    """Return the errors for these variables."""
    with pytest.raises(SettingsError) as error:
        read(**variables)
    return error.value.problems


def value(settings: Settings, variable: str) -> Any:
    return getattr(settings, FIELDS[variable])


def required_with(variable: str, pems: Path) -> dict[str, str]:
    given = REQUIRED_WITH.get(variable, {})
    return {name: text.replace("PEMS", str(pems)) for name, text in given.items()}


def test_the_tables_of_this_module_cover_every_variable() -> None:
    every = set(Settings.variables())
    assert set(DEFAULTS) == every
    assert {variable for variable, _, _ in ACCEPTED} == every
    assert {variable for variable, _, _ in REFUSED} == every - FREE


@pytest.mark.parametrize(("variable", "default"), DEFAULTS.items())
@pytest.mark.parametrize("empty", [{}, dict.fromkeys(DEFAULTS, " ")], ids=["unset", "empty"])
def test_an_unset_or_empty_variable_has_its_default(
    variable: str, default: Any, empty: dict[str, str]
) -> None:
    assert value(read(**empty | {"EventHubNamespace": HOST}), variable) == default


@pytest.mark.parametrize(("variable", "text", "expected"), ACCEPTED)
def test_valid_values_are_accepted(variable: str, text: str, expected: Any, pems: Path) -> None:
    if isinstance(expected, Path):
        expected = Path(str(expected).replace("PEMS", str(pems)))
    settings = read(**{variable: text.replace("PEMS", str(pems))} | required_with(variable, pems))
    assert value(settings, variable) == expected


@pytest.mark.parametrize(("variable", "text", "words"), REFUSED)
def test_invalid_values_are_refused_with_what_is_accepted(
    variable: str, text: str, words: list[str], pems: Path
) -> None:
    others = required_with(variable, pems)
    [problem] = problems(**others | {variable: text.replace("PEMS", str(pems))})
    assert problem.startswith(f"{variable}: ")
    assert [word for word in words if word not in problem] == []


# For each variable, a text whose value is not the default.
SAMPLE = {
    variable: text
    for variable, text, expected in reversed(ACCEPTED)
    if expected != DEFAULTS[variable]
}


@pytest.mark.parametrize("variable", Settings.variables())
def test_the_file_suffix_reads_the_variable_from_a_path(
    variable: str, pems: Path, tmp_path: Path
) -> None:
    text = SAMPLE[variable].replace("PEMS", str(pems))
    file = tmp_path / "mounted"
    file.write_text(f"\ufeff{text}\n")  # as some editors write it
    others = required_with(variable, pems)
    settings = read(**others | {f"{variable}_FILE": str(file)})
    assert settings == read(**others | {variable: text})
    assert value(settings, variable) != DEFAULTS[variable]


@pytest.mark.parametrize("variable", Settings.variables())
def test_a_variable_given_twice_or_in_an_unreadable_file_is_reported(variable: str) -> None:
    both = {variable: SAMPLE[variable], f"{variable}_FILE": "/nowhere/file"}
    unreadable = {f"{variable}_FILE": "/nowhere/file"}
    assert any(
        line.startswith(f"{variable}: given both") and f"{variable}_FILE" in line
        for line in problems(**both)
    )
    assert any(
        line.startswith(f"{variable}: {variable}_FILE, '/nowhere/file', cannot be read")
        for line in problems(**unreadable)
    )


def test_each_policy_error_is_one_line_with_rule_and_field(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{verb: []}, {level: All}]")
    assert [line.partition("; ")[0] for line in problems(AuditPolicyFile=str(file))] == [
        "AuditPolicyFile: rule 1: verb: unknown field",
        "AuditPolicyFile: rule 2: level: Invalid enum value 'All'",
    ]
    assert read(AuditPolicyFile="quiet").audit_policy == document.load("quiet")


@pytest.mark.parametrize(
    "pasted",
    [
        HUB,
        f"  {HUB}\n",
        f'"{HUB}"',
        f"'{HUB}'\n",
        f' " {HUB} " ',
        f"`{HUB}`",
        f"\u201c{HUB}\u201d",
        f"{HUB};",
        HUB.replace(";", " ;\n  "),
        HUB.replace("=sb", " = sb").replace("=Root", " = Root"),
        f"{LOGIN};{ENDPOINT}",
        HUB.replace("Endpoint", "endpoint").replace("SharedAccessKey", "sharedaccesskey"),
        f"{HUB};EntityPath=",
        f"{HUB};EntityPath=audit",
    ],
)
def test_a_hub_connection_string_is_parsed_as_people_paste_it(pasted: str) -> None:
    connection = read(EhubNamespaceConnectionString=pasted).hub_connection
    assert connection
    assert (connection.host, connection.policy, connection.key) == (HOST, "Root", KEY)
    assert connection.entity_path in {None, "audit"}
    assert connection.length == len(pasted.strip())


@pytest.mark.parametrize("mark", ["\ufeff", "\u200b", "\xa0"])
def test_invisible_characters_around_a_value_are_ignored(mark: str) -> None:
    """A Secret created with --from-file contains the byte order mark of the file."""
    plain = read(EhubNamespaceConnectionString=HUB, NO_PROXY="a.example", VerboseLevel="3")
    given = {"EhubNamespaceConnectionString": HUB, "NO_PROXY": "a.example", "VerboseLevel": "3"}
    assert read(**{name: f"{mark}{text}{mark}\r\n" for name, text in given.items()}) == plain


def test_a_hub_connection_string_may_contain_a_shared_access_signature() -> None:
    settings = read(EhubNamespaceConnectionString=f"{ENDPOINT};SharedAccessSignature={SIGNATURE}")
    assert settings.hub_connection
    assert settings.hub_connection.signature == SIGNATURE
    assert settings.secrets == (SIGNATURE, "signature")


@pytest.mark.parametrize("spelling", ["true", "True", "TRUE"])
def test_use_development_emulator_is_case_insensitive(spelling: str) -> None:
    connection = read(
        EhubNamespaceConnectionString=f"{HUB};UseDevelopmentEmulator={spelling}"
    ).hub_connection
    assert connection
    assert connection.emulator


@pytest.mark.parametrize("pasted", [STORAGE, f' " {STORAGE} " \n', f"'{STORAGE}'"])
def test_a_storage_connection_string_is_parsed_as_people_paste_it(pasted: str) -> None:
    settings = read(BlobStorageConnectionString=pasted)
    assert settings.blob_connection
    client = BlobServiceClient.from_connection_string(STORAGE)
    assert client.url.rstrip("/") == str(settings.blob_connection.url)
    assert settings.blob_connection.key == ACCOUNT_KEY
    assert settings.blob_connection.length == len(pasted.strip())
    assert settings.secrets == (ACCOUNT_KEY,)


def test_a_storage_connection_string_may_contain_a_shared_access_signature() -> None:
    text = "BlobEndpoint=https://a.blob.core.windows.net/;SharedAccessSignature=sv=1&sig=c2ln"
    settings = read(BlobStorageConnectionString=text)
    assert settings.secrets == ("sv=1&sig=c2ln", "c2ln")


@pytest.mark.parametrize(
    ("name", "hub"),
    [({}, "audit"), ({"EventHubName": "audit"}, "audit"), ({"EventHubName": "AUDIT"}, "AUDIT")],
)
def test_an_entity_path_sets_the_name_of_the_hub(name: dict[str, str], hub: str) -> None:
    settings = read(EhubNamespaceConnectionString=f"{HUB};EntityPath=audit", **name)
    assert settings.event_hub_name == hub


def test_an_entity_path_that_contradicts_the_name_of_the_hub_is_an_error() -> None:
    [problem] = problems(
        EhubNamespaceConnectionString=f"{HUB};EntityPath=audit", EventHubName="other"
    )
    assert problem.startswith("EventHubName: 'other' contradicts EntityPath")
    assert "'audit'" in problem


# (variables, the variable in the error, words in the error)
CONTRADICTIONS: list[tuple[dict[str, str], str, str]] = [
    (
        {"EhubNamespaceConnectionString": HUB, "EventHubNamespace": HOST},
        "EventHubNamespace",
        "given together with EhubNamespaceConnectionString",
    ),
    (
        {"BlobStorageConnectionString": STORAGE, "BlobAccountUrl": "https://a.blob.core"},
        "BlobAccountUrl",
        "given together with BlobStorageConnectionString",
    ),
    (
        {"WebSinkURL": "https://sink", "WebSinkCertFile": "PEMS/cert.pem"},
        "WebSinkKeyFile",
        "missing, WebSinkCertFile needs it",
    ),
    (
        {"WebSinkURL": "https://sink", "WebSinkKeyFile": "PEMS/key.pem"},
        "WebSinkCertFile",
        "missing, WebSinkKeyFile needs it",
    ),
    (
        {
            "WebSinkURL": "https://sink",
            "WebSinkCertFile": "PEMS/cert.pem",
            "WebSinkKeyFile": "PEMS/encrypted.pem",
        },
        "WebSinkCertFile",
        "unencrypted key",
    ),
    ({"WebSinkURL": "http://sink", "WebSinkCAFile": "PEMS/ca.pem"}, "WebSinkURL", "is http"),
    (
        {"WebSinkURL": "http://me@sink", "WebSinkTokenFile": "PEMS/token"},
        "WebSinkURL",
        "a user in WebSinkURL and WebSinkTokenFile",
    ),
    (
        {"WebSinkURL": "http://me@sink", "WebSinkHeaders": '{"authorization": "Basic bWU="}'},
        "WebSinkURL",
        "a user in WebSinkURL and Authorization in WebSinkHeaders",
    ),
    (
        {"WebSinkTokenFile": "PEMS/token", "WebSinkHeaders": '{"Authorization": "Basic bWU="}'},
        "WebSinkURL",
        "Authorization in WebSinkHeaders and WebSinkTokenFile",
    ),
]


@pytest.mark.parametrize(("variables", "named", "words"), CONTRADICTIONS)
def test_contradictory_settings_are_an_error(
    variables: dict[str, str], named: str, words: str, pems: Path
) -> None:
    given = {name: text.replace("PEMS", str(pems)) for name, text in variables.items()}
    [problem] = problems(**given)
    assert problem.startswith(f"{named}: ")
    assert words in problem


def test_a_missing_login_is_reported_with_both_variables() -> None:
    with pytest.raises(SettingsError) as error:
        Settings.from_env({})
    [problem] = error.value.problems
    assert problem.startswith("EhubNamespaceConnectionString: missing")
    assert "EventHubNamespace" in problem


@pytest.mark.parametrize("variable", sorted(Settings.variables()))
@pytest.mark.parametrize("text", [HUB, STORAGE, HUB.replace(";", "\n;")])
def test_a_key_in_the_wrong_variable_is_not_repeated(variable: str, text: str) -> None:
    """Each error is one line."""
    others = {"HttpPort": "none", "EventHubNamespace": HOST}
    errors = problems(**others | {variable: text, "VerboseLevel": text})
    assert len(errors) >= 2
    for line in errors:
        assert KEY not in line
        assert ACCOUNT_KEY not in line
        assert "\n" not in line


@pytest.mark.parametrize(
    "variable", ["WebSinkTokenFile", "WebSinkCAFile", "WebSinkCertFile", "WebSinkKeyFile"]
)
def test_a_secret_in_place_of_its_file_path_is_not_repeated(variable: str) -> None:
    errors = problems(**{variable: "dG9rZW4"})
    assert any(line.startswith(f"{variable}: this path cannot be read") for line in errors)
    assert not any("dG9rZW4" in line for line in errors)


def test_the_representation_of_settings_contains_no_secret(pems: Path) -> None:
    settings = read(
        EhubNamespaceConnectionString=HUB,
        BlobStorageConnectionString=STORAGE,
        WebSinkURL="https://me:p4ssw0rd@sink/?token=t0ken-in-query",
        WebSinkHeaders='{"X-Key": "k3y-in-header"}',
        WebSinkCAFile=str(pems / "ca.pem"),
    )
    secrets = {KEY, ACCOUNT_KEY, "p4ssw0rd", "t0ken-in-query", "k3y-in-header"}
    assert set(settings.secrets) == secrets
    assert not [secret for secret in secrets if secret in repr(settings)]


def test_a_user_without_a_password_is_a_secret() -> None:
    assert read(WebSinkURL="https://api-k3y-of-the-sink@sink/").secrets == ("api-k3y-of-the-sink",)


def test_a_short_header_value_is_not_a_secret() -> None:
    """Redacting the number of a tenant would make every error unreadable."""
    assert read(WebSinkHeaders='{"X-Scope-OrgID": "1"}').secrets == ()


def test_settings_are_immutable() -> None:
    settings = read()
    with pytest.raises(AttributeError):
        settings.verbose_level = 4  # type: ignore[misc]  # must fail
    assert replace(settings, verbose_level=4).verbose_level == 4


BEARER = "eyJhbGciOiJSUzI1NiIsImtpZCI6IjEifQ.eyJzdWIiOiJhYmMxMjMifQ.QWJjRGVmMTIz"
# Texts that may be pasted into the wrong variable: no error may repeat them.
PASTED = {
    "hub": (HUB, KEY),
    "storage": (STORAGE, ACCOUNT_KEY),
    "signature": (f"{ENDPOINT};SharedAccessSignature={SIGNATURE}", "sig=signature"),
    "hub's key": ("Qm9Kx7Zt4Lw2Vn8Pc5Rd1Hs6Gf3Jy0Ua+AEhXb/Tk9E=",) * 2,
    "account's key": (ACCOUNT_KEY_OF_64_BYTES,) * 2,
    "client secret": ("q7X8Q~kLm3Np5Rs7Tv9Wx1Yz3Ab5Cd7Ef9Gh1J",) * 2,
    "token": (BEARER,) * 2,
    "hexadecimal": ("9f86d081884c7d659a2feaa0c55ad015a3bf4f1b",) * 2,
}
# These accept any text, so a secret may be a valid value.
ANYTHING = {"StateDirectory", "NO_PROXY", "Categories", "ResourceIds"}


@pytest.mark.parametrize("suffix", ["", "_FILE"])
@pytest.mark.parametrize("pasted", PASTED)
@pytest.mark.parametrize("variable", sorted(Settings.variables()))
def test_a_secret_in_the_wrong_variable_is_refused_and_never_repeated(
    variable: str, pasted: str, suffix: str
) -> None:
    text, secret = PASTED[pasted]
    named = {variable: text} if not suffix else {f"{variable}{suffix}": text}
    if variable not in {"EhubNamespaceConnectionString", "EventHubNamespace"}:
        named["EventHubNamespace"] = HOST
    try:
        settings = Settings.from_env(named)
        assert not suffix
        accepted = "ConnectionString" in variable or variable in ANYTHING
        assert accepted or pasted in {"client secret", "token", "hexadecimal"}
        shown = repr(settings) if "ConnectionString" in variable else ""
    except SettingsError as error:
        shown = "".join(error.problems)
    assert secret not in shown


def test_every_secret_is_registered_for_redaction(tmp_path: Path) -> None:
    """Secrets in files are registered again when the files are reloaded."""
    configure(())
    connection, token = tmp_path / "connection", tmp_path / "token"
    connection.write_text(HUB)
    token.write_text("b3arer-token\n")
    settings = read(
        EhubNamespaceConnectionString_FILE=str(connection),
        BlobStorageConnectionString=f"BlobEndpoint=https://a/;{SIGNATURE.replace(' ', '=', 1)}",
        WebSinkURL="https://sink/?code=s3cret-in-query",
        WebSinkTokenFile=str(token),
        HTTPS_PROXY="http://someone:pr0xy%2Fpassword@proxy:3128",
    )
    known = {KEY, "signature", "s3cret-in-query", "b3arer-token", "pr0xy/password"}
    assert known <= set(settings.secrets)
    connection.write_text(HUB.replace(KEY, "cmVuZXdlZA=="))
    assert redact("of cmVuZXdlZA==") == "of cmVuZXdlZA=="
    assert settings.current("hub_connection").key == "cmVuZXdlZA=="
    assert redact("of cmVuZXdlZA==") == "of ***"
