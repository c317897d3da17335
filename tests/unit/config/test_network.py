"""Which hosts HTTPS_PROXY leads to, by NO_PROXY."""

import pytest

from forwarder.config.network import proxy_for
from forwarder.config.settings import Settings

HOST = "name.servicebus.windows.net"


@pytest.mark.parametrize(
    ("no_proxy", "host", "direct"),
    [
        ("*.servicebus.windows.net", HOST, True),
        (".servicebus.windows.net", HOST, True),
        ("SERVICEBUS.windows.net", HOST, True),
        (f"localhost, {HOST}:443", HOST, True),
        (f"{HOST}:5671", HOST, False),
        ("localhost,*", HOST, True),
        ("bus.windows.net", HOST, False),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        (" , ", HOST, False),
    ],
)
def test_no_proxy(no_proxy: str, host: str, *, direct: bool) -> None:
    environment = {
        "EventHubNamespace": HOST,
        "HTTPS_PROXY": "http://proxy:3128",
        "NO_PROXY": no_proxy,
    }
    assert (proxy_for(Settings.from_env(environment), host, 443) is None) == direct
