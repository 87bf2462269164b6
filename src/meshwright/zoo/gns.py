"""Graph network simulator: encode, process, decode (Sanchez-Gonzalez et al., 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meshwright.task import Task
from meshwright.zoo.sizes import config_of
from meshwright.zoo.synthetic import fixed, seeded

SPACE = 2  # particles move in a plane
NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1), (0, -1), (-1, 0), (-1, -1), (-1, 1))


@dataclass(frozen=True)
class GNSConfig:
    """A graph has `side`² particles with eight edges each; `steps` of message passing."""

    width: int = 128
    steps: int = 10
    side: int = 256
    history: int = 5
    global_batch: int = 1


SIZES = {
    "tiny": GNSConfig(16, steps=2, side=8, history=2),
    "small": GNSConfig(64, steps=4, side=32),
    "full": GNSConfig(),
}

Graph = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of one graph: velocities [N, history * 2], edges [2, E] (from, to), displacements [E, 3],
accelerations [N, 2]. Of several, each with the batch in front."""


class MLP(nn.Sequential):
    def __init__(self, features: int, width: int, out: int, norm: bool = True) -> None:
        layers = [
            nn.Linear(features, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, out),
        ]
        super().__init__(*layers, *([nn.LayerNorm(out)] if norm else []))


class Interaction(nn.Module):
    """Edges are updated from their ends, nodes from the sum of their incoming edges."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.edge_mlp = MLP(3 * width, width, width)
        self.node_mlp = MLP(2 * width, width, width)

    def forward(
        self, nodes: Tensor, edges: Tensor, senders: Tensor, receivers: Tensor
    ) -> tuple[Tensor, Tensor]:
        """nodes [N, D], edges [E, D], senders and receivers [E]."""
        messages = self.edge_mlp(torch.cat([edges, nodes[senders], nodes[receivers]], dim=-1))
        received = torch.zeros_like(nodes).index_add_(0, receivers, messages)
        nodes = nodes + self.node_mlp(torch.cat([nodes, received], dim=-1))
        return nodes, edges + messages


class GraphNetwork(nn.Module):
    """`model(velocities, edges, displacements) -> accelerations`, shapes as in `Graph`."""

    def __init__(self, config: GNSConfig) -> None:
        super().__init__()
        self.config = config
        self.encode_nodes = MLP(SPACE * config.history, config.width, config.width)
        self.encode_edges = MLP(SPACE + 1, config.width, config.width)
        self.process = nn.ModuleList(Interaction(config.width) for _ in range(config.steps))
        self.decode = MLP(config.width, config.width, SPACE, norm=False)

    def forward(self, velocities: Tensor, edge_index: Tensor, displacements: Tensor) -> Tensor:
        if edge_index.dim() == 3:
            return self.several(velocities, edge_index, displacements)
        senders, receivers = edge_index
        nodes, edges = self.encode_nodes(velocities), self.encode_edges(displacements)
        for interaction in self.process:
            nodes, edges = interaction(nodes, edges, senders, receivers)
        out: Tensor = self.decode(nodes)
        return out

    def several(self, velocities: Tensor, edge_index: Tensor, displacements: Tensor) -> Tensor:
        """Several graphs as one whose parts are not connected."""
        graphs, nodes = velocities.shape[:2]
        first = nodes * torch.arange(graphs, device=edge_index.device)
        joined = (edge_index + first[:, None, None]).transpose(0, 1).flatten(1)
        out: Tensor = self(velocities.flatten(0, 1), joined, displacements.flatten(0, 1))
        return out.view(graphs, nodes, SPACE)


def acceleration_loss(model: nn.Module, batch: Graph) -> Tensor:
    velocities, edges, displacements, accelerations = batch
    return F.mse_loss(model(velocities, edges, displacements), accelerations)


def draw(config: GNSConfig, generator: torch.Generator) -> Graph:
    graphs = [_graph(config, generator) for _ in range(config.global_batch)]
    if config.global_batch == 1:
        return graphs[0]
    velocities, edges, displacements, accelerations = (
        torch.stack(parts) for parts in zip(*graphs, strict=True)
    )
    return velocities, edges, displacements, accelerations


def _graph(config: GNSConfig, generator: torch.Generator) -> Graph:
    """Particles near the points of a grid that wraps around, springs between neighbours."""
    side = config.side
    count = side * side
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    grid = torch.stack([row, column], dim=-1).view(count, SPACE)
    moved = 0.3 * torch.randn(count, SPACE, generator=generator)
    senders, receivers, displacements = [], [], []
    for step in NEIGHBOURS:
        offset = torch.tensor(step)
        to = (grid + offset).remainder(side)
        to_index = to[:, 0] * side + to[:, 1]
        senders.append(torch.arange(count))
        receivers.append(to_index)
        displacements.append(offset + moved[to_index] - moved)
    start, end, apart = torch.cat(senders), torch.cat(receivers), torch.cat(displacements)
    distance = apart.norm(dim=-1, keepdim=True)
    velocities = 0.3 * torch.randn(count, SPACE * config.history, generator=generator)
    force = apart * (1.2 - distance)  # springs of one length
    accelerations = torch.zeros(count, SPACE).index_add_(0, end, force)
    drag = fixed(SPACE * config.history, SPACE) / (SPACE * config.history) ** 0.5
    accelerations = 0.2 * accelerations + velocities @ drag
    # Particles are numbered in no order, as in a simulation after some time.
    number = torch.randperm(count, generator=generator)
    place = torch.argsort(number)
    edges = torch.stack([number[start], number[end]])
    return velocities[place], edges, torch.cat([apart, distance], dim=-1), accelerations[place]


def gns_task(
    size: str = "small",
    width: int | None = None,
    steps: int | None = None,
    side: int | None = None,
    history: int | None = None,
    global_batch: int | None = None,
) -> Task:
    """Accelerations of particles; the batch is one graph, or `global_batch` of them.

    `size=full` has 65,536 particles and 524,288 edges, with the paper's network.
    """
    config = config_of(
        SIZES, size, width=width, steps=steps, side=side, history=history,
        global_batch=global_batch,
    )  # fmt: skip
    return Task(
        model=partial(GraphNetwork, config),
        loss=acceleration_loss,
        batch=draw(config, seeded(0)),
        name="gns",
    )
