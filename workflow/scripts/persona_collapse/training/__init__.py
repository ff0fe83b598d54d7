"""Training one stage: `train` says what is done in which order, `run` what is trained on what.

`model` is what it starts from, `steps` a step's loss and gradients, `graphs` the same recorded,
`batches` how a step's rows are cut; `trainer` puts them into TRL's. Losses and defences are a file each.
"""
