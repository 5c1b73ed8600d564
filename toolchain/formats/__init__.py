"""Every record that is stored in a file, declared once, and the schemas of the files."""
