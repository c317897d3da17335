"""Alerts and dashboard use the metrics that a forwarder exports, and alerts fire as expected."""

import asyncio
import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from support import chart
from support.documents import page
from support.environment import Environment, environment
from support.harness import Samples
from support.prometheus import prometheus, tool

SCRAPED = {"namespace", "pod", "instance", "job", "cluster", "app_kubernetes_io_instance"}
"""Labels that Prometheus adds."""


def rules(*arguments: str) -> list[dict[str, Any]]:
    """Return the rules that Helm renders."""
    manifests = chart.render(
        "--values", chart.DEFAULT, "--set", "prometheusRule.enabled=true", *arguments
    )
    (found,) = chart.of_kind(manifests, "PrometheusRule")
    (group,) = found["spec"]["groups"]
    alerts: list[dict[str, Any]] = group["rules"]
    return alerts


def write(path: Path, alerts: list[dict[str, Any]]) -> Path:
    """Write rules as a file for Prometheus."""
    path.write_text(yaml.safe_dump({"groups": [{"name": "aks-audit", "rules": alerts}]}))
    return path


def dashboard() -> dict[str, Any]:
    """Return the dashboard as the ConfigMap holds it."""
    manifests = chart.render("--values", chart.DEFAULT, "--set", "dashboard.enabled=true")
    (text,) = (
        item["data"]["sysdig-agent-aks-audit.json"]
        for item in chart.of_kind(manifests, "ConfigMap")
        if "sysdig-agent-aks-audit.json" in item["data"]
    )
    found: dict[str, Any] = json.loads(text)
    return found


def unchanging_policy(directory: Path) -> str:
    """Return the path of a policy that changes no event, so that its metric is exported."""
    rules = [{"level": "RequestResponse"}]
    policy = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": rules}
    (directory / "policy.yaml").write_text(yaml.dump(policy))
    return str(directory / "policy.yaml")


def queries() -> Iterator[tuple[str, str]]:
    """Yield the title of each panel with each of its queries, variables filled in."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            expression = re.sub(r"\$(cluster|namespace|release)", ".*", target["expr"])
            expression = expression.replace("$__rate_interval", "15s").replace("$__range", "1m")
            yield panel["title"], expression


# A healthy forwarder as Prometheus stores it: one value per minute for four hours.
HEALTHY = {
    "aks_audit_build_info": "1x240",
    "aks_audit_hub_up": "1x240",
    "aks_audit_hub_partitions": "2x240",
    "aks_audit_partitions_owned": "2x240",
    "aks_audit_sink_up": "1x240",
    'aks_audit_tls_certificate_expiry_seconds{file="/etc/tls.crt"}': "7776000x240",
    "aks_audit_dead_letters_waiting": "0x240",
    "process_start_time_seconds": "100x240",
} | {
    f'{name}{{partition="{partition}"{more}}}': values
    for partition in "01"
    for name, more, values in (
        ("aks_audit_hub_messages_total", "", "0+10x240"),
        ("aks_audit_events_total", ',outcome="delivered"', "0+220x240"),
        ("aks_audit_events_total", ',outcome="dead_lettered"', "0x240"),
        ("aks_audit_events_total", ',outcome="dropped"', "0x240"),
        ("aks_audit_checkpoints_total", ',result="ok"', "0+12x240"),
        ("aks_audit_checkpoints_total", ',result="error"', "0x240"),
        ("aks_audit_lost_messages_total", "", "0x240"),
        ("aks_audit_partition_losses_total", "", "0x240"),
        ("aks_audit_lag_messages", "", "0x240"),
        ("aks_audit_oldest_undelivered_seconds", "", "0x240"),
    )
}


def series(*names: str, values: str) -> dict[str, str]:
    """Return these values for all series of HEALTHY whose names have one of these prefixes."""
    return {one: values for one in HEALTHY if one.startswith(names)}


# Another release, in the same namespace and in another: it must neither trigger alerts for ours
# nor hide them.
NEIGHBOUR = dict.fromkeys(HEALTHY, "0+999x240") | {
    "aks_audit_build_info": "1x240",
    "aks_audit_hub_up": "1x240",
    "aks_audit_partitions_owned": "0x240",
    "aks_audit_sink_up": "0x240",
}


class Case(NamedTuple):
    """The series that differ from HEALTHY, and the alerts that fire at each of these minutes."""

    differs: Mapping[str, str]
    fires: Mapping[int, str]
    values: tuple[str, ...] = ()


NONE_DELIVERED = {
    name: "0+220x60 13200x180" for name in HEALTHY if name.endswith('outcome="delivered"}')
}
QUIET = NONE_DELIVERED | series("aks_audit_hub_messages_total", values="0+10x60 600x180")
# A second replica that owns no partition and cannot reach the hub.
DISCONNECTED = {
    'aks_audit_hub_up{pod="b",instance="b"}': "0x240",
    'aks_audit_hub_partitions{pod="b",instance="b"}': "0x240",
    'aks_audit_partitions_owned{pod="b",instance="b"}': "0x240",
}
DELIVERED_0 = 'aks_audit_events_total{partition="0",outcome="delivered"}'
DEAD_0 = 'aks_audit_events_total{partition="0",outcome="dead_lettered"}'
DROPPED_0 = 'aks_audit_events_total{partition="0",outcome="dropped"}'
LOST_0 = 'aks_audit_lost_messages_total{partition="0"}'
OLDEST_0 = 'aks_audit_oldest_undelivered_seconds{partition="0"}'
LAG_0 = 'aks_audit_lag_messages{partition="0"}'
DOWN_FOR_FOUR = " stale _x3 {}"
CASES = {
    "healthy": Case({}, {5: "", 60: "", 240: ""}),
    "always a little behind": Case(series("aks_audit_lag_messages", values="5x240"), {240: ""}),
    "the pod is deleted": Case(
        {name: f"{values.partition('x')[0]}x60 stale" for name, values in HEALTHY.items()},
        {64: "", 68: "Down"},
    ),
    "never installed": Case(dict.fromkeys(HEALTHY, "_x240"), {3: "", 8: "Down"}),
    "nothing is delivered": Case(
        NONE_DELIVERED
        | series("aks_audit_lag_messages", values="0x60 0+10x180")
        | {"aks_audit_sink_up": "1x60 0x180"},
        {62: "", 67: "SinkDown", 73: "SinkDown", 80: "NotDelivering SinkDown"},
    ),
    "one partition stalls": Case(
        {DELIVERED_0: "0+220x60 13200x180", LAG_0: "0x60 0+10x180"},
        {74: "", 80: "PartitionStalled"},
    ),
    "one partition stalls, and its pod restarts": Case(
        {DELIVERED_0: "0+220x60" + " 0x5 stale" * 26, LAG_0: "0x60" + " 10x5 stale" * 26},
        {74: ""} | dict.fromkeys(range(84, 91), "PartitionStalled"),
    ),
    "a partition is claimed with a backlog, and the webhook is slow": Case(
        {DELIVERED_0: "_x60 0x3 220+220x180", LAG_0: "_x60 9x5 0x180"}, {62: "", 63: "", 64: ""}
    ),
    "one partition stalls because the webhook is down": Case(
        {
            DELIVERED_0: "0+220x60 13200x180",
            LAG_0: "0x60 0+10x180",
            "aks_audit_sink_up": "1x60 0x180",
        },
        {80: "SinkDown"},
    ),
    "behind by a quarter of the retention": Case(
        {OLDEST_0: "0x60 21500x60 21700x120"}, {119: "", 128: "Behind"}
    ),
    "behind at the first start, which reads the whole hub": Case(
        {OLDEST_0: "_x60 86000x4 9x180"}, {62: "", 64: "", 70: ""}
    ),
    "behind, but the hub keeps more": Case(
        {OLDEST_0: "21700x240"}, {100: ""}, ("prometheusRule.retentionHours=168",)
    ),
    "behind, and the hub keeps less": Case(
        {OLDEST_0: "950x240"}, {100: "Behind"}, ("prometheusRule.retentionHours=1",)
    ),
    "messages are lost": Case({LOST_0: "0x60 500x180"}, {60: "", 62: "MessagesLost", 130: ""}),
    "messages were lost before the start": Case(
        {LOST_0: "_x60 500x180"}, {59: "", 62: "MessagesLost", 130: ""}
    ),
    "messages were lost before the start, whose time is unknown": Case(
        {LOST_0: "_x60 500x180", "process_start_time_seconds": "_x240"}, {62: "MessagesLost"}
    ),
    "an event becomes a dead letter": Case(
        {DEAD_0: "0x60 1x180"}, {60: "", 62: "DeadLetters", 130: ""}
    ),
    "an event became a dead letter before the start": Case(
        {DEAD_0: "_x60 1x180"}, {62: "DeadLetters", 130: ""}
    ),
    "Prometheus first scrapes a pod that lost messages long ago, and loses some now": Case(
        {name: f"_x60 {values}" for name, values in HEALTHY.items()}
        | {
            "process_start_time_seconds": "_x60 -7200x180",
            LOST_0: "_x60 500x60 600x120",
            DEAD_0: "_x60 500x180",
            DROPPED_0: "_x60 500x180",
        },
        {62: "", 65: "", 119: "", 125: "MessagesLost", 190: ""},
    ),
    "few dead letters where some are expected": Case(
        {DEAD_0: "0x60 5x180"}, {62: ""}, ("prometheusRule.deadLettersPerHour=10",)
    ),
    "many dead letters where some are expected": Case(
        {DEAD_0: "0x60 25x180"}, {62: "DeadLetters"}, ("prometheusRule.deadLettersPerHour=10",)
    ),
    "dead letters are deleted": Case(
        {DROPPED_0: "0x60 3x180"}, {60: "", 62: "DeadLettersDropped", 130: ""}
    ),
    "the disk is full": Case(
        {"aks_audit_dead_letters_waiting": "0x60 7x180"}, {65: "", 75: "DeadLettersWaiting"}
    ),
    "the webhook is down": Case({"aks_audit_sink_up": "1x60 0x180"}, {63: "", 68: "SinkDown"}),
    "the webhook is down briefly": Case({"aks_audit_sink_up": "1x60 0x3 1x180"}, {62: "", 68: ""}),
    "the hub is unreachable": Case(
        QUIET | {"aks_audit_hub_up": "1x60 0x180"}, {65: "", 75: "HubDown", 180: "HubDown"}
    ),
    "the hub is quiet": Case(QUIET, {120: "", 140: "HubQuiet"}),
    "one replica of two cannot reach the hub": Case(
        DISCONNECTED, {9: "", 12: "HubDown", 140: "HubDown"}
    ),
    "one replica of two cannot reach the hub, and the hub is quiet": Case(
        QUIET | DISCONNECTED, {140: "HubDown HubQuiet"}
    ),
    "one replica of two cannot reach the hub, and a partition has no owner": Case(
        DISCONNECTED | {"aks_audit_partitions_owned": "2x60 1x180"},
        {65: "HubDown", 75: "HubDown PartitionUnowned"},
    ),
    "the hub is quiet, but not for quietHours": Case(
        QUIET, {140: ""}, ("prometheusRule.quietHours=2",)
    ),
    "nothing is read because of a backlog": Case(
        QUIET | series("aks_audit_lag_messages", values="9x240"),
        {140: "NotDelivering PartitionStalled"},
    ),
    "a partition has no owner": Case(
        {"aks_audit_partitions_owned": "2x60 1x180"}, {65: "", 75: "PartitionUnowned"}
    ),
    "another reader takes partitions": Case(
        series("aks_audit_partition_losses_total", values="0x60 0+6x180"),
        {89: "", 93: "PartitionsTaken"},
    ),
    "a replica that was frozen loses its partitions once": Case(
        series("aks_audit_partition_losses_total", values="0x60 9x180"), {62: "", 75: "", 100: ""}
    ),
    "partitions move between replicas": Case(
        {"aks_audit_partitions_owned": "2x60 1x5 2x180"}, {64: "", 75: ""}
    ),
    "the store is down": Case(
        {
            **series("aks_audit_checkpoints_total", values="0x60 0+3x180"),
            'aks_audit_checkpoints_total{partition="0",result="ok"}': "500x240",
            'aks_audit_checkpoints_total{partition="1",result="ok"}': "500x240",
        },
        {60: "", 64: "", 75: "CheckpointsFailing"},
    ),
    "the store fails occasionally": Case(
        {'aks_audit_checkpoints_total{partition="0",result="error"}': "0+1x240"}, {75: ""}
    ),
    "one restart": Case({"process_start_time_seconds": "100x60 3700x180"}, {62: ""}),
    "another program restarts repeatedly": Case(
        {'process_start_time_seconds{pod="c",instance="c"}': "100+300x240"}, {62: ""}
    ),
    "a certificate expires in less than a week": Case(
        {'aks_audit_tls_certificate_expiry_seconds{file="/etc/tls.crt"}': "608400x240"},
        {59: "", 62: "CertificateExpiring"},
    ),
    "a certificate has expired": Case(
        {'aks_audit_tls_certificate_expiry_seconds{file="/etc/tls.crt"}': "0x240"},
        {1: "CertificateExpiring"},
    ),
    "restarts repeatedly": Case(
        {"process_start_time_seconds": "100x60 3700+300x180"}, {62: "", 64: "Restarting"}
    ),
    "restarts every five minutes and runs for one": Case(
        {
            "aks_audit_build_info": "1x60" + DOWN_FOR_FOUR.format(1) * 36,
            "process_start_time_seconds": "100x60"
            + "".join(DOWN_FOR_FOUR.format(3900 + 300 * count) for count in range(36)),
        },
        {64: ""} | dict.fromkeys(range(80, 86), "Restarting"),
    ),
    "a pod that restarted is replaced": Case(
        {
            "aks_audit_build_info": "1x64 stale",
            'aks_audit_build_info{pod="b",instance="b"}': "_x64 1x180",
            "process_start_time_seconds": "100x60 3700+300x4 stale",
        },
        {64: "Restarting", 76: ""},
    ),
}


def promtool_test(case: Case) -> dict[str, Any]:
    """Return a case as a unit test for promtool."""

    def scraped(namespace: str, release: str, name: str) -> str:
        bare, _, labels = name.partition("{")
        target = f'namespace="{namespace}",app_kubernetes_io_instance="{release}",'
        if not labels.startswith("pod="):
            target += f'pod="{release}-a",instance="{namespace}-{release}",'
        return f"{bare}{{{target}{labels or '}'}"

    ours = {**HEALTHY, **case.differs}
    found = {scraped("sysdig-agent", "aks-audit", name): text for name, text in ours.items()}
    for other in (("another", "aks-audit"), ("sysdig-agent", "west")):
        found |= {scraped(*other, name): text for name, text in NEIGHBOUR.items()}
    firing = 'group by (alertname) (ALERTS{alertstate="firing"})'
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in found.items()],
        "promql_expr_test": [
            {
                "expr": firing,
                "eval_time": f"{minute}m",
                "exp_samples": [
                    {"labels": f'{{alertname="AksAudit{alert}"}}', "value": 1}
                    for alert in alerts.split()
                ],
            }
            for minute, alerts in case.fires.items()
        ],
    }


@pytest.mark.parametrize("name", CASES)
def test_only_the_expected_alerts_fire(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    arguments = [text for value in case.values for text in ("--set", value)]
    tests = {
        "rule_files": [str(write(tmp_path / "rules.yaml", rules(*arguments)))],
        "evaluation_interval": "1m",
        "tests": [promtool_test(case)],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(tests))
    found = subprocess.run(
        [tool("promtool"), "test", "rules", tmp_path / "test.yaml"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_every_alert_fires_in_a_case() -> None:
    fired = {
        f"AksAudit{one}"
        for case in CASES.values()
        for text in case.fires.values()
        for one in text.split()
    }
    assert fired == {rule["alert"] for rule in rules()}


def test_the_azure_rule_group_has_the_same_alerts() -> None:
    """Microsoft.AlertsManagement/prometheusRuleGroups allows at most 20 rules."""
    values = chart.CHART / "ci" / "azure-managed-prometheus-values.yaml"
    text = chart.helm("template", "aks-audit", chart.CHART, "--namespace", "a", "--values", values)
    (data,) = (
        item["data"]
        for item in yaml.safe_load_all(text)
        if item and item["metadata"]["name"] == "aks-audit-rule-group"
    )
    template = json.loads(data["template.json"])
    optional = {name for name, one in template["parameters"].items() if "defaultValue" in one}
    assert optional == {"actionGroupId", "location"}
    assert template["parameters"].keys() - optional == {"workspaceId", "clusterName"}
    (group,) = template["resources"]
    assert group["location"] == "[parameters('location')]"
    # Clusters may share a resource group, and a deployment replaces a rule group of the same name.
    assert group["name"] == "[concat('a-aks-audit-', parameters('clusterName'))]"
    assert "parameters('actionGroupId')" in template["variables"]["actions"]
    found = group["properties"]["rules"]
    assert len(found) <= 20
    assert [one["alert"] for one in found] == [one["alert"] for one in rules()]
    for one in found:
        assert one["expression"]
        assert re.fullmatch(r"PT\d+[MH]", one["for"])
        assert one["actions"] == "[variables('actions')]"
        assert one["severity"] == {"critical": 1, "warning": 2}[one["labels"]["severity"]]


def test_every_alert_links_to_its_runbook() -> None:
    text = page("operations.md")
    headings = {heading.lower() for heading in re.findall(r"^#+ (\w+)$", text, re.MULTILINE)}
    for rule in rules():
        address, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert address == f"{chart.HOME}/blob/main/chart/docs/operations.md"
        assert anchor == rule["alert"].lower()
        assert anchor in headings
        assert rule["labels"] == {
            "namespace": "sysdig-agent",
            "release": "aks-audit",
            "severity": rule["labels"]["severity"],
        }
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
        assert rule["labels"]["severity"] in {"critical", "warning"}


# Without a sample until a certificate is configured or a partition is lost.
OPTIONAL = {"aks_audit_tls_certificate_expiry_seconds", "aks_audit_partition_losses_total"}


def unknown(expression: str, exported: Samples) -> Iterator[str]:
    """Yield the metric names, labels and values in an expression that no sample has."""
    everywhere = {*SCRAPED, "file"}
    for name, matchers in re.findall(r"\b((?:aks_audit|process)_\w+)(?:{([^}]*)})?", expression):
        if name in OPTIONAL:
            continue
        samples = [dict(labels) for (have, labels) in exported if have == name]
        if not samples:
            yield name
        labels = {label for one in samples for label in one}
        for label, operator, value in re.findall(r'(\w+)(=~?|!=)"([^"]*)"', matchers):
            if label in SCRAPED:
                continue
            values = {one.get(label) for one in samples}
            if label not in labels or (operator == "=" and value not in values):
                yield f"{name}{{{label}{operator}{value}}}"
        everywhere |= labels
    for grouped in re.findall(r"\bby \(([^)]*)\)", expression):
        yield from (f"by ({one})" for one in grouped.split(", ") if one not in everywhere)


async def trigger_outcomes(env: Environment) -> None:
    """Trigger every outcome that is counted with its own label."""
    env.webhook.responses.append(503)
    env.hub.publish(0, b"no JSON")


async def test_rules_cases_and_dashboard_use_only_exported_metrics(tmp_path: Path) -> None:
    policy = unchanging_policy(tmp_path)
    async with (
        environment(tmp_path, partitions=2) as env,
        env.forwarder(AuditPolicyFile=policy) as forwarder,
    ):
        await trigger_outcomes(env)
        async with env.traffic(100):
            await forwarder.wait_for("partition claimed")
            await asyncio.sleep(0)
            await forwarder.until(lambda: env.webhook.total > 100)
        exported = await forwarder.metrics()
    expressions = (
        [rule["expr"] for rule in rules()] + [text for _, text in queries()] + list(HEALTHY)
    )
    assert {one for text in expressions for one in unknown(text, exported)} == set()
    assert set(unknown('sum by (no) (aks_audit_nothing{a="b"})', exported)) > {"aks_audit_nothing"}
    assert set(unknown('aks_audit_events_total{outcome="eaten"}', exported))


async def test_every_panel_has_data_and_every_rule_works_in_a_real_prometheus(
    tmp_path: Path,
) -> None:
    written = write(tmp_path / "rules.yaml", rules())
    policy = unchanging_policy(tmp_path)
    async with (
        environment(tmp_path, partitions=2) as env,
        env.forwarder(AuditPolicyFile=policy) as forwarder,
    ):
        await forwarder.wait_until_listening()
        target = f"127.0.0.1:{forwarder.port}"
        labels = {"namespace": "sysdig-agent", "app_kubernetes_io_instance": "aks-audit"}
        async with prometheus(tmp_path, target, written, **labels) as server:
            async with env.traffic(200):
                panel_queries = [
                    one for one in queries() if not any(name in one[1] for name in OPTIONAL)
                ]
                missing = dict(panel_queries)
                for _ in range(100):
                    await trigger_outcomes(env)
                    missing = {
                        title: text for title, text in panel_queries if not await server.query(text)
                    }
                    if not missing:
                        break
                    await asyncio.sleep(0.5)
                assert missing == {}
            (group,) = (await server.get("rules"))["groups"]
            assert {rule["name"]: rule["health"] for rule in group["rules"]} == {
                rule["alert"]: "ok" for rule in rules()
            }
            for _ in range(100):
                if await server.query('ALERTS{alertname="AksAuditDeadLetters"}'):
                    break
                await asyncio.sleep(0.1)
            assert await server.query('ALERTS{alertstate="firing"}') == [1]


def test_dashboard_panels_do_not_overlap() -> None:
    found = dashboard()
    panels = found["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = [
        (x, y)
        for panel in panels
        for position in [panel["gridPos"]]
        for x in range(position["x"], position["x"] + position["w"])
        for y in range(position["y"], position["y"] + position["h"])
    ]
    assert len(set(taken)) == len(taken)
    assert max(x for x, _ in taken) == 23
    titles = [panel["title"] for panel in panels if panel["type"] == "row"]
    assert titles == [
        "Delivery",
        "Backlog",
        "Lost messages and dead letters",
        "Webhook, hub and checkpoints",
        "Resources",
    ]


def test_grafana_knows_every_field_of_the_dashboard() -> None:
    def problems(board: dict[str, Any]) -> str:
        found = subprocess.run(
            [tool("dashboard")],
            input=json.dumps(board),
            check=False,
            capture_output=True,
            text=True,
        )
        return found.stderr

    found = dashboard()
    assert problems(found) == ""
    found["panels"][1]["targets"][0]["legend"] = "a"
    assert "unexpected field 'legend'" in problems(found)


def test_dashboards_of_two_releases_differ_in_uid_file_and_selected_release() -> None:
    names, uids = set(), set()
    for release, namespace in (("east", "a"), ("west", "a"), ("east", "b"), ("e" * 53, "b")):
        arguments = ("--values", chart.DEFAULT, "--set", "dashboard.enabled=true")
        text = chart.helm("template", release, chart.CHART, "--namespace", namespace, *arguments)
        (data,) = (
            item["data"]
            for item in yaml.safe_load_all(text)
            if item and item["metadata"]["name"].endswith("-dashboard")
        )
        ((name, found),) = data.items()
        board = json.loads(found)
        names.add(name)
        uids.add(board["uid"])
        assert len(board["uid"]) <= 40
        chosen = {one["name"]: one["current"] for one in board["templating"]["list"][1:]}
        assert chosen["release"]["value"] == [release]
        assert chosen["namespace"]["value"] == [namespace]
        assert list(chosen) == ["cluster", "namespace", "release"]
    assert len(names) == len(uids) == 4
