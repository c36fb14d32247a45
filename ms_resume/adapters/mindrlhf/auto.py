"""Importing this, in the first line of MindRLHF's `main.py`, puts the adapter in place."""

from __future__ import annotations

from ms_resume.adapters.mindrlhf import install

install()
