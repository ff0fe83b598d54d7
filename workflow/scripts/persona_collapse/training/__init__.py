"""Trains one stage: `train` gives the order of steps, `run` describes what is trained on what.

`model` makes the model that it starts from. `steps` computes a step's loss and gradients, and `graphs`
does so with CUDA graphs. `batches` splits a step's rows into batches. `trainer` plugs all this into
TRL's trainer. Each loss and each defence is one file.
"""
