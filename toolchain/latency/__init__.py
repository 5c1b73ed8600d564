"""How long a graph takes in this process: two sessions raced, or one profiled operator by operator."""
