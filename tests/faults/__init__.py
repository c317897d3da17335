"""The fault suite: with any fault, published = delivered + dead letters + counted as lost.

`test_scenarios` is a table of scenarios, `test_generated` injects random faults by a seed, and
`mutations` changes the lines that guard against loss and runs the test that must detect this.
`environment` runs hub, sink, store and forwarders, and checks the result. The faults are in `hub`,
`sink`, `store`, `processes` and `replicas`.
"""
