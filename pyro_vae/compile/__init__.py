"""Functions of tensors as compiled graphs, and checks of whether a graph is still valid."""
