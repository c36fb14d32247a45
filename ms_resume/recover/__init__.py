"""Lets a training of LLaMA-Factory that failed go on: which checkpoint, which YAML file, run again, how often.

`plan.make` finds the newest checkpoint that is whole and makes the text of the recovery; `running.until_done` runs it,
and the recovery of a recovery, as long as `retry.decide` says so.
"""
