"""The life cycle of a release: install, upgrade, pod failures, an outage of the sink."""

import json
import os
import time
from collections.abc import Callable
from datetime import datetime

import pytest

from e2e.cluster import CommandError, run, until
from e2e.commands import block, notes, run_in_shell
from e2e.conftest import Lap, Note
from e2e.feed import Feed
from e2e.world import TOOLS, World, containers
from forwarder import __version__
from support.events import messages, real_events

NAMESPACE = "sysdig-agent"
IN_FLIGHT = 4 * 4 * 100  # maximum events in flight: partitions, POSTs each, events per POST
OUTAGE = float(os.environ.get("E2E_OUTAGE", "120"))  # seconds

pytestmark = pytest.mark.e2e


def name(world: World) -> str:
    """Return the name of the only pod."""
    return str(world.pod()["metadata"]["name"])


def new_events() -> list[bytes]:
    """Return a new event of each kind."""
    return [event for message in messages(len(real_events())) for event in message.events]


def upgrade(*values: str) -> None:
    """Change values of the release."""
    arguments = [word for value in values for word in ("--set", value)]
    run_in_shell(
        f"helm upgrade aks-audit ./chart -n {NAMESPACE} --reuse-values " + " ".join(arguments)
    )


def test_one_command_installs_it_under_restricted_pod_security(
    world: World, note: Note, lap: Lap
) -> None:
    world.publish(real_events())
    run_in_shell(block("install"), CONNECTION_STRING=world.hub)
    world.rolled()
    note("install: command to ready pod", lap())
    world.wait_until_settled()
    pod = name(world)
    began = world.metric(pod, "process_start_time_seconds")
    first = json.loads(world.kubectl("logs", pod).splitlines()[0])["timestamp"]
    (ready,) = (one for one in world.pod()["status"]["conditions"] if one["type"] == "Ready")
    since = datetime.fromisoformat(ready["lastTransitionTime"]).timestamp()
    note("start to ready, as reported by Kubernetes", f"{since - began:.0f} s")
    note("start to first log line", f"{datetime.fromisoformat(first).timestamp() - began:.2f} s")
    note("start to first event at the sink", f"{world.stats()['first'] - began:.2f} s")


def test_the_commands_of_the_notes_work_as_printed(world: World) -> None:
    pod = name(world)
    until("checkpoints", lambda: world.metric(pod, "aks_audit_lag_messages") == 0)
    outputs = {command: run_in_shell(command) for command in notes("aks-audit", world.namespace)}
    assert len(outputs) == 4
    assert str(world.wait_until_settled()) in {text.strip() for text in outputs.values()}
    assert any("0 behind the checkpoints" in text for text in outputs.values())
    assert any("Phase:          Succeeded" in text for text in outputs.values())


def test_the_quick_start_shows_the_log_and_changes_its_level(world: World) -> None:
    lines = [line for line in run_in_shell(block("see")).splitlines() if line.startswith("{")]
    messages_logged = {json.loads(line)["message"] for line in lines}
    assert "hub message" in messages_logged
    assert not messages_logged & {"audit event", "post", "response"}
    run_in_shell(block("level"))
    world.rolled()
    world.publish(new_events())
    world.wait_until_settled()
    assert '"audit event"' in world.kubectl("logs", name(world))


def test_the_image_has_the_version_of_the_chart_and_no_pip(world: World) -> None:
    inside = ("exec", "deployment/aks-audit", "--", "python", "-m")
    assert world.kubectl(*inside, "forwarder", "--version").strip() == __version__
    with pytest.raises(CommandError, match="No module named pip"):
        world.kubectl(*inside, "pip")


@pytest.mark.usefixtures("world")
def test_the_commands_of_the_runbook_report_no_failure() -> None:
    assert "FAIL" not in run_in_shell(block("check"))
    run_in_shell(block("dead letters"))


def test_a_real_exec_is_delivered_to_the_sink(world: World, note: Note) -> None:
    with Feed(world) as feed:
        world.kubectl("exec", "deployment/sysdig-agent", "--", "echo", "a-stranger-was-here")
        time.sleep(2)
    note("events of the cluster's own audit log" if feed.path else "events", len(feed.published))
    if feed.path:
        assert [event for event in feed.published if b"command=a-stranger-was-here" in event]
    world.wait_until_settled()


def test_an_upgrade_and_a_rollback_replace_the_pod(world: World, note: Note, lap: Lap) -> None:
    before = name(world), world.wait_until_settled(), world.duplicates()
    with Feed(world, 100) as feed:
        lap()
        upgrade("verboseLevel=4")
        world.rolled()
        note("rollout: helm upgrade to ready pod", lap())
        posts = world.kubectl("logs", name(world))
        until("a log entry per POST", lambda: '"post"' in world.kubectl("logs", name(world)))
        assert "SharedAccessKey=" not in posts
        lap()
        run("helm", "rollback", "aks-audit", "1", "--namespace", NAMESPACE)
        world.rolled()
        note("rollout: helm rollback to ready pod", lap())
    assert world.wait_until_settled() >= before[1] + len(feed.published)
    duplicates = world.duplicates() - before[2]
    note("duplicates after two rollouts under load", duplicates)
    assert duplicates <= IN_FLIGHT
    assert name(world) != before[0]


def test_helm_test_passes_and_reports_a_wrong_key(world: World) -> None:
    (check,) = (one for one in notes("aks-audit", NAMESPACE) if one.startswith("helm test"))
    run_in_shell(check)
    key = world.hub.partition("SharedAccessKey=")[2].partition(";")[0]
    broken = world.hub.replace(key, "d3Jvbmc=")
    upgrade(f"eventHub.connectionString='{broken}'")
    with pytest.raises(CommandError, match="refuses the key of policy"):
        run_in_shell(check)
    assert not world.ready()
    run("helm", "rollback", "aks-audit", "--namespace", NAMESPACE)
    world.rolled()
    run_in_shell(check)


def delete(world: World) -> None:
    world.kubectl("delete", "pod", name(world), "--wait=false")


def kill(world: World) -> None:
    pod = world.pod()
    override = {
        "spec": {
            "nodeName": pod["spec"]["nodeName"],
            "hostPID": True,
            "securityContext": {"runAsUser": 0, "runAsGroup": 0},
        }
    }
    run(
        "kubectl", "run", "kill-forwarder", "--namespace=default", f"--image={TOOLS}",
        "--restart=Never", "--attach", "--rm", f"--overrides={json.dumps(override)}",
        "--command", "--", "python", "-m", "e2e.kill", pod["metadata"]["uid"],
    )  # fmt: skip
    until("a restart", lambda: containers(world.pod())[0]["restartCount"] == 1)


def drain(world: World) -> None:
    pod = world.pod()
    node = pod["spec"]["nodeName"]
    world.kubectl("label", "pod", pod["metadata"]["name"], "drain=me")
    try:
        run("kubectl", "drain", node, "--pod-selector=drain=me", "--timeout=120s")
    finally:
        run("kubectl", "uncordon", node)


def kill_for_memory(world: World) -> None:
    low_limits = "resources.limits.memory=24Mi", "resources.requests.memory=24Mi"
    upgrade(*low_limits)
    until("a kill for memory", lambda: "OOMKilled" in json.dumps(world.pods()), 120)
    run("helm", "rollback", "aks-audit", "--namespace", NAMESPACE)
    world.rolled()


ENDS: dict[str, Callable[[World], None]] = {
    "deleted": delete,
    "killed with -9": kill,
    "evicted by a drain": drain,
    "killed for its memory": kill_for_memory,
}


@pytest.mark.parametrize("end", ENDS)
def test_nothing_is_lost_when_the_pod_ends(world: World, note: Note, lap: Lap, end: str) -> None:
    pod = world.pod()
    before = world.wait_until_settled(), world.duplicates()
    with Feed(world, 100) as feed:
        time.sleep(3)
        lap()
        ENDS[end](world)
        until("another pod or a restart", lambda: world.pods() and world.pods()[0] != pod)
        until("a ready pod", world.ready, 180)
        note(f"{end}: to a ready pod again", lap())
    assert world.wait_until_settled(120) >= before[0] + len(feed.published)
    note(f"{end}: duplicates", world.duplicates() - before[1])


def test_an_unavailable_sink_only_makes_the_pod_unready(world: World, note: Note, lap: Lap) -> None:
    world.wait_until_settled()
    world.keep_counts()
    pod = world.pod()
    world.kubectl("scale", "deployment", "sysdig-agent", "--replicas=0")
    until("no sink", lambda: not world.get("pods", "--selector=app=sysdig-agent"))
    lap()
    with Feed(world, 40) as feed:
        until("an unready pod", lambda: not world.ready())
        note("sink unavailable: to unready", lap())
        time.sleep(OUTAGE)
        assert not world.ready()
        world.kubectl("scale", "deployment", "sysdig-agent", "--replicas=1")
        lap()
        until("a ready pod", world.ready, 120)
        note("sink back: to ready", lap())
    world.wait_until_settled(120)
    note("sink back: all delivered, events", f"{lap()}, {len(feed.published)}")
    after = world.pod()
    assert after["metadata"]["uid"] == pod["metadata"]["uid"]
    assert containers(after)[0]["restartCount"] == containers(pod)[0]["restartCount"]
