"""What the toolchain is held to: real models, labelled data, peers."""
