"""The fault suite: whatever fails, published = delivered + dead letters + counted lost.

`test_scenarios` is a table of what runs and what fails, `test_generated` draws faults by a seed,
and `mutations` changes the lines that guard against loss and runs the test that must notice.
`environment` runs hub, sink, store and forwarders, and judges the result; the faults are in `hub`,
`sink`, `store`, `processes` and `replicas`.
"""
