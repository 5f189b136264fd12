"""Experiments as lab notes: one file each, with its command, its cost, the paper's number and ours."""
