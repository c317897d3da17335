"""Kinds of network errors: what the exception of a socket or of TLS is called in `causes.toml`."""

import re
import socket
import ssl
from typing import Final

_UNKNOWN_CA: Final = dict.fromkeys((2, 18, 19, 20, 21), "untrusted")  # by OpenSSL's code
_CERTIFICATE: Final = {**_UNKNOWN_CA, 9: "early", 10: "expired", 62: "misnamed", 64: "misnamed"}
_TLS_ERRORS: Final = {
    re.compile("ALERT.*(CERT|_CA$)"): "client_certificate",  # the peer's alert about it
    re.compile("PROTOCOL_VERSION$|UNSUPPORTED_PROTOCOL$|HANDSHAKE_FAILURE|SECURITY$"): "tls_terms",
}


def kind_of(error: BaseException) -> str | None:  # noqa: PLR0911 - a table
    """Return the kind, a table of `causes.toml`, of an error; None if it is not of the network."""
    match error:
        case socket.gaierror():
            return "unknown_name"
        case ssl.SSLCertVerificationError() if not hasattr(error, "verify_code"):
            return None  # aiohttp's, which wraps the real one
        case ssl.SSLCertVerificationError():
            return _CERTIFICATE.get(error.verify_code, "invalid")
        case ssl.SSLError():
            reason = getattr(error, "reason", None) or ""
            return next((k for rule, k in _TLS_ERRORS.items() if rule.search(reason)), "no_tls")
        case ConnectionRefusedError():
            return "refused"
        case TimeoutError():
            return "silent"
        case OSError() if error.errno or not error.args:  # none: closed while TLS begins
            return "cut"
    return None
