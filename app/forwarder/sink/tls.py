"""TLS settings of the sink."""

import ssl

from forwarder.config.settings import Settings


def tls(settings: Settings) -> ssl.SSLContext | None:
    """Return the TLS settings that were asked for."""
    if settings.web_sink_url.scheme != "https":
        return None
    context = ssl.create_default_context(cafile=settings.web_sink_ca_file)
    if settings.web_sink_cert_file:
        context.load_cert_chain(settings.web_sink_cert_file, settings.web_sink_key_file)
    return context
