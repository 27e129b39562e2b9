"""Agents and trainers with the calls of well-known programs; thin, over the algorithms."""
