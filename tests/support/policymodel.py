"""A simple and slow implementation of audit policies, the reference for the fast engine."""

from typing import Any
from urllib.parse import unquote

Object = dict[str, Any]
LEVELS = ["None", "Metadata", "Request", "RequestResponse"]


def apply(policy: Object, event: Object) -> Object | None:
    """Return an event as the policy leaves it, None if it is dropped."""
    for rule in policy["rules"]:
        if not matches_user(rule, event):
            continue
        has_target_rules = any(
            rule.get(name) for name in ("resources", "namespaces", "nonResourceURLs")
        )
        if (
            has_target_rules
            and is_truncated(event)
            and not (event.get("objectRef") and event.get("requestURI"))
        ):
            return event
        if not has_target_rules or matches_target(rule, event):
            return apply_rule(policy, rule, event)
    return None


def matches_user(rule: Object, event: Object) -> bool:
    user = event["user"]
    if rule.get("users") and user.get("username") not in rule["users"]:
        return False
    if rule.get("userGroups") and not set(rule["userGroups"]) & set(user.get("groups", [])):
        return False
    return not rule.get("verbs") or event["verb"] in rule["verbs"]


def matches_target(rule: Object, event: Object) -> bool:
    path = unquote(event.get("requestURI", "").split("?")[0])
    target = event.get("objectRef")
    if target is None:
        return any(
            url == path or (url.endswith("*") and path.startswith(url[:-1]))
            for url in rule.get("nonResourceURLs", [])
        )
    if rule.get("nonResourceURLs"):
        return False
    target = target_of_url(target, event["verb"], path)
    if rule.get("namespaces") and target.get("namespace", "") not in rule["namespaces"]:
        return False
    return not rule.get("resources") or any(
        matches_resource(one, target) for one in rule["resources"]
    )


def target_of_url(target: Object, verb: str, path: str) -> Object:
    """Return the target without values that the API server took from the request body."""
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


def matches_resource(group: Object, target: Object) -> bool:
    if group.get("group", "") != target.get("apiGroup", ""):
        return False
    if not group.get("resources"):
        return True
    if group.get("resourceNames") and target.get("name", "") not in group["resourceNames"]:
        return False
    resource, subresource = target.get("resource", ""), target.get("subresource", "")
    whole = f"{resource}/{subresource}" if subresource else resource
    fits = {whole, "*", f"{resource}/*"} | ({f"*/{subresource}"} if subresource else set())
    return bool(fits & set(group["resources"]))


def apply_rule(policy: Object, rule: Object, event: Object) -> Object | None:
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
    event_level = LEVELS.index(event["level"]) if event.get("level") in LEVELS else 3
    if allowed < event_level:
        result["level"] = rule["level"]
    if rule.get("omitManagedFields", policy.get("omitManagedFields", False)):
        for name in ("requestObject", "responseObject"):
            if name in result and not (name == "requestObject" and event["verb"] == "patch"):
                result[name] = unmanaged(result[name])
    return result


def unmanaged(value: Any) -> Any:
    """Return an object, list or table without managedFields."""
    if not isinstance(value, dict):
        return value
    value = dict(value)
    if isinstance(value.get("metadata"), dict):
        value["metadata"] = {k: v for k, v in value["metadata"].items() if k != "managedFields"}
    if isinstance(value.get("items"), list):
        value["items"] = [unmanaged_item(one) for one in value["items"]]
    if isinstance(value.get("rows"), list):
        value["rows"] = [
            {**row, "object": unmanaged_item(row["object"])}
            if isinstance(row, dict) and "object" in row
            else row
            for row in value["rows"]
        ]
    return value


def unmanaged_item(value: Any) -> Any:
    if isinstance(value, dict) and isinstance(value.get("metadata"), dict):
        metadata = {k: v for k, v in value["metadata"].items() if k != "managedFields"}
        return {**value, "metadata": metadata}
    return value


def is_truncated(event: Object) -> bool:
    annotations = event.get("annotations")
    return isinstance(annotations, dict) and annotations.get("audit.aks/truncated") == "true"
