"""A policy's meaning in the simplest words, slow, for the fast engine to be compared with."""

from typing import Any
from urllib.parse import unquote

Object = dict[str, Any]
LEVELS = ["None", "Metadata", "Request", "RequestResponse"]


def apply(policy: Object, event: Object) -> Object | None:
    """Return what is left of an event, None if nothing is."""
    for rule in policy["rules"]:
        if not by_whom(rule, event):
            continue
        asks = any(rule.get(name) for name in ("resources", "namespaces", "nonResourceURLs"))
        if asks and was_cut(event) and not (event.get("objectRef") and event.get("requestURI")):
            return event
        if not asks or about(rule, event):
            return left(policy, rule, event)
    return None


def by_whom(rule: Object, event: Object) -> bool:
    user = event["user"]
    if rule.get("users") and user.get("username") not in rule["users"]:
        return False
    if rule.get("userGroups") and not set(rule["userGroups"]) & set(user.get("groups", [])):
        return False
    return not rule.get("verbs") or event["verb"] in rule["verbs"]


def about(rule: Object, event: Object) -> bool:
    path = unquote(event.get("requestURI", "").split("?")[0])
    target = event.get("objectRef")
    if target is None:
        return any(
            url == path or (url.endswith("*") and path.startswith(url[:-1]))
            for url in rule.get("nonResourceURLs", [])
        )
    if rule.get("nonResourceURLs"):
        return False
    target = as_asked_for(target, event["verb"], path)
    if rule.get("namespaces") and target.get("namespace", "") not in rule["namespaces"]:
        return False
    return not rule.get("resources") or any(is_of(one, target) for one in rule["resources"])


def as_asked_for(target: Object, verb: str, path: str) -> Object:
    """Return the target without what the API server took from the object in the body."""
    if verb not in ("create", "update") or not path:
        return target
    segments = path.strip("/").split("/")
    segments = segments[2:] if segments[0] == "api" else segments[3:]
    found = {**target, "namespace": "", "name": ""}
    if segments[:1] == ["namespaces"] and len(segments) > 1:
        found["namespace"] = target.get("namespace", "")
        if len(segments) > 2 and segments[2] not in ("status", "finalize"):
            segments = segments[2:]
    if len(segments) > 1:
        found["name"] = target.get("name", "")
    return found


def is_of(listed: Object, target: Object) -> bool:
    if listed.get("group", "") != target.get("apiGroup", ""):
        return False
    if not listed.get("resources"):
        return True
    if listed.get("resourceNames") and target.get("name", "") not in listed["resourceNames"]:
        return False
    resource, subresource = target.get("resource", ""), target.get("subresource", "")
    whole = f"{resource}/{subresource}" if subresource else resource
    fits = {whole, "*", f"{resource}/*"} | ({f"*/{subresource}"} if subresource else set())
    return bool(fits & set(listed["resources"]))


def left(policy: Object, rule: Object, event: Object) -> Object | None:
    if rule["level"] == "None":
        return None
    if event["stage"] in [*policy.get("omitStages", []), *rule.get("omitStages", [])]:
        return None
    result = dict(event)
    allowed = LEVELS.index(rule["level"])
    if allowed < 2:
        result.pop("requestObject", None)
    if allowed < 3:
        result.pop("responseObject", None)
    given = LEVELS.index(event["level"]) if event.get("level") in LEVELS else 3
    if allowed < given:
        result["level"] = rule["level"]
    if rule.get("omitManagedFields", policy.get("omitManagedFields", False)):
        for name in ("requestObject", "responseObject"):
            if name in result and not (name == "requestObject" and event["verb"] == "patch"):
                result[name] = unmanaged(result[name])
    return result


def unmanaged(thing: Any) -> Any:
    """Return an object, list or table without managedFields."""
    if not isinstance(thing, dict):
        return thing
    thing = dict(thing)
    if isinstance(thing.get("metadata"), dict):
        thing["metadata"] = {k: v for k, v in thing["metadata"].items() if k != "managedFields"}
    if isinstance(thing.get("items"), list):
        thing["items"] = [unmanaged_item(one) for one in thing["items"]]
    if isinstance(thing.get("rows"), list):
        thing["rows"] = [
            {**row, "object": unmanaged_item(row["object"])}
            if isinstance(row, dict) and "object" in row
            else row
            for row in thing["rows"]
        ]
    return thing


def unmanaged_item(thing: Any) -> Any:
    if isinstance(thing, dict) and isinstance(thing.get("metadata"), dict):
        metadata = {k: v for k, v in thing["metadata"].items() if k != "managedFields"}
        return {**thing, "metadata": metadata}
    return thing


def was_cut(event: Object) -> bool:
    annotations = event.get("annotations")
    return isinstance(annotations, dict) and annotations.get("audit.aks/truncated") == "true"
