"""The exported folder: the model's files, golden data, manifest and a page for the app developer."""
