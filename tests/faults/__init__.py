"""The fault suite: whatever fails, published = delivered + dead letters + counted lost.

`test_scenarios` is a table of what runs and what befalls it, `test_generated` draws faults by a
seed, `mutations` removes the lines that guard against them and runs the scenario that must notice.
`play` is the stage and the one oracle; `hub`, `sink`, `store` and `processes` are what can befall.
"""
