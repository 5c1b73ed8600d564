"""Small models of many structures, the builder that writes them and the oracle that judges them."""
