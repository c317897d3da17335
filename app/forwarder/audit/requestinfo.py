"""Derives what a request is about from its path, as kube-apiserver does it (RequestInfoFactory).

/api/v1/namespaces/NAMESPACE/RESOURCE/NAME/SUBRESOURCE, /apis/GROUP/VERSION/… for other groups, and
without the namespace for what has none. `watch` and `proxy` before these are verbs of old.
"""

from typing import Final
from urllib.parse import unquote

_OF_NAMESPACES: Final = ("status", "finalize")  # subresources of a namespace
_SHORTEST: Final = {"api": 3, "apis": 4}  # segments of a path that is about a resource


def object_reference(uri: str, *, whole: bool) -> dict[str, str]:
    """Return the objectRef of an audit event, {} if the request is about no resource.

    The last segment of a path that is cut off is left out, for it may go on.
    """
    path, query, _ = uri.partition("?")
    parts = unquote(path).strip("/").split("/")
    if cut_off := not whole and not query:
        parts.pop()
    prefix = parts[0] if parts else ""
    if len(parts) < _SHORTEST.get(prefix, len(parts) + 1):
        return {}
    group = parts[1] if prefix == "apis" else ""
    version, *parts = parts[1 + (prefix == "apis") :]
    verb = parts[0]
    if verb in ("watch", "proxy") and not (parts := parts[1:]):
        return {}
    namespace = ""
    if parts[0] == "namespaces" and (len(parts) > 1 or cut_off):
        namespace = parts[1] if parts[1:] else ""
        if parts[2:] and parts[2] not in _OF_NAMESPACES:
            parts = parts[2:]
        elif cut_off:
            return {}
    resource, name, subresource = (*parts, "", "")[:3]
    reference = {
        "resource": resource,
        "namespace": namespace,
        "name": name,
        "apiGroup": group,
        "apiVersion": version,
        "subresource": "" if verb == "proxy" else subresource,
    }
    return {key: value for key, value in reference.items() if value}
