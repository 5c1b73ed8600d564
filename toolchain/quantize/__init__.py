"""Static int8: decide per node and per number (`select`, `plan`), then write QDQ (`apply`) and audit the fusions."""
