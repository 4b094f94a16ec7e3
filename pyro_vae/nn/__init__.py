"""Networks. Any `torch.nn.Module` serves in their place; these keep the leading dimensions of their input.

None of them couples the data of a batch, as BatchNorm does in training: there p(x|z) or q(z|x) of one datum depends on
the others beside it, and there is no log p(x) for each datum. The estimators refuse such a network, or take it in
evaluation mode. `normalize=True` is layer normalisation, of each datum by itself.
"""

from pyro_vae.nn.batched import Batched, over_leading_dims
from pyro_vae.nn.convolutional import ConvDecoder, ConvEncoder
from pyro_vae.nn.mlp import MLP
from pyro_vae.nn.standardized import Standardized
from pyro_vae.nn.with_mask import WithMask

__all__ = ["MLP", "Batched", "ConvDecoder", "ConvEncoder", "Standardized", "WithMask", "over_leading_dims"]
