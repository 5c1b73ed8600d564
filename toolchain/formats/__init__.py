"""Every record that is stored in a file, declared once: recipe, target, manifest, results, findings and their
schemas.
"""
