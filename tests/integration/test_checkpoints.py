"""The shared checkpoint store: written by other programs, missing, unavailable or hanging."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from azure.storage.blob import ContainerSasPermissions, generate_container_sas

from support import stores
from support.azurite import Azurite, azurite
from support.environment import Environment, environment
from support.faulty_store import faulty_store
from support.harness import HUB, free_port
from support.ledger import check_sums

# Checkpoints as versions of Azure.Messaging.EventHubs.Processor write them, from the name of the
# version to the metadata; @offset and @number stand for the last message that was processed.
# https://github.com/Azure/azure-sdk-for-net: BlobCheckpointStoreInternal.cs
DOTNET: Mapping[str, dict[str, str]] = {
    "5.0": {"offset": "@offset", "sequencenumber": "@number"},
    "5.11.0": {"offset": "", "sequencenumber": "@number", "clientidentifier": "forwarder-0"},
    "5.11.3": {
        "offset": "no offset",
        "sequencenumber": "@number",
        "clientidentifier": "forwarder-0",
    },
    "5.12": {"offset": "@offset", "sequencenumber": "@number", "clientidentifier": "forwarder-0"},
    "5.12, by offset": {"offset": "@offset", "sequencenumber": "", "clientidentifier": ""},
}


async def test_resumes_from_checkpoints_of_the_dotnet_sdk(tmp_path: Path) -> None:
    """Each partition resumes after its checkpoint; one without starts at StartPosition."""
    async with azurite() as store, environment(tmp_path, partitions=len(DOTNET) + 1) as env:
        env.ledger.publish(600)
        processed = {str(partition): partition + 1 for partition in range(len(DOTNET))}
        for partition, metadata in zip(processed, DOTNET.values(), strict=True):
            await write_blobs(env, store, metadata, partition, processed[partition])
        expected = {
            name
            for name, entry in env.ledger.published.items()
            if entry.sequence_number > processed.get(entry.partition, -1)
        }
        async with env.replica("new", store) as forwarder:
            await env.webhook.until(lambda: env.webhook.accepted.keys() >= expected)
            await until_stored(env, store)
            samples = await forwarder.metrics()
        check_sums(samples)
        assert samples.total("aks_audit_lost_messages_total") == 0
        assert env.webhook.accepted == Counter(expected)


async def test_a_checkpoint_at_sequence_number_0_is_valid(tmp_path: Path) -> None:
    """Sequence number 0 without an offset is a position, not a missing checkpoint."""
    async with azurite() as store, environment(tmp_path, partitions=1) as env:
        env.ledger.publish(100)
        await write_blobs(env, store, DOTNET["5.11.3"], "0", 0)
        async with env.replica("new", store, StartPosition="latest"):
            await env.webhook.until(lambda: len(env.webhook.accepted) >= 90)


async def write_blobs(
    env: Environment, store: Azurite, metadata: Mapping[str, str], partition: str, number: int
) -> None:
    """Write the blobs of a forwarder that stopped after it had processed this message."""
    namespace = urlsplit(env.server.connection_string().split("=", 1)[1].split(";")[0]).netloc
    base = f"{namespace}/{HUB}/$default"
    message = env.hub.partitions[int(partition)].messages[number]
    values = {"@offset": str(message.offset), "@number": str(number)}
    written = {key: values.get(value, value) for key, value in metadata.items()}
    async with stores.container(store) as container:
        if not await container.exists():
            await container.create_container()
        await container.upload_blob(f"{base}/checkpoint/{partition}", b"", metadata=written)
        await container.upload_blob(f"{base}/ownership/{partition}", b"", metadata={"ownerid": ""})


@pytest.mark.parametrize(
    ("offset", "number"),
    [("-1", 5000), ("99999999", 5000), ("-1", 1)],
    ids=["from the beginning", "beyond the end", "already passed"],
)
async def test_a_checkpoint_of_another_hub_is_replaced_by_start_position(
    tmp_path: Path, offset: str, number: int
) -> None:
    """Its sequence number is not that of its offset. An error is logged, and no message is lost."""
    async with azurite() as store, environment(tmp_path) as env:
        env.ledger.publish(100)
        await write_blobs(env, store, {"offset": offset, "sequencenumber": str(number)}, "1", 0)
        async with env.replica("new", store, StallTimeout="3") as forwarder:
            await env.ledger.wait_until_settled()
            await until_stored(env, store)
            samples = await forwarder.metrics()
            (entry,) = forwarder.entries("checkpoint is of another hub")
        assert (entry["level"], entry["partition"], entry["checkpoint"]) == ("error", "1", number)
        assert samples.total("aks_audit_lost_messages_total") == 0
        env.ledger.verify()


async def test_messages_that_reuse_sequence_numbers_after_a_failover_are_delivered(
    tmp_path: Path,
) -> None:
    """A forced failover loses the newest messages, and the next ones get their numbers."""
    async with environment(tmp_path, partitions=1) as env:
        env.ledger.publish(100)
        async with env.forwarder(StallTimeout="3") as forwarder:
            await env.webhook.until(lambda: len(env.webhook.accepted) == 100)
            partition = env.hub.partitions[0]
            del partition.messages[5:]
            partition.last = 4
            env.ledger.publish(20)
            await env.webhook.until(lambda: len(env.webhook.accepted) == 120)
            (logged,) = forwarder.entries("checkpoint is of another hub")
        assert logged["checkpoint"] == 9


async def test_a_checkpoint_older_than_the_hub_is_stale(tmp_path: Path) -> None:
    """Any program may have written it, and this hub may have reached its sequence number."""
    async with azurite() as store, environment(tmp_path) as env:
        env.ledger.publish(200)
        await write_blobs(env, store, {"offset": "", "sequencenumber": "3"}, "1", 0)
        env.hub.created = datetime.now(UTC) + timedelta(seconds=5)
        async with env.replica("new", store) as forwarder:
            await env.ledger.wait_until_settled()
            assert len(forwarder.entries("hub was recreated")) == 1
        env.ledger.verify()


async def test_creates_a_missing_container(tmp_path: Path) -> None:
    async with azurite() as store, environment(tmp_path) as env:
        env.ledger.publish(40)
        async with env.replica("one", store):
            await until_stored(env, store)


async def test_a_sas_that_cannot_create_the_container_works_if_it_exists(tmp_path: Path) -> None:
    """If the container is missing, the log names the missing permission."""
    async with azurite() as store, environment(tmp_path) as env:
        env.ledger.publish(40)
        sas = generate_container_sas(
            "devstoreaccount1",
            stores.CONTAINER,
            account_key=store.connection_string.split("AccountKey=")[1].split(";")[0],
            permission=ContainerSasPermissions(read=True, write=True, list=True),
            expiry=datetime.now(UTC) + timedelta(hours=1),
        )
        text = f"BlobEndpoint={store.account_url};SharedAccessSignature={sas}"
        async with env.replica("one", store, BlobStorageConnectionString=text) as forwarder:
            logged = await forwarder.wait_for("checkpoints cannot be read")
            assert "this login may not create it" in logged["reason"]
            async with stores.container(store) as container:
                await container.create_container()
            await until_stored(env, store)


async def test_waits_for_a_store_that_is_unavailable_at_startup(tmp_path: Path) -> None:
    """The forwarder stays live, reads nothing without checkpoints, and recovers by itself."""
    port = free_port()
    async with environment(tmp_path) as env:
        env.ledger.publish(40)
        async with env.replica("one", Azurite(port, 0)) as forwarder:
            await forwarder.wait_for("checkpoints cannot be read")
            assert (await forwarder.get("/livez"))[0] == 200
            assert not env.webhook.accepted
            async with azurite(port) as store:
                await until_stored(env, store)
        env.ledger.verify()


async def test_resumes_from_a_checkpoint_that_could_not_be_read_at_first(
    tmp_path: Path,
) -> None:
    """A claimed partition is not read before its checkpoint is known."""
    async with faulty_store() as account, environment(tmp_path) as env:
        env.ledger.publish(40)
        async with env.replica("one", account.front) as forwarder:
            await until_stored(env, account.back)
            forwarder.terminate()
            assert await forwarder.wait() == 0
        account.refused_listings = 2
        env.ledger.publish(40)
        async with env.replica("one", account.front) as forwarder:
            await forwarder.wait_for("checkpoints cannot be read")
            await until_stored(env, account.back)
            assert not account.refused_listings
        env.ledger.verify()


async def test_delivers_while_the_store_hangs_and_catches_up(tmp_path: Path) -> None:
    """A store that stops responding delays checkpoints, but not events."""
    async with azurite() as store, environment(tmp_path) as env:
        env.ledger.publish(200)
        async with env.replica("one", store, OwnershipExpiry="60") as forwarder:
            await until_stored(env, store)
            store.pause()
            for _ in range(3):
                env.ledger.publish(200)
                await env.ledger.wait_until_settled(5)
                await asyncio.sleep(1)
            store.resume()
            await until_stored(env, store)
            check_sums(await forwarder.metrics())
        env.ledger.verify()
        assert env.webhook.duplicates == 0


async def until_stored(env: Environment, store: Azurite) -> None:
    """Wait until the checkpoints are at the last message of each partition."""
    for _ in range(300):
        stored = await stores.shared(store)
        if all(stored.get(log.id, -1) == log.last for log in env.hub.partitions):
            return
        await asyncio.sleep(0.1)
    raise TimeoutError(f"checkpoints end at {stored}")
