"""Weights and programs from and for other libraries, and the check against PyTorch."""
