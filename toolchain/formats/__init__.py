"""Every record that is stored in a file, declared once: recipes, profiles, manifests, results and
findings, and their schemas.
"""
