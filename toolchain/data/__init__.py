"""Samples in: what users call data becomes feeds that can be read again and again."""
