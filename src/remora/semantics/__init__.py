"""What tensors mean: recognisers, one a file, each with the evidence for what it says."""
