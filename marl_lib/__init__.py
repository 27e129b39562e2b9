"""Attention and multi-agent reinforcement learning: the library of the book."""

__version__ = "0.1.0"
