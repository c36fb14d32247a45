"""Trainers of others, each in a module of its own: what they call their parts is known there and nowhere else."""
