"""The life of one release, from the card's one command to an agent that is away for two minutes."""

import json
import os
import time
from collections.abc import Callable
from datetime import datetime

import pytest

from e2e.cluster import CommandError, run, until
from e2e.commands import block, notes, type_in
from e2e.conftest import Lap, Note
from e2e.feed import Feed
from e2e.world import TOOLS, World, containers
from forwarder import __version__
from support.events import messages, real_events

NAMESPACE = "sysdig-agent"
IN_FLIGHT = 4 * 4 * 100  # events under way at most: partitions, posts each, events a post
OUTAGE = float(os.environ.get("E2E_OUTAGE", "120"))  # seconds

pytestmark = pytest.mark.e2e


def name(world: World) -> str:
    """Return the name of the only pod."""
    return str(world.pod()["metadata"]["name"])


def events_of_now() -> list[bytes]:
    """Return an event of each kind, none of which was there before."""
    return [event for made in messages(len(real_events())) for event in made.events]


def upgrade(*values: str) -> None:
    """Change values of the release."""
    arguments = [word for value in values for word in ("--set", value)]
    type_in(f"helm upgrade aks-audit ./chart -n {NAMESPACE} --reuse-values " + " ".join(arguments))


def test_one_command_installs_it_where_restricted_is_enforced(
    world: World, note: Note, lap: Lap
) -> None:
    world.publish(real_events())
    type_in(block("install"), CONNECTION_STRING=world.hub)
    world.rolled()
    note("install: command to ready pod", lap())
    world.settled()
    pod = name(world)
    began = world.metric(pod, "process_start_time_seconds")
    first = json.loads(world.kubectl("logs", pod).splitlines()[0])["timestamp"]
    (ready,) = (one for one in world.pod()["status"]["conditions"] if one["type"] == "Ready")
    since = datetime.fromisoformat(ready["lastTransitionTime"]).timestamp()
    note("start to ready, as Kubernetes tells it", f"{since - began:.0f} s")
    note("start to first log line", f"{datetime.fromisoformat(first).timestamp() - began:.2f} s")
    note("start to first event at the sink", f"{world.stats()['first'] - began:.2f} s")


def test_the_notes_are_typed_as_they_are_printed(world: World) -> None:
    pod = name(world)
    until("checkpoints", lambda: world.metric(pod, "aks_audit_lag_messages") == 0)
    said = {command: type_in(command) for command in notes("aks-audit", world.namespace)}
    assert len(said) == 4
    assert str(world.settled()) in {text.strip() for text in said.values()}
    assert any("0 behind the checkpoints" in text for text in said.values())
    assert any("Phase:          Succeeded" in text for text in said.values())


def test_the_quick_start_shows_the_log_and_changes_its_level(world: World) -> None:
    lines = [line for line in type_in(block("see")).splitlines() if line.startswith("{")]
    said = {json.loads(line)["message"] for line in lines}
    assert "hub message" in said
    assert not said & {"audit event", "post", "response"}
    type_in(block("level"))
    world.rolled()
    world.publish(events_of_now())
    world.settled()
    assert '"audit event"' in world.kubectl("logs", name(world))


def test_the_image_is_of_the_charts_version_and_has_no_pip(world: World) -> None:
    inside = ("exec", "deployment/aks-audit", "--", "python", "-m")
    assert world.kubectl(*inside, "forwarder", "--version").strip() == __version__
    with pytest.raises(CommandError, match="No module named pip"):
        world.kubectl(*inside, "pip")


@pytest.mark.usefixtures("world")
def test_the_commands_of_the_runbook_find_nothing_wrong() -> None:
    assert "FAIL" not in type_in(block("check"))
    type_in(block("dead letters"))


def test_a_real_exec_shows_up_at_the_sink(world: World, note: Note) -> None:
    with Feed(world) as feed:
        world.kubectl("exec", "deployment/sysdig-agent", "--", "echo", "a-stranger-was-here")
        time.sleep(2)
    note("events of the cluster itself" if feed.path else "events", len(feed.published))
    if feed.path:
        assert [event for event in feed.published if b"command=a-stranger-was-here" in event]
    world.settled()


def test_an_upgrade_rolls_the_pod_and_a_rollback_too(world: World, note: Note, lap: Lap) -> None:
    before = name(world), world.settled(), world.doubled()
    with Feed(world, 100) as feed:
        lap()
        upgrade("verboseLevel=4")
        world.rolled()
        note("rollout: helm upgrade to ready pod", lap())
        posts = world.kubectl("logs", name(world))
        until("a line a post", lambda: '"post"' in world.kubectl("logs", name(world)))
        assert "SharedAccessKey=" not in posts
        lap()
        run("helm", "rollback", "aks-audit", "1", "--namespace", NAMESPACE)
        world.rolled()
        note("rollout: helm rollback to ready pod", lap())
    assert world.settled() >= before[1] + len(feed.published)
    doubled = world.doubled() - before[2]
    note("doubled by two rollouts under load", doubled)
    assert doubled <= IN_FLIGHT
    assert name(world) != before[0]


def test_helm_test_passes_and_with_a_broken_key_names_the_cause(world: World) -> None:
    (check,) = (one for one in notes("aks-audit", NAMESPACE) if one.startswith("helm test"))
    type_in(check)
    key = world.hub.partition("SharedAccessKey=")[2].partition(";")[0]
    broken = world.hub.replace(key, "d3Jvbmc=")
    upgrade(f"eventHub.connectionString='{broken}'")
    with pytest.raises(CommandError, match="refuses the key of policy"):
        type_in(check)
    assert not world.ready()
    run("helm", "rollback", "aks-audit", "--namespace", NAMESPACE)
    world.rolled()
    type_in(check)


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
    few = "resources.limits.memory=24Mi", "resources.requests.memory=24Mi"
    upgrade(*few)
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
def test_whatever_ends_the_pod_nothing_is_lost(
    world: World, note: Note, lap: Lap, end: str
) -> None:
    pod = world.pod()
    before = world.settled(), world.doubled()
    with Feed(world, 100) as feed:
        time.sleep(3)
        lap()
        ENDS[end](world)
        until("another pod or a restart", lambda: world.pods() and world.pods()[0] != pod)
        until("a ready pod", world.ready, 180)
        note(f"{end}: to a ready pod again", lap())
    assert world.settled(120) >= before[0] + len(feed.published)
    note(f"{end}: doubled", world.doubled() - before[1])


def test_a_sink_that_is_away_makes_it_unready_and_nothing_else(
    world: World, note: Note, lap: Lap
) -> None:
    world.settled()
    world.forget_sink()
    pod = world.pod()
    world.kubectl("scale", "deployment", "sysdig-agent", "--replicas=0")
    until("the sink's end", lambda: not world.get("pods", "--selector=app=sysdig-agent"))
    lap()
    with Feed(world, 40) as feed:
        until("an unready pod", lambda: not world.ready())
        note("sink away: to unready", lap())
        time.sleep(OUTAGE)
        assert not world.ready()
        world.kubectl("scale", "deployment", "sysdig-agent", "--replicas=1")
        lap()
        until("a ready pod", world.ready, 120)
        note("sink back: to ready", lap())
    world.settled(120)
    note("sink back: all arrived, events", f"{lap()}, {len(feed.published)}")
    same = world.pod()
    assert same["metadata"]["uid"] == pod["metadata"]["uid"]
    assert containers(same)[0]["restartCount"] == containers(pod)[0]["restartCount"]
