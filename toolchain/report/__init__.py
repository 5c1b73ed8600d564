"""Showing results: as tables for a terminal, Markdown, CSV, JSON and the HTML page. No results are computed here."""
