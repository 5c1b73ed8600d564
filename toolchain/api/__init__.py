"""The work behind each command: what was asked is checked once, then carried out. One function a module."""
