"""Measuring latency in this process: a race of two sessions, or a profile of single operators."""
