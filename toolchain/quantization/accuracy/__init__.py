"""Steps that bring an int8 model's outputs nearer to float's, each kept only where it is measured to help."""
