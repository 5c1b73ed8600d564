"""Measures the toolchain on real models with labelled data, and compares it with other tools."""
