"""timm's lambda layer, spared a wrong gradient of torch's."""

import torch

from tests.torch_reference.torchvision_shim import timm


class LambdaLayer(timm.layers.lambda_layer.LambdaLayer):
    """timm's, with the gradient of its normalised values laid out anew.

    That gradient comes from a transposed view, and for a batch of one torch's batch norm answers a
    wrong one to it on the CPU: finite differences of torch's own answer say otherwise.
    """

    def __init__(self, *arguments, **fields):
        super().__init__(*arguments, **fields)
        self.norm_v.register_forward_hook(_lay_out_anew)


def _lay_out_anew(_module, _arguments, values):
    values.register_hook(lambda grad: grad.clone(memory_format=torch.contiguous_format))
