"""A real Prometheus, and promtool: built by `make tools`, or found on PATH."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from support.chart import ROOT
from support.harness import free_port


def tool(name: str) -> str:
    """Return the path of a program of Prometheus."""
    found = shutil.which(ROOT / ".bin" / name) or shutil.which(name)
    assert found, f"no {name}: `make tools` builds it, Debian's prometheus has it"
    return found


class Prometheus:
    """A server that scrapes twice a second."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def get(self, path: str, **parameters: str) -> Any:
        """Call its HTTP API; return `data` of the response."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self._url}/api/v1/{path}", params=parameters) as response,
        ):
            content = await response.json()
        assert content["status"] == "success", content
        return content["data"]

    async def query(self, expression: str) -> list[float]:
        """Return the values of an instant query, without NaN."""
        found = (await self.get("query", query=expression))["result"]
        values = [float(one["value"][1]) for one in found]
        return [value for value in values if value == value]  # noqa: PLR0124 - NaN is not itself


@asynccontextmanager
async def prometheus(
    folder: Path, target: str, rules: Path, **labels: str
) -> AsyncIterator[Prometheus]:
    """Run Prometheus with its data in `folder`; it scrapes HOST:PORT, with these labels added."""
    program = tool("prometheus")
    config = folder / "prometheus.yaml"
    scrape = {"job_name": "forwarder", "static_configs": [{"targets": [target], "labels": labels}]}
    intervals = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "1s"}
    config.write_text(
        yaml.safe_dump(
            {"global": intervals, "rule_files": [str(rules)], "scrape_configs": [scrape]}
        )
    )
    address = f"127.0.0.1:{free_port()}"
    process = await asyncio.create_subprocess_exec(
        program,
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--log.level=warn",
    )
    try:
        server = Prometheus(f"http://{address}")
        async with asyncio.timeout(90):
            while process.returncode is None:
                with contextlib.suppress(aiohttp.ClientError, AssertionError):
                    await server.get("status/config")
                    break
                await asyncio.sleep(0.05)
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
