"""Group parameters by weight decay and learning rate."""

from __future__ import annotations

import re
from collections import defaultdict

from torch import nn

from pairloom.schemas.recipes.train import OptimizerRecipe
from pairloom.trainers.task import ParameterGroup

_LAYER = re.compile(r"(?P<tower>(?:vision|text)_model)\..*?\b(?:layers?|blocks?|stages|h)\.(?P<number>\d+)\.")
_TOWER = re.compile(r"(?P<tower>(?:vision|text)_model)\..*?\b(?:embeddings|embed_tokens|wte|wpe|pre_layrnorm)\b")


def group_parameters(model: nn.Module, optimizer: OptimizerRecipe) -> list[ParameterGroup]:
    """Group the trained parameters of a model.

    Weight decay applies to matrices, not to vectors, biases and scalars. The learning rate of a parameter is
    `learning_rate * layer_decay ** depth`, with the depth of `depths_of`.
    """
    depths = depths_of([name for name, _ in model.named_parameters()])
    members: dict[tuple[bool, bool, float], list[tuple[str, nn.Parameter]]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = optimizer.learning_rate * optimizer.layer_decay ** depths[name]
            is_hidden = optimizer.name == "muon" and parameter.ndim == 2 and _LAYER.search(name) is not None
            members[parameter.ndim < 2, is_hidden, rate].append((name, parameter))
    groups = []
    for (is_vector, is_hidden, rate), named in sorted(members.items(), key=lambda item: item[0]):
        names, parameters = zip(*named, strict=True)
        decay = 0.0 if is_vector else optimizer.weight_decay
        groups.append(ParameterGroup(names, parameters, decay, rate, is_hidden))
    return groups


def depths_of(names: list[str]) -> dict[str, int]:
    """Depth of each parameter below its tower's output.

    0 after the last layer, 1 for the last layer, number of layers + 1 for the embeddings.
    """
    layers = {name: match for name in names if (match := _LAYER.search(name))}
    num_layers: dict[str, int] = defaultdict(int)
    for match in layers.values():
        num_layers[match["tower"]] = max(num_layers[match["tower"]], int(match["number"]) + 1)
    depths = {}
    for name in names:
        if name in layers:
            depths[name] = num_layers[layers[name]["tower"]] - int(layers[name]["number"])
        elif match := _TOWER.search(name):
            depths[name] = num_layers[match["tower"]] + 1
        else:
            depths[name] = 0
    return depths
