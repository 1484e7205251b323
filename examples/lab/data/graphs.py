"""Small random graphs for networks that classify nodes: communities that only edges tell, and rings that carry a message."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lab.data import SPLITS, Split

NODES = 32  # of every graph of communities
COMMUNITIES = 4
INSIDE, ACROSS = 0.5, 0.12  # probability of an edge within and between communities
BONDS = 2  # types of edges; a type says "inside" or "across"
WRONG_BONDS = 0.25  # part of the edges whose type lies
RING = 8  # nodes; the answer lies at the opposite one
VALUES = 4  # classes on the ring
IGNORE = -100  # label of nodes that are not asked


@dataclass(frozen=True)
class Graphs:
    """Graphs of N nodes each.

    types: (G, N) int64, what is known of a node. adjacency: (G, N, N) bool. bonds: (G, N, N) int64, type of each edge.
    positions: (G, N, k). labels: (G, N) int64, `IGNORE` where nothing is asked.
    """

    types: Tensor
    adjacency: Tensor
    bonds: Tensor
    positions: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.types)

    def __getitem__(self, index: slice | Tensor) -> Graphs:
        return Graphs(*(part[index] for part in self._parts()))

    def _parts(self) -> tuple[Tensor, ...]:
        return self.types, self.adjacency, self.bonds, self.positions, self.labels

    def to(self, device: torch.device | str) -> Graphs:
        return Graphs(*(part.to(device) for part in self._parts()))

    def complete(self) -> Graphs:
        """The same nodes with edges between all pairs; the true edges are forgotten, the positions stay."""
        pairs = ~torch.eye(self.types.shape[1], dtype=torch.bool, device=self.types.device)
        return replace(self, adjacency=pairs.expand_as(self.adjacency), bonds=torch.zeros_like(self.bonds))

    def flipped(self, generator: torch.Generator) -> Graphs:
        """The same graphs with a random sign for each column of positions; the generator lies on their device."""
        shape, device = (len(self), 1, self.positions.shape[-1]), self.positions.device
        return replace(
            self, positions=self.positions * (torch.randint(0, 2, shape, generator=generator, device=device) * 2 - 1)
        )


def communities(split: Split, count: int, seed: int, positions: Callable[[Tensor], Tensor]) -> Graphs:
    """Random graphs of four communities of at least three nodes, one node of each with its label known (types 1 to 4).

    A stochastic block model, as CLUSTER (arXiv:2003.00982); here all graphs have `NODES` nodes. The label of a node is its
    community, and nothing but the edges tells it. `positions` makes (G, N, k) of adjacency matrices (G, N, N).
    """
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    drawn = rng.integers(COMMUNITIES, size=(count, NODES))
    drawn[:, : 3 * COMMUNITIES] = np.tile(np.arange(COMMUNITIES), 3)  # three nodes in each
    labels = torch.from_numpy(rng.permuted(drawn, axis=1))
    same = labels[:, :, None] == labels[:, None]
    chance = torch.from_numpy(rng.random((count, NODES, NODES))).triu(1)  # 0 on and below the diagonal: no edge
    upper = (chance > 0) & (chance < torch.where(same, INSIDE, ACROSS))
    adjacency = upper | upper.mT
    wrong = torch.from_numpy(rng.random((count, NODES, NODES)) < WRONG_BONDS).triu(1)
    first = torch.stack([(labels == c).int().argmax(1) for c in range(COMMUNITIES)], 1)  # (G, K), one node of each
    types = torch.zeros_like(labels).scatter(1, first, torch.arange(1, COMMUNITIES + 1).expand(count, -1))
    return Graphs(types, adjacency, (same ^ (wrong | wrong.mT)).long(), positions(adjacency), labels)


def rings(split: Split, count: int, seed: int) -> Graphs:
    """Rings of `RING` nodes; each carries a value, and the root (types from `VALUES` on) is asked for the opposite one.

    Positions are the first four eigenvectors of a ring, in pairs of one eigenvalue: their rotation is arbitrary, so each ring
    has its own.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), 1])
    nodes = torch.arange(RING)
    adjacency = ((nodes[:, None] - nodes).abs() % (RING - 2) == 1).expand(count, -1, -1)
    values = torch.from_numpy(rng.integers(VALUES, size=(count, RING)))
    types, labels = values.clone(), torch.full_like(values, IGNORE)
    types[:, 0] += VALUES
    labels[:, 0] = values[:, RING // 2]
    phase = torch.from_numpy(rng.uniform(0, 2 * math.pi, (count, 1, 1))).float()
    angle = (2 * math.pi / RING * nodes[None, :, None] + phase) * torch.tensor([1.0, 2.0])
    positions = math.sqrt(2) * torch.cat([angle.cos(), angle.sin()], -1)  # (G, N, 4)
    order = torch.from_numpy(rng.permuted(np.tile(np.arange(RING), (count, 1)), axis=1))
    at = torch.arange(count)[:, None]
    moved = adjacency[at[..., None], order[:, :, None], order[:, None]]
    return Graphs(types[at, order], moved, torch.zeros_like(moved).long(), positions[at, order], labels[at, order])
