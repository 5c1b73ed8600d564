"""Rendering, and nothing else: tables for a terminal, Markdown, CSV, and the HTML page."""
