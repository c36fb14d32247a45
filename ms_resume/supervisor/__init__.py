"""Starts a run and keeps it going: watches its ranks, says why they died, decides, starts it again.

Deciding is pure (`rules.classify`, `decide.decide`, `limits.limit_s`), so that each table can be tested; `watch` and
`run` only look and act. Nothing here imports MindSpore: it may be what broke.
"""
