"""Groups of channels that can only be removed together, their removal, and the proof that it is right."""
