"""Derives what a request is about from its path, as kube-apiserver does it (RequestInfoFactory).

/api/v1/namespaces/NAMESPACE/RESOURCE/NAME/SUBRESOURCE, /apis/GROUP/VERSION/… for other groups, and
without the namespace for cluster-scoped resources. `watch` and `proxy` before the rest of the path
are legacy verbs.
"""

from typing import Final
from urllib.parse import unquote

_NAMESPACE_SUBRESOURCES: Final = ("status", "finalize")


def object_reference(uri: str, *, whole: bool) -> dict[str, str]:
    """Return the objectRef of an audit event; {} if the request is not about a resource.

    If the path is cut off, its last segment is ignored, because the rest of it may be lost.
    """
    path, query, _ = uri.partition("?")
    parts = unquote(path).strip("/").split("/")
    cut_off = not whole and not query
    if cut_off:
        parts.pop()
    match parts:
        case ["api", version, *parts] if parts:
            group = ""
        case ["apis", group, version, *parts] if parts:
            pass
        case _:
            return {}
    verb = parts[0]
    if verb in ("watch", "proxy") and not (parts := parts[1:]):
        return {}
    namespace = ""
    if parts[0] == "namespaces" and (len(parts) > 1 or cut_off):
        namespace = parts[1] if parts[1:] else ""
        if parts[2:] and parts[2] not in _NAMESPACE_SUBRESOURCES:
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
