"""Training rows of stages, and the prompt audit."""
