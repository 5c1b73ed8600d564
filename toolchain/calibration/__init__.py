"""One streaming pass over the samples: histograms and second moments of activations, in bounded memory."""
