"""The models and plans that are predicted and measured."""

from __future__ import annotations

from typing import NamedTuple


class Model(NamedTuple):
    """label: for a reader. options: of the model's factory."""

    label: str
    kind: str
    reference: str
    options: dict[str, str]


class Pair(NamedTuple):
    cluster: str
    model: Model
    strategy: str
    microbatches: int = 1


GPT = Model(
    "gpt",
    "transformer",
    "zoo:gpt",
    {"layers": "3", "width": "192", "heads": "6", "seq_len": "128", "global_batch": "16"},
)
DIT = Model("dit", "transformer", "zoo:dit", {"layers": "3"})
RESNET = Model("resnet", "convolution", "zoo:resnet50", {"width": "16"})
UNET = Model("unet", "convolution", "zoo:diffusion-unet", {"width": "16"})
VOLUME = Model("unet3d", "convolution", "zoo:unet3d", {"width": "8", "global_batch": "4"})
GRAPH = Model("graph", "graph network", "zoo:gns", {"steps": "3"})
EXPERTS = Model("moe", "mixture of experts", "zoo:moe", {"layers": "2"})
MLP = Model(
    "mlp",
    "multilayer perceptron",
    "zoo:mlp",
    {"features": "256", "hidden": "512", "layers": "4", "global_batch": "512"},
)

PAIRS: tuple[Pair, ...] = (
    Pair("local:4", GPT, "data=4"),
    Pair("local:4", GPT, "data=4,zero=3"),
    Pair("local:4", GPT, "tensor=4"),
    Pair("local:4", GPT, "tensor=4,sequence"),
    Pair("local:4", GPT, "data=2,tensor=2,zero=1"),
    Pair("local:4", GPT, "context=4"),
    Pair("local:4", DIT, "data=4"),
    Pair("local:4", DIT, "tensor=4"),
    Pair("local:4", RESNET, "data=4"),
    Pair("local:4", RESNET, "data=4,zero=2"),
    Pair("local:4", VOLUME, "data=4"),
    Pair("local:4", VOLUME, "spatial=4"),
    Pair("local:4", GRAPH, "edge=4"),
    Pair("local:4", EXPERTS, "data=4"),
    Pair("local:4", EXPERTS, "tensor=4"),
    Pair("local:4", MLP, "data=4,zero=1"),
    Pair("local:2", GPT, "data=2"),
    Pair("local:2", GPT, "data=2,zero=3"),
    Pair("local:2", GPT, "data=2,zero=2", 4),
    Pair("local:2", GPT, "tensor=2"),
    Pair("local:2", GPT, "context=2"),
    Pair("local:2", DIT, "tensor=2,sequence"),
    Pair("local:2", RESNET, "data=2"),
    Pair("local:2", UNET, "data=2"),
    Pair("local:2", UNET, "data=2,zero=3"),
    Pair("local:2", GRAPH, "edge=2"),
    Pair("local:2", EXPERTS, "data=2"),
    Pair("local:2", EXPERTS, "expert=2"),
)
