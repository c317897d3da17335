"""The chart and the app that it deploys: the app accepts the environment that the chart renders."""

import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from subprocess import CalledProcessError, run
from typing import Any

import pytest
import trustme
import yaml
from azure.identity._constants import EnvironmentVariables

from forwarder.config.settings import Settings
from support import chart

HUB = (
    "Endpoint=sb://existing.servicebus.windows.net/;SharedAccessKeyName=a;SharedAccessKey=Z2VoZWlt"
)
EXISTING = {
    "aks-audit-credentials": {
        "EhubNamespaceConnectionString": HUB,
        "BlobStorageConnectionString": "AccountName=existing;AccountKey=Z2VoZWlt",
    }
}
AUTHORITY = trustme.CA()
CLIENT = AUTHORITY.issue_cert("client@example.org")
FILES = {
    "token": b"bearer",
    "ca.crt": AUTHORITY.cert_pem.bytes(),
    "tls.crt": CLIENT.cert_chain_pems[0].bytes(),
    "tls.key": CLIENT.private_key_pem.bytes(),
    **{name: text.encode() for name, text in EXISTING["aks-audit-credentials"].items()},
}
EVERY_SETTING = chart.CHART / "tests" / "every-setting-values.yaml"
# `helm template` writes no notes; `helm install` rejects custom resources without their CRDs.
NOTES = (
    "--dry-run=client",
    "--set=prometheusRule.enabled=false,keda.enabled=false",
    "--set=metrics.serviceMonitor.enabled=false,metrics.podMonitor.enabled=false",
)

value_files = pytest.mark.parametrize(
    "values",
    [*chart.CI_VALUES, EVERY_SETTING],
    ids=lambda path: path.name.removesuffix("-values.yaml"),
)


def settings(manifests: list[chart.Manifest], directory: Path) -> Settings:
    """Read the environment as the pod would, with the mounted files below `directory`."""
    environ = chart.environment(manifests, EXISTING)
    secret = {path: FILES[Path(path).name] for path in chart.mounted_files(manifests)}
    config = {path: text.encode() for path, text in chart.mounted_config(manifests).items()}
    for path, content in {**secret, **config}.items():
        file = directory / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        environ = {name: str(file) if text == path else text for name, text in environ.items()}
    return Settings.from_env(environ)


def leaves(values: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield the last key and the text of each value."""
    if isinstance(values, dict) and name != "headers":
        for key, value in values.items():
            yield from leaves(value, key)
    elif isinstance(values, bool):
        yield name, str(values).lower()
    else:
        yield name, ",".join(values) if isinstance(values, list) else str(values)


@value_files
def test_the_app_accepts_what_the_chart_renders(values: Path, tmp_path: Path) -> None:
    manifests = chart.render("--values", values)
    read = settings(manifests, tmp_path)
    spec = chart.pod(manifests)
    (container,) = spec["containers"]
    assert spec["terminationGracePeriodSeconds"] > read.shutdown_grace
    assert container["ports"] == [{"name": "http", "containerPort": read.http_port}]
    assert container["volumeMounts"][0]["mountPath"] == str(read.state_directory)


@value_files
def test_every_variable_of_the_chart_is_known_to_the_app_or_azure_identity(values: Path) -> None:
    variables = Settings.variables()
    known = {*variables, *vars(EnvironmentVariables).values(), "https_proxy", "no_proxy"}
    known |= {f"{name}_FILE" for name in variables}
    assert chart.environment(chart.render("--values", values), EXISTING).keys() <= known


def test_every_setting_of_the_app_can_be_set_with_values(tmp_path: Path) -> None:
    default = Settings()
    reached = {
        item.name
        for values in [*chart.CI_VALUES, EVERY_SETTING]
        for read in [settings(chart.render("--values", values), tmp_path)]
        for item in fields(Settings)
        if getattr(read, item.name) != getattr(default, item.name)
    }
    assert reached | {"files", "client_id"} == {item.name for item in fields(Settings)}


def test_every_value_sets_the_variable_whose_name_ends_with_its_key() -> None:
    environ = chart.environment(chart.render("--values", EVERY_SETTING))
    assert environ.pop("https_proxy") == environ["HTTPS_PROXY"]
    assert environ.pop("no_proxy") == environ["NO_PROXY"]
    environ["WebSinkHeaders"] = str(yaml.safe_load(environ["WebSinkHeaders"]))
    for key, text in leaves(yaml.safe_load(EVERY_SETTING.read_text())):
        (name,) = (name for name, found in environ.items() if found == text)
        suffixes = (key.removesuffix("Seconds").lower(), f"{key}File".lower())
        assert name.lower().replace("_", "").endswith(suffixes)


def test_the_defaults_of_the_chart_match_those_of_the_app(tmp_path: Path) -> None:
    read = settings(chart.render("--values", chart.DEFAULT), tmp_path)
    assert read == Settings(hub_connection=read.hub_connection)


@value_files
def test_secrets_are_only_in_the_secret(values: Path, tmp_path: Path) -> None:
    manifests = chart.render("--values", values)
    secrets = settings(manifests, tmp_path).secrets
    shown = yaml.dump([item for item in manifests if item["kind"] != "Secret"])
    shown += chart.helm("install", "aks-audit", chart.CHART, *NOTES, "--values", values)
    assert not [secret for secret in secrets if secret in shown]


@pytest.mark.parametrize(
    "mistake",
    [
        "eventHub.connectionString=AccountName=a;AccountKey=geheim",
        "blobStorage.connectionString=Endpoint=sb://a/;SharedAccessKey=geheim",
        "eventHub.namespace=Endpoint=sb://a/;SharedAccessKey=geheim",
        "eventHub.name=Endpoint=sb://a/;SharedAccessKey=geheim",
        "eventHub.consumerGroup=Endpoint=sb://a/;SharedAccessKey=geheim",
        "blobStorage.accountUrl=https://a.blob.core.windows.net?sig=geheim",
        "existingSecret=Endpoint=sb://a/;SharedAccessKey=geheim",
        "webhook.token.secretName=Bearer geheim",
        "webhook.url=user:geheim@sink",
        "webhook.url=https://user:geheim@sink:port",
        "httpsProxy=http://user:geheim@proxy:port",
    ],
)
def test_no_error_repeats_a_secret(mistake: str) -> None:
    with pytest.raises(CalledProcessError) as error:
        chart.render("--values", chart.DEFAULT, "--set", mistake)
    key = mistake.partition("=")[0].rpartition(".")[2]
    assert key in error.value.stderr
    assert "geheim" not in error.value.stderr


REFUSED = {
    "image.digest=abc": "/image/digest': value must be 'sha256: and 64",
    "image.tag=a:b": "/image/tag': value must be 'a tag such as",
    "image.pullPolicy=Sometimes": "/image/pullPolicy': value must be one of 'Always'",
    "imagePullSecrets[0].nam=a": "/imagePullSecrets/0': missing property 'name'",
    "eventHub.transport=http": "/eventHub/transport': value must be one of 'amqp', 'websockets'",
    "eventHub.categories[0]=a b": "/eventHub/categories/0': value must be one of 'kube-audit',",
    "eventHub.consumerGroup=$default": "/eventHub/consumerGroup': value must be '$Default'",
    "blobStorage.accountUrl=https://a.dfs.core.windows.net": "/blobStorage/accountUrl': value must",
    "blobStorage.containerName=Up": "/blobStorage/containerName': value must be 'a name of",
    "persistence.size=big": "/persistence/size': value must be 'a quantity such as",
    "persistence.stateDirectory=a": "/persistence/stateDirectory': value must be 'an absolute",
    "persistence.accessModes[0]=a": "/persistence/accessModes/0': value must be one of 'ReadWrite",
    "checkpointIntervalSeconds=0": "/checkpointIntervalSeconds': exclusiveMinimum: got 0",
    "stallTimeoutSeconds=86401": "/stallTimeoutSeconds': maximum: got 86,401",
    "deadLetterMaxBytes=1": "/deadLetterMaxBytes': minimum: got 1, want 1,024",
    "webhook.maxEvents=0": "/webhook/maxEvents': minimum: got 0",
    "webhook.concurrency=101": "/webhook/concurrency': maximum: got 101",
    "webhook.maxRejects=0": "/webhook/maxRejects': minimum: got 0",
    "webhook.headers.X-Number=1": "/webhook/headers/X-Number': got number, want null or string",
    "webhook.headers.Host=a": "/webhook/headers/Host': value must be 'left out: the forwarder",
    "webhook.headers.a b=c": "/webhook/headers/a b': value must be 'left out: its key is",
    "webhook.headers.X-Lines=a\nb": "/webhook/headers/X-Lines': value must be 'a text of one line'",
    "webhook.service.name=Up": "/webhook/service/name': value must be 'a name of",
    "webhook.service.port=0": "/webhook/service/port': minimum: got 0",
    "webhook.service.targetPort=0": "/webhook/service/targetPort': minimum: got 0",
    "logFormat=xml": "/logFormat': value must be one of 'json', 'text'",
    "replicaCount=-1": "/replicaCount': minimum: got -1",
    "livenessProbe.periodSeconds=0": "/livenessProbe/periodSeconds': minimum: got 0",
    "resources.limits.memory=lots": "/resources/limits/memory': value must be 'a quantity such",
    "extraEnv[0].value=a": "/extraEnv/0': missing property 'name'",
    "extraVolumes[0].name=a": "/extraVolumes/0': minProperties: got 1, want 2",
    "extraVolumeMounts[0].name=a": "/extraVolumeMounts/0': missing property 'mountPath'",
    "topologySpreadConstraints[0].maxSkew=1": "/topologySpreadConstraints/0': missing properties",
    "podDisruptionBudget.maxUnavailable=a": "/podDisruptionBudget/maxUnavailable': value must be",
    "workloadIdentity.clientId=a": "/workloadIdentity/clientId': value must be 'an ID such as",
    "webhook.url=http://user:geheim@sink:a/": "/webhook/url': value must be one of 'http://HOST:PORT",
    "httpsProxy=proxy:3128": "/httpsProxy': value must be one of 'http://HOST:PORT'",
    "trustedCA.name=a": "/trustedCA': additional properties 'name' not allowed",
    "dnsPolicy=Cluster": "/dnsPolicy': value must be one of '', 'ClusterFirst'",
    "revisionHistoryLimit=a": "/revisionHistoryLimit': 'anyOf' failed",
    "metrics.port=70000": "/metrics/port': maximum: got 70,000",
    "metrics.serviceMonitor.interval=often": "/metrics/serviceMonitor/interval': value must be 'a",
    "metrics.monitorApiVersion=v1": "/metrics/monitorApiVersion': value must be one of '', 'mon",
    "prometheusRule.selector={a}": "/prometheusRule/selector': got array, want string",
    "prometheusRule.retentionHours=0": "/prometheusRule/retentionHours': minimum: got 0, want 1",
    "prometheusRule.retentionShare=2": "/prometheusRule/retentionShare': maximum: got 2, want 1",
    "prometheusRule.quietHours=0": "/prometheusRule/quietHours': minimum: got 0, want 1",
    "prometheusRule.runbookUrl=a": "/prometheusRule/runbookUrl': value must be 'a URL without",
    "dashboard.labelValue=1": "/dashboard/labelValue': got number, want string",
    "networkPolicy.azureCIDRs[0]=a": "/networkPolicy/azureCIDRs/0': value must be 'a CIDR such",
    "networkPolicy.metricsFrom[0]=a": "/networkPolicy/metricsFrom/0': got string, want object",
    "keda.partitions=0": "/keda/partitions': minimum: got 0, want 1",
    "keda.minReplicas=0": "/keda/minReplicas': minimum: got 0, want 1",
}


def test_an_invalid_value_is_refused_with_its_key() -> None:
    arguments = [argument for mistake in REFUSED for argument in ("--set", mistake)]
    with pytest.raises(CalledProcessError) as error:
        chart.render("--values", chart.DEFAULT, *arguments)
    assert [text for text in REFUSED.values() if text not in error.value.stderr] == []
    assert not re.search(r"\^|\[0-9\]", error.value.stderr)  # no regular expression


def test_all_mistakes_are_reported_at_once() -> None:
    with pytest.raises(CalledProcessError, match="non-zero exit status") as error:
        chart.render("--set", "replicaCount=2")
    assert re.search(r"No Event Hub is given.*\nreplicaCount above 1", error.value.stderr)


def parts_with_properties(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield all parts of a schema that define properties."""
    for part in schema.values() if isinstance(schema, dict) else schema:
        if isinstance(part, dict | list):
            yield from parts_with_properties(part)
    if isinstance(schema, dict) and isinstance(schema.get("properties"), dict):
        yield schema


def test_a_typo_is_refused_at_every_level() -> None:
    schema = yaml.safe_load((chart.CHART / "values.schema.json").read_text())
    del schema["properties"]["global"]  # parent charts set values of other charts there
    parts = list(parts_with_properties(schema))
    assert len(parts) > 20
    assert [part for part in parts if part.get("additionalProperties") is not False] == []


def test_the_schema_knows_every_value() -> None:
    """A default that the schema does not define would not be validated in an open object."""
    schema = yaml.safe_load((chart.CHART / "values.schema.json").read_text())
    values = yaml.safe_load((chart.CHART / "values.yaml").read_text())

    def unknown(values: dict[str, Any], schema: dict[str, Any], path: str) -> Iterator[str]:
        for key, value in values.items():
            if key not in schema["properties"]:
                yield f"{path}{key}"
            elif isinstance(value, dict) and "properties" in schema["properties"][key]:
                yield from unknown(value, schema["properties"][key], f"{path}{key}.")

    assert list(unknown(values, schema, "")) == []


def test_patterns_of_the_schema_are_valid_in_javascript() -> None:
    """JSON Schema uses the regular expressions of ECMA-262, as do editors of values.yaml."""
    text = (chart.CHART / "values.schema.json").read_text()
    script = """
        const patterns = new Set(), add = (key, value) => {
            if (key === "pattern" && typeof value === "string") patterns.add(value);
            if (key === "patternProperties") Object.keys(value).forEach(one => patterns.add(one));
            return value;
        };
        JSON.parse(require("fs").readFileSync(0), add);
        patterns.forEach(one => new RegExp(one, "u"));
        console.log(patterns.size);
    """
    found = run(["node", "-e", script], input=text, check=True, capture_output=True, text=True)
    assert int(found.stdout) > 10


def annotations(*arguments: str) -> dict[str, str]:
    """Return the annotations of the pod."""
    (deployment,) = chart.of_kind(chart.render("--values", chart.DEFAULT, *arguments), "Deployment")
    found: dict[str, str] = deployment["spec"]["template"]["metadata"]["annotations"]
    return found


def test_a_changed_setting_or_secret_rolls_the_pod_and_nothing_else_does() -> None:
    before = annotations()
    setting = annotations("--set", "verboseLevel=3")
    secret = annotations("--set", f"eventHub.connectionString={HUB}")
    assert setting["checksum/config"] != before["checksum/config"]
    assert setting["checksum/secret"] == before["checksum/secret"]
    assert secret["checksum/secret"] != before["checksum/secret"]
    assert secret["checksum/config"] == before["checksum/config"]
    assert annotations("--set", "commonLabels.a=b") == before
    policy = annotations("--set-json", 'auditPolicy={"rules": [{"level": "Metadata"}]}')
    other = annotations("--set-json", 'auditPolicy={"rules": [{"level": "Request"}]}')
    assert policy["checksum/policy"] != other["checksum/policy"]


def test_a_policy_file_can_be_installed_unchanged(tmp_path: Path) -> None:
    """A whole Policy or only its rules, with --set-file or in a values file."""
    policy = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [{"level": "Metadata"}]}
    rules = {"rules": policy["rules"]}
    read = []
    for index, given in enumerate((policy, rules)):
        file = tmp_path / f"{index}.yaml"
        file.write_text(f"# {index}\n{yaml.safe_dump(given)}")
        values = tmp_path / f"{index}-values.yaml"
        values.write_text(yaml.safe_dump({"auditPolicy": given}))
        for arguments in (("--set-file", f"auditPolicy={file}"), ("--values", values)):
            manifests = chart.render("--values", chart.DEFAULT, *arguments)
            read.append(settings(manifests, tmp_path).audit_policy)
    assert read[0]
    assert read == [read[0]] * 4


@value_files
def test_rendering_twice_gives_the_same_bytes(values: Path) -> None:
    first, second = (chart.template("--values", values) for _ in range(2))
    assert first == second
    assert not re.search(r"[ \t]$", first, re.MULTILINE)


NAMES = {
    ("ConfigMap", "aks-audit"),
    ("Deployment", "aks-audit"),
    ("PersistentVolumeClaim", "aks-audit"),
    ("Pod", "aks-audit-check"),
    ("Secret", "aks-audit"),
    ("Service", "aks-audit-metrics"),
    ("Service", "sysdig-agent"),
    ("ServiceAccount", "aks-audit"),
}
SELECTOR = {"app.kubernetes.io/name": "aks-audit", "app.kubernetes.io/instance": "aks-audit"}


@pytest.mark.parametrize("values", ["values.yaml", "tests/values-0.1.0.yaml"])
def test_an_upgrade_with_reused_values_changes_no_name_and_no_selector(
    values: str, tmp_path: Path
) -> None:
    """`--reuse-values` renders the new templates with the defaults of the old chart."""
    upgraded = shutil.copytree(chart.CHART, tmp_path / "chart")
    shutil.copy(chart.CHART / values, upgraded / "values.yaml")
    manifests = chart.render("--values", chart.DEFAULT, "--set", "verboseLevel=3", chart=upgraded)
    assert {(item["kind"], item["metadata"]["name"]) for item in manifests} == NAMES
    (deployment,) = chart.of_kind(manifests, "Deployment")
    assert deployment["spec"]["selector"] == {"matchLabels": SELECTOR}
    assert [item["spec"]["selector"] for item in chart.of_kind(manifests, "Service")] == [
        SELECTOR,
        {"app": "sysdig-agent"},
    ]
    assert chart.environment(manifests)["VerboseLevel"] == "3"


@pytest.mark.parametrize("key", ["prometheusRule", "dashboard", "keda"])
def test_reused_values_without_a_newer_block_are_refused_with_the_remedy(
    key: str, tmp_path: Path
) -> None:
    upgraded = shutil.copytree(chart.CHART, tmp_path / "chart")
    shutil.copy(chart.CHART / "tests" / "values-0.1.0.yaml", upgraded / "values.yaml")
    with pytest.raises(CalledProcessError) as error:
        chart.render("--values", chart.DEFAULT, "--set", f"{key}.enabled=true", chart=upgraded)
    assert re.search(rf"No value for .*\b{key}\.", error.value.stderr)
    assert "--reset-then-reuse-values" in error.value.stderr
    assert "reflect" not in error.value.stderr


def test_newer_values_work_one_by_one_with_reused_values(
    tmp_path: Path,
) -> None:
    """The rest of their block is missing."""
    upgraded = shutil.copytree(chart.CHART, tmp_path / "chart")
    shutil.copy(chart.CHART / "tests" / "values-0.1.0.yaml", upgraded / "values.yaml")
    values = {
        "auditPolicy": {"rules": [{"level": "Metadata"}]},
        "trustedCA": {"configMapName": "company"},
        "httpsProxy": "http://proxy:3128",
        "metrics": {"podMonitor": {"enabled": True}},
        "global": {"imageRegistry": "bank.azurecr.io"},
        "tests": {"enabled": True},
        "resourceIds": ["*"],
    }
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    manifests = chart.render(
        "--values", chart.DEFAULT, "--values", tmp_path / "values.yaml", chart=upgraded
    )
    environ = chart.environment(manifests)
    assert environ["TrustedCAFile"] == "/etc/aks-audit/trusted-ca/ca.crt"
    assert environ["AuditPolicyFile"] == "/etc/aks-audit/policy/policy.yaml"
    assert chart.of_kind(manifests, "PodMonitor")


def keys(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Yield the dotted key of each value, and whether the chart defines keys below it."""
    for key, value in values.items():
        if re.fullmatch(r"\w+", key):
            block = isinstance(value, dict) and bool(value)
            yield prefix + key, block
            if block:
                yield from keys(value, f"{prefix}{key}.")


ALL_ENABLED = (
    "metrics.podMonitor.enabled=true,prometheusRule.enabled=true,dashboard.enabled=true",
    "networkPolicy.enabled=true,keda.enabled=true,podDisruptionBudget.enabled=true",
    "blobStorage.connectionString=AccountName=a;AccountKey=b,webhook.url=http://sink",
)


def null_error(*names: str) -> str:
    """Return the error when these values are null and every optional object is enabled."""
    values = [*ALL_ENABLED, *(f"{name}=null" for name in names)]
    try:
        chart.render("--values", chart.DEFAULT, *(w for value in values for w in ("--set", value)))
    except CalledProcessError as error:
        return str(error.stderr)
    return ""


def test_null_removes_optional_values_and_is_refused_in_one_sentence_elsewhere() -> None:
    every = dict(keys(yaml.safe_load((chart.CHART / "values.yaml").read_text())))
    leaves = [key for key, block in every.items() if not block and not key.endswith(".enabled")]
    assert len(leaves) > 120
    match = re.search(r"No value for (.*): either null was given", null_error(*leaves))
    assert match
    required = set(match[1].split(", ")) - {"persistence.enabled", "metrics.service.enabled"}
    assert required < set(leaves)
    assert {"verboseLevel", "webhook.timeoutSeconds", "keda.partitions"} < required
    given = {"eventHub.connectionString", "blobStorage.connectionString"}
    given.add("podDisruptionBudget.maxUnavailable")  # a budget without either value blocks drains
    optional = set(leaves) - required - given
    assert null_error(*optional) == ""
    blocks = [key for key, block in every.items() if block]
    with ThreadPoolExecutor(2) as pool:
        for block, text in zip(blocks, pool.map(null_error, blocks), strict=True):
            assert not text or re.search(rf"No value for {block}\.", text), text


def without_default(schema: Any, values: Any, root: Any) -> dict[str, Any]:
    """Return null for each key that the schema has and the values lack, and in free-form maps."""
    reference = str(schema.get("$ref", "")).rpartition("/")[2]
    known = {**root["definitions"].get(reference, {}), **schema}
    nulls: dict[str, Any] = {}
    if reference in {"texts", "quantities"}:
        return {"other": None}
    for key, part in known.get("properties", {}).items():
        if key not in (values or {}):
            nulls[key] = None
        elif below := without_default(part, values[key], root):
            nulls[key] = below
    return nulls


def test_null_is_ignored_where_the_chart_has_no_default(tmp_path: Path) -> None:
    """Helm removes a default that is null, and keeps any other null."""
    schema = yaml.safe_load((chart.CHART / "values.schema.json").read_text())
    defaults = yaml.safe_load((chart.CHART / "values.yaml").read_text())
    nulls = without_default(schema, defaults, schema)
    assert nulls["securityContext"]["runAsUser"] is nulls["resources"]["limits"]["other"] is None
    nulls["tolerations"] = [{"key": "spot", "value": None}]
    (tmp_path / "nulls.yaml").write_text(yaml.safe_dump(nulls))
    on = ("--values", chart.DEFAULT, "--set", ",".join(ALL_ENABLED))
    without = chart.template(*on, "--set", "tolerations[0].key=spot")
    assert chart.template(*on, "--values", tmp_path / "nulls.yaml") == without


def umbrella(directory: Path) -> Path:
    """Create a parent chart that has this one as a dependency."""
    dependency = {"name": "aks-audit", "version": ">=0.1.0-0", "condition": "aks-audit.enabled"}
    parent = {"apiVersion": "v2", "name": "security", "version": "0.0.1"}
    (directory / "charts").mkdir(parents=True)
    shutil.copytree(chart.CHART, directory / "charts" / "aks-audit")
    (directory / "Chart.yaml").write_text(yaml.safe_dump(parent | {"dependencies": [dependency]}))
    return directory


def test_a_parent_chart_enables_and_disables_it_and_passes_its_registry(tmp_path: Path) -> None:
    parent = umbrella(tmp_path / "security")
    values = (
        "--set",
        "aks-audit.existingSecret=creds",
        "--set",
        "global.imageRegistry=acr.example.io",
    )
    on = chart.render(*values, "--set", "aks-audit.enabled=true", chart=parent)
    (container,) = chart.pod(on)["containers"]
    assert container["image"].startswith("acr.example.io/aks-audit/aks-audit:")
    assert chart.render(*values, "--set", "aks-audit.enabled=false", chart=parent) == []
    assert chart.render(*values, chart=parent) == on


def test_the_example_of_a_parent_chart_renders_two_aliases(tmp_path: Path) -> None:
    example = chart.CHART / "ci" / "umbrella"
    parent = shutil.copytree(example, tmp_path / "security")
    shutil.copytree(chart.CHART, parent / "charts" / "aks-audit")
    manifests = chart.render("--values", example / "values.yaml", chart=parent)
    names = {(item["kind"], item["metadata"]["name"]) for item in manifests}
    assert len(names) == len(manifests)
    deployments = [item["metadata"]["name"] for item in chart.of_kind(manifests, "Deployment")]
    assert deployments == ["aks-audit-auditeast", "aks-audit-auditwest"]


def pod_patterns(manifests: list[chart.Manifest]) -> dict[str, str]:
    """Return the pattern by which the alerts of each release select its pods."""
    first = [
        item["spec"]["groups"][0]["rules"][0] for item in chart.of_kind(manifests, "PrometheusRule")
    ]
    return {one["labels"]["release"]: one["expr"].split('pod=~"')[1][:-3] for one in first}


def test_the_alerts_of_each_alias_select_its_own_pods(tmp_path: Path) -> None:
    parent = shutil.copytree(chart.CHART / "ci" / "umbrella", tmp_path / "security")
    shutil.copytree(chart.CHART, parent / "charts" / "aks-audit")
    sides = ("auditEast", "auditWest")
    on = ",".join(f"{side}.prometheusRule.enabled=true" for side in sides)
    found = pod_patterns(chart.render("--set", on, chart=parent))
    assert list(found) == [f"aks-audit-{side.lower()}" for side in sides]
    for release, pattern in found.items():
        matched = [one for one in found if re.fullmatch(pattern, f"{one}-7c9f8d6b5d-x2x4z")]
        assert matched == [release]


def test_alerts_select_pods_whose_name_kubernetes_shortens() -> None:
    """Kubernetes keeps 58 characters of the ReplicaSet's name and hyphen, and appends five."""
    name = "a" * 55
    values = f"fullnameOverride={name},metrics.scrapeAnnotations=true,prometheusRule.enabled=true"
    (pattern,) = pod_patterns(chart.render("--values", chart.DEFAULT, "--set", values)).values()
    assert re.fullmatch(pattern, f"{name}-7c9f8d6b5d-"[:58] + "x2x4z")


@value_files
def test_the_pod_of_helm_test_is_admitted_wherever_the_forwarder_is(
    values: Path,
) -> None:
    manifests = chart.render("--values", values, "--set", "commonLabels.costcenter=a")
    (deployment,) = chart.of_kind(manifests, "Deployment")
    (check,) = chart.of_kind(manifests, "Pod")
    ours = deployment["spec"]["template"]
    assert check["metadata"]["labels"].items() >= {"costcenter": "a"}.items()
    for key in ("nodeSelector", "securityContext", "tolerations", "imagePullSecrets"):
        assert check["spec"].get(key) == ours["spec"].get(key)
    (container,) = check["spec"]["containers"]
    (forwarder,) = ours["spec"]["containers"]
    assert {"livenessProbe", "readinessProbe"} <= container.keys()
    for key in ("name", "image", "resources", "securityContext"):  # annotations may name it
        assert container.get(key) == forwarder.get(key)


# The initiatives "Kubernetes cluster pod security restricted standards" and "Deployment safeguards"
# of Azure Policy. Unlike Kubernetes, the first requires runAsGroup, fsGroup and supplementalGroups.
VOLUMES = {"configMap", "csi", "emptyDir", "persistentVolumeClaim", "projected", "secret"}


def violations(spec: dict[str, Any]) -> Iterator[str]:
    """Yield the requirements of Azure Policy that a pod violates."""
    pod, (container,) = spec["securityContext"], spec["containers"]
    own = container["securityContext"]
    groups = [pod.get("runAsGroup"), pod.get("fsGroup"), *pod.get("supplementalGroups", [None])]
    found = {
        "user": pod["runAsNonRoot"] and pod["runAsUser"] and own.get("runAsNonRoot"),
        "groups": all(group and 1 <= group <= 65535 for group in groups),
        "seccomp": pod["seccompProfile"] == {"type": "RuntimeDefault"},
        "privileges": own["allowPrivilegeEscalation"] is False and "privileged" not in own,
        "capabilities": own["capabilities"] == {"drop": ["ALL"]},
        "root file system": own["readOnlyRootFilesystem"],
        "host": not [key for key in spec if key.startswith("host") and key != "hostAliases"],
        "host ports": not [port for port in container.get("ports", []) if "hostPort" in port],
        "volumes": {key for one in spec.get("volumes", []) for key in one} <= {"name", *VOLUMES},
        "probes": {"livenessProbe", "readinessProbe"} <= container.keys(),
        "requests": {"cpu", "memory"} <= container["resources"]["requests"].keys(),
        "tag": re.search(r":[^/]+$", container["image"]) and "latest" not in container["image"],
        "token": spec["automountServiceAccountToken"] is False,
    }
    yield from (name for name, meets in found.items() if not meets)


@value_files
def test_azure_policy_admits_the_pods(values: Path) -> None:
    manifests = chart.render("--values", values)
    (check,) = chart.of_kind(manifests, "Pod")
    (deployment,) = chart.of_kind(manifests, "Deployment")
    for spec in (check["spec"], chart.pod(manifests)):
        assert list(violations(spec)) == []
    several = deployment["spec"].get("replicas", 2) > 1
    assert several == ("topologySpreadConstraints" in chart.pod(manifests))


@pytest.mark.parametrize(
    ("release", "name"),
    [
        ("aks-audit", "aks-audit"),
        ("prod-aks-audit", "prod-aks-audit"),
        ("prod", "prod-aks-audit"),
        ("a.b", "a-b-aks-audit"),
        ("a" * 53, "a" * 53 + "-a"),
    ],
)
def test_objects_are_named_after_the_release_and_never_too_long(release: str, name: str) -> None:
    text = chart.helm("template", release, chart.CHART, "--values", chart.DEFAULT)
    names = {item["metadata"]["name"] for item in yaml.safe_load_all(text) if item}
    assert names == {name, f"{name}-check", f"{name}-metrics", "sysdig-agent"}


def test_the_chart_stays_small() -> None:
    rendered = chart.helm("template", chart.CHART, "--values", chart.DEFAULT)
    templates = [path for path in (chart.CHART / "templates").rglob("*") if path.is_file()]
    assert len(rendered.splitlines()) < 300
    assert sum(len(path.read_text().splitlines()) for path in templates) < 1150
