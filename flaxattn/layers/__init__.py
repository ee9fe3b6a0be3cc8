"""What every network is built of: torch-exact convolution, normalisation, pooling, resizing."""
