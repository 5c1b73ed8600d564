"""Reading users' samples: files, arrays, functions and data loaders become feeds that can be read repeatedly."""
