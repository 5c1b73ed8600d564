"""The exported folder: model files, golden data, manifest, and a README for the app developer."""
