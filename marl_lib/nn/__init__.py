"""Differentiable parts, with no reinforcement learning inside."""
