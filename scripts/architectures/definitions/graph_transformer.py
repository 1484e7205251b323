"""The Graph Transformer of ZINC (arXiv:2012.09699): attention along edges, with features of nodes and of edges.

Sizes follow configs/molecules_GraphTransformer_LapPE_ZINC_500k_sparse_graph_BN.json of the official repository. Its
input is a graph: `N x E` are its nodes and its directed edges. Scores and weighted sums along edges are products of
single values, which the counter leaves out; they are a hundredth of the whole.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

ATOMS, BONDS, POSITIONS = 28, 4, 8
"""Kinds of atoms and bonds in ZINC, and eigenvectors of the Laplacian that stand for positions."""


class GraphTransformer(nn.Module):
    """Ten layers over nodes and edges, the mean over the nodes, and a small network for one value.

    Args:
        width: features of a node and of an edge.
        layers: number of layers.
        heads: attention heads.
        positions: whether Laplacian positions are added to the nodes.
        norm: after attention and after the feed-forward network.
    """

    def __init__(
        self, width: int = 64, layers: int = 10, heads: int = 8, positions: bool = True,
        norm: Callable[[int], nn.Module] = nn.BatchNorm1d,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embed_nodes, self.embed_edges = nn.Embedding(ATOMS, width), nn.Embedding(BONDS, width)
        self.embed_positions = nn.Linear(POSITIONS, width) if positions else None
        self.layers = nn.ModuleList(Layer(width, heads, norm) for _ in range(layers))
        self.readout = nn.Sequential(
            nn.Linear(width, width // 2), nn.ReLU(), nn.Linear(width // 2, width // 4), nn.ReLU(),
            nn.Linear(width // 4, 1),
        )  # fmt: skip

    def forward(self, atoms: Tensor, bonds: Tensor, ends: Tensor, positions: Tensor) -> Tensor:
        """(N,) atoms, (E,) bonds, (2, E) nodes that each edge leads from and to, (N, P) positions, to (1,)."""
        nodes, edges = self.embed_nodes(atoms), self.embed_edges(bonds)
        if self.embed_positions is not None:
            nodes = nodes + self.embed_positions(positions)
        for layer in self.layers:
            nodes, edges = layer(nodes, edges, ends)
        value: Tensor = self.readout(nodes.mean(0))
        return value


class Layer(nn.Module):
    """Attention along edges, then a feed-forward network, for nodes and for edges."""

    def __init__(self, width: int, heads: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)) for _ in range(2)
        )
        self.norms = nn.ModuleList(norm(width) for _ in range(4))

    def forward(self, nodes: Tensor, edges: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) nodes, (E, D) edges and (2, E) ends to new nodes and edges."""
        attended = self.attention(nodes, edges, ends)
        results = []
        for i, (x, new) in enumerate(zip((nodes, edges), attended, strict=True)):
            x = self.norms[2 * i](x + self.out[i](new))
            results.append(self.norms[2 * i + 1](x + self.mlp[i](x)))
        return results[0], results[1]


class Attention(nn.Module):
    """Each node attends to the nodes that have an edge to it; the edge's features scale the score (equation 11)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.edge = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, nodes: Tensor, edges: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) nodes, (E, D) edges and (2, E) ends to (N, D) sums of values and (E, D) scores."""
        query, key, value, edge = (
            layer(x).unflatten(-1, (self.heads, -1))  # (N, D) -> (N, heads, D / heads)
            for layer, x in ((self.query, nodes), (self.key, nodes), (self.value, nodes), (self.edge, edges))
        )
        start, end = ends
        score = query[end] * key[start] * edge / key.shape[-1] ** 0.5
        weight = score.sum(-1, keepdim=True).clamp(-5, 5).exp()
        total = torch.zeros_like(value).index_add(0, end, weight * value[start])
        norm = torch.zeros_like(value[..., :1]).index_add(0, end, weight)
        return (total / (norm + 1e-6)).flatten(1), score.flatten(1)
