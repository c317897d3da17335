"""While the sink is unreachable, nothing is lost or checkpointed, and retries back off."""

import asyncio
import subprocess
from pathlib import Path

import pytest

from support import stores
from support.environment import environment
from support.ledger import check_sums
from support.process import Forwarder

# Separate name resolution for a child process: its own /etc/hosts and no DNS server.
_NAMESPACE = ("unshare", "--map-root-user", "--mount", "sh", "-ec")
_OWN_NAMES = """
mount --bind "$1/hosts" /etc/hosts
mount --bind "$1/resolv.conf" /etc/resolv.conf
shift
exec "$@"
"""


async def test_delivery_pauses_while_the_sink_is_down_and_resumes(tmp_path: Path) -> None:
    """While connections are refused: unready but live, with back-off. Afterwards all arrive."""
    async with environment(tmp_path) as env, env.forwarder() as forwarder:
        ledger = env.ledger
        ledger.publish(100, reject_every=10)
        await ledger.wait_until_settled()
        async with env.traffic():
            await asyncio.sleep(1)
            await env.webhook.stop()
            await forwarder.wait_for("sink down")
            await asyncio.sleep(4)
            assert (await forwarder.get("/livez"))[0] == 200
            assert (await forwarder.get("/readyz"))[0] == 503
            before = stores.embedded(tmp_path)
            ledger.check_checkpoints(before)
            samples = await forwarder.metrics()
            # 16 concurrent requests: a few retries each with back-off, thousands without it.
            assert samples.total("aks_audit_posts_total", status="error") < 16 * 8
            await asyncio.sleep(0.5)
            assert stores.embedded(tmp_path) == before
            await env.webhook.start()
            await forwarder.wait_for("sink up")
        await ledger.wait_until_settled(60)
        assert (await forwarder.get("/readyz"))[0] == 200
        check_sums(await forwarder.metrics())
        assert len(forwarder.entries("sink down")) == 1
        forwarder.terminate()
        assert await forwarder.wait() == 0
        ledger.verify()
        ledger.check_checkpoints(stores.embedded(tmp_path))


@pytest.mark.skipif(
    subprocess.run([*_NAMESPACE, "mount --bind /etc /etc"], check=False).returncode != 0,
    reason="mount namespaces are not permitted here: run as root",
)
async def test_a_name_that_does_not_resolve_is_retried_until_it_does(tmp_path: Path) -> None:
    hosts, state = tmp_path / "hosts", tmp_path / "state"
    hosts.touch()
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    wrapper = (*_NAMESPACE, _OWN_NAMES, "sh", str(tmp_path))
    async with environment(state) as env:
        url = f"http://sink.test:{env.webhook.port}/k8s_audit"
        settings = env.settings(WebSinkURL=url)
        async with Forwarder(settings, wrapper=wrapper) as forwarder:
            env.ledger.publish(100, reject_every=10)
            down = await forwarder.wait_for("sink down")
            assert "sink.test" in down["reason"], down
            assert (await forwarder.get("/livez"))[0] == 200
            hosts.write_text("127.0.0.1 sink.test\n")
            await forwarder.wait_for("sink up")
            await env.ledger.wait_until_settled()
            forwarder.terminate()
            assert await forwarder.wait() == 0
        env.ledger.verify()
