"""Functions of tensors as compiled graphs, and what such a graph stands for."""
