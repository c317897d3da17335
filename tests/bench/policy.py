"""`python -m bench.policy`: the cost of an audit policy, in microseconds per event.

Messages of 22 real events are unpacked in this process with each policy in turn, for many rounds.
The fastest round of each policy counts, because other load on the machine only adds time.
"""

import json
import sys
import time

from forwarder.audit.envelope import unpack
from forwarder.config.settings import Settings
from forwarder.policy import document
from forwarder.policy.document import Policy
from forwarder.policy.filter import filter_for
from support.events import messages, real_events, typical_events

ROUNDS = 60
CATEGORIES = frozenset({"kube-audit"})


def forty() -> Policy:
    """Return a policy of 40 rules, each with conditions, of which the last ones match."""
    rules = [
        {
            "level": "None",
            "userGroups": [f"team-{number}", "system:authenticated"],
            "verbs": ["get", "list", "watch", "update"],
            "resources": [{"group": f"group-{number}.example", "resources": ["*", "a/status"]}],
        }
        for number in range(37)
    ]
    last = [
        {"level": "None", "verbs": ["watch"], "resources": [{"group": ""}, {"group": "apps"}]},
        {"level": "Request", "verbs": ["create", "update", "patch"]},
        {"level": "Metadata"},
    ]
    head = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy"}
    return document.parse(json.dumps({**head, "rules": rules + last}))


POLICIES = {
    "none": Settings(),
    "everything": Settings(
        audit_policy=document.parse(
            "{apiVersion: audit.k8s.io/v1, kind: Policy, rules: [{level: RequestResponse}]}"
        )
    ),
    "quiet": Settings(audit_policy=document.load("quiet")),
    "security": Settings(audit_policy=document.load("security")),
    "40 rules": Settings(audit_policy=forty()),
    "annotation": Settings(cluster_annotation=True),
}


def main() -> None:
    """Print one line per policy, for typical events (up to 1,100 bytes) and for all events."""
    for title, events in (("typical", typical_events()), ("real", real_events())):
        bodies = [one.body for one in messages(len(events), events=events)]
        best = dict.fromkeys(POLICIES, float("inf"))
        filters = {
            name: filter_for(
                settings.audit_policy, settings.resource_ids, annotates=settings.cluster_annotation
            )
            for name, settings in POLICIES.items()
        }
        for _ in range(ROUNDS):
            for name, one in filters.items():
                start = time.perf_counter()
                for body in bodies:
                    unpack(body, CATEGORIES, one)
                best[name] = min(best[name], time.perf_counter() - start)
        for name, seconds in best.items():
            cost, more = (1e6 * each / len(events) for each in (seconds, seconds - best["none"]))
            sys.stdout.write(f"{title:8} {name:12} {cost:6.2f} us {more:+6.2f}\n")


if __name__ == "__main__":
    main()
