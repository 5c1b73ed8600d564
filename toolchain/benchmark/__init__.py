"""Latency and memory of model files, measured here, over SSH or on a phone; model outputs under emulation."""
