"""What is asked of each chain, one module per measure."""
