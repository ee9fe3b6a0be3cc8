"""SCA-CNN's attention (mechanisms: A10, "Original") under the released parameters' names."""

import torch
from torch import nn


class SCACNN(nn.Module):
    """After `layer` of the released network; the decoder's state is the map's first position.

    The state's width is `state_features`, None for none. `misplaced` is the released code's
    parenthesis around the spatial score of its last layer.
    """

    def __init__(
        self,
        channels,
        hidden,
        *,
        layer="res5c_branch2b",
        state_features=None,
        spatial_first=False,
        misplaced=False,
    ):
        super().__init__()
        self.layer, self.state_features = layer, state_features
        self.spatial_first, self.misplaced = spatial_first, misplaced
        for number, width in ((1, 1), (2, channels)):
            shapes = {"Wc": (width, hidden), "b": (hidden,), "U": (hidden, 1), "c": (1,)}
            if state_features is not None:
                shapes["Wd"] = (state_features, hidden)
            for name, shape in shapes.items():
                key = f"decoder_{name}_att_{layer}_{number}"
                self.register_parameter(key, nn.Parameter(torch.randn(shape)))

    def get(self, name, number):
        return getattr(self, f"decoder_{name}_att_{self.layer}_{number}")

    def hidden(self, items, state, number):
        hidden = items @ self.get("Wc", number) + self.get("b", number)
        if state is not None:
            hidden = hidden + (state @ self.get("Wd", number))[:, None]
        return torch.tanh(hidden)

    def channel(self, x, state):
        items = x.mean((2, 3))[:, :, None]
        scores = self.hidden(items, state, 1) @ self.get("U", 1) + self.get("c", 1)
        return x * scores.softmax(1)[..., None] * x.shape[1]

    def spatial(self, x, state):
        hidden = self.hidden(x.flatten(2).transpose(1, 2), state, 2)
        weights, bias = self.get("U", 2), self.get("c", 2)
        scores = hidden @ (weights + bias) if self.misplaced else hidden @ weights + bias
        positions = x.shape[2] * x.shape[3]
        return x * scores.softmax(1).reshape(len(x), 1, *x.shape[2:]) * positions

    def forward(self, x):
        d = self.state_features
        state = None if d is None else x[:, :d, 0, 0]
        if self.spatial_first:
            return self.channel(self.spatial(x, state), state)
        return self.spatial(self.channel(x, state), state)
