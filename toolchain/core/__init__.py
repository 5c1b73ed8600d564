"""What every package needs: errors, files and caches, progress and logging, and running code that users wrote."""
