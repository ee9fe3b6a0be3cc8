"""The head of DeepLabV3."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from flaxattn.attention.mechanism import Namings
from flaxattn.layers.pooling import average_pool
from flaxattn.models.segmentation.head import Head


class DeepLabHead(Head):
    """Atrous spatial pyramid pooling: the map seen at several dilations at once, and as a whole.

    A 1x1 convolution, a 3x3 one at each rate and a 1x1 one of the map's mean stand side by side; a
    1x1 convolution mixes them, and dropout, a 3x3 convolution and one to the scores follow. Each
    but the last has a normalisation and a ReLU.

    Chen, Papandreou, Schroff, Adam, "Rethinking Atrous Convolution for Semantic Image
    Segmentation", arXiv:1706.05587; in torchvision's form, which has the second 3x3 convolution.

    Parameters: aspp_convs_0_0 kernel (1, 1, C, features), aspp_convs_1_0 and so on kernels
    (3, 3, C, features), then the mean's kernel (1, 1, C, features); aspp_project_0 kernel
    (1, 1, branches * features, features); conv kernel (3, 3, features, features), score kernel
    (1, 1, features, num_classes) and bias; and normalisations.

    In train mode the normalisation of the map's mean sees one value per channel of each example,
    and a batch of one example is refused, as in torch.

    Fields, beside those of `Head`:
        features: of each branch, and of the mixed map.
        rates: dilations of the 3x3 branches. torchvision has the paper's rates for an output stride
            of 8 at 16 too, where the paper has half of them.
        dropout: how likely a number of the mixed map is left out in train mode.
    """

    features: int = 256
    rates: Sequence[int] = (12, 24, 36)
    dropout: float = 0.5

    @property
    def namings(self) -> Namings:
        last = len(self.rates) + 1
        branches = [(f"convs.{i}.{j}", f"aspp_convs_{i}_{j}") for i in range(last) for j in (0, 1)]
        mean = [(f"convs.{last}.{j + 1}", f"aspp_convs_{last}_{j}") for j in (0, 1)]
        project = [(f"project.{j}", f"aspp_project_{j}") for j in (0, 1)]
        aspp = [(f"0.{foreign}", ours) for foreign, ours in (*branches, *mean, *project)]
        return {"torchvision": (*aspp, ("1", "conv"), ("2", "bn"), ("4", "score"))}

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        def branch(x: Array, index: int, kernel_size: int, dilation: int) -> Array:
            names = (f"aspp_convs_{index}_0", f"aspp_convs_{index}_1")
            return self.normed_conv(
                x, self.features, kernel_size, names=names, train=train, dilation=dilation
            )

        branches = [branch(x, 0, 1, 1)]
        branches += [branch(x, i, 3, rate) for i, rate in enumerate(self.rates, start=1)]
        mean = average_pool(x)[:, None, None, :].astype(x.dtype)
        mean = branch(mean, len(branches), 1, 1)
        branches.append(jnp.broadcast_to(mean, branches[0].shape))
        x = jnp.concatenate(branches, axis=-1)
        names = ("aspp_project_0", "aspp_project_1")
        x = self.normed_conv(x, self.features, names=names, train=train)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        x = self.normed_conv(x, self.features, 3, names=("conv", "bn"), train=train)
        return self.score(x, name="score")
