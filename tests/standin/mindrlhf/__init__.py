"""A stand-in for MindRLHF's GRPO training: module names, call order, files, and defects of its save and resume.

Written from a description of what its code does (defects B1 to B29, docs/mindrlhf.md), not from its code, and before
the adapter that mends them. What trains here is a few numbers; `STANDIN_BRANCH=dev` gives the dev branch's form.
"""
