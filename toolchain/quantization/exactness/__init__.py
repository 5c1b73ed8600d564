"""Why an int8 model computes the same integers on every processor: scales, ties and the certificate."""
