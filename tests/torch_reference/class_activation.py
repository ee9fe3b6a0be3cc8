"""Class activation maps of one image, each written from its paper, in float64.

Maps A are (C, H, W), and `score` is the part of the network behind them: A -> the class's score.
"""

import torch
import torch.nn.functional as F


def grad_cam(maps, score):
    """arXiv:1610.02391, Eq. 1 and 2."""
    (gradient,) = torch.autograd.grad(score(maps), maps)
    weights = gradient.mean(dim=(1, 2))
    return F.relu(sum(weight * one for weight, one in zip(weights, maps, strict=True)))


def grad_cam_plus_plus(maps, score):
    """arXiv:1710.11063, Eq. 10, 5 and 1, with Y = exp(S), by differentiating Y three times.

    The second and third derivatives are those by one and the same position. All is divided by
    exp(S), which is a factor of the map.
    """
    value = score(maps)
    y = torch.exp(value - value.detach())
    (first,) = torch.autograd.grad(y, maps, create_graph=True)
    total = maps.detach().sum(dim=(1, 2))
    weights = torch.zeros(len(maps), dtype=maps.dtype)
    for place in torch.cartesian_prod(*map(torch.arange, maps.shape)).tolist():
        place = tuple(place)
        (second,) = torch.autograd.grad(first[place], maps, create_graph=True)
        (third,) = torch.autograd.grad(second[place], maps, retain_graph=True)
        below = 2 * second[place] + total[place[0]] * third[place]
        if below != 0:
            alpha = second[place] / below
            weights[place[0]] += (alpha * F.relu(first[place])).detach()
    return F.relu(sum(weight * one for weight, one in zip(weights, maps, strict=True)))


def layer_cam(maps, score):
    """Jiang et al., IEEE Transactions on Image Processing 30, 2021, Eq. 6 to 8."""
    (gradient,) = torch.autograd.grad(score(maps), maps)
    return F.relu((F.relu(gradient) * maps).sum(dim=0))


def eigen_cam(maps):
    """arXiv:2008.00299, Eq. 3 and 4: A projected on the first of its right singular vectors."""
    channels, height, width = maps.shape
    matrix = maps.detach().reshape(channels, height * width).T
    values, vectors = torch.linalg.eigh(matrix.T @ matrix)
    projected = matrix @ vectors[:, values.argmax()]
    return F.relu(projected * torch.sign(projected.sum())).reshape(height, width)


def score_cam(maps, image, score_of_image):
    """arXiv:1910.01279, Algorithm 1, with a black image as the baseline."""
    baseline = score_of_image(torch.zeros_like(image))
    increases = []
    for one in maps:
        mask = F.interpolate(one[None, None], size=image.shape[1:], mode="bilinear")[0, 0]
        mask = (mask - mask.min()) / (mask.max() - mask.min())
        increases.append(score_of_image(image * mask) - baseline)
    weights = torch.softmax(torch.stack(increases), dim=0)
    return F.relu(sum(weight * one for weight, one in zip(weights, maps, strict=True)))
