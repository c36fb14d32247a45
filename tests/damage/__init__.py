"""The damage campaign: whole checkpoints, each damaged in one way, and whole ones that must raise no alarm.

`python -m damage` from tests/ runs it, `make damage` all of it. docs/durability.md has the table that it holds.
"""
