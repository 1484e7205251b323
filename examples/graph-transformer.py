# %% [markdown]
# # Graph Transformer: what does attention gain from the edges of a graph, and what do they deny it?
#
# A transformer takes its tokens for a complete graph; the Graph Transformer gives each node only its neighbours, and
# positions from the Laplacian. Here is the model, trained to find the communities of random graphs, the paper's CLUSTER task in
# small. The experiments take positions, edges and normalisation away, set it beside message passing of the same size, and show
# the price on a ring: news travels one edge for each layer.
#
# | symbol (card, arXiv:2012.09699) | here | meaning |
# |---|---|---|
# | $h_i$, $e_{ij}$ | `h`, `e` | features of nodes (n, D) and of edges (E, D); a batch is one graph with several parts |
# | $\mathcal N_i$ | `edges` | (2, E): from node $j$ (row 0) to node $i$ (row 1) |
# | $Q^k, K^k, V^k, O$, $E^k$ | `q`, `k`, `v`, `out`, `edge` | projections of all heads; of the edge features |
# | $w^k_{ij}$ | `weights` | (E, heads), sums to one over the edges into $i$ |
# | $\Delta$, $U$ | `laplacian`, `positions` | normalised Laplacian (N, N); its eigenvectors (N, k) |

# %%
# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from lab.data.graphs import COMMUNITIES, IGNORE, NODES, Graphs, communities
from lab.figures import Figure, Style, panels
from lab.messages import gather
from lab.run import Run
from lab.training import count_parameters, fit, minibatches, seed_everything
from matplotlib.collections import LineCollection
from torch import Tensor, nn

POSITIONS = 4  # k, eigenvectors of each node
RATE = 6e-3  # peak learning rate, see claims/graph-transformer.searches.json
SYNCHRONISATIONS_PER_STEP = 1  # the edges of a batch are found in its adjacency


class Preset(NamedTuple):
    """Few and all training graphs, test graphs, steps of both tasks, graphs in a step, D, layers, heads, factor on the rate."""

    sizes: tuple[int, int] = (12, 400)
    test: int = 200
    steps: int = 200
    ring_steps: int = 400
    batch: int = 16
    width: int = 32
    layers: int = 3
    heads: int = 4
    rate: float = 1.0


PRESETS = {
    "smoke": Preset((6, 12), test=8, steps=2, ring_steps=2),
    "quick": Preset(),
    "full": Preset((50, 4000), test=1000, steps=4000, ring_steps=2000, width=64, layers=6, heads=8, rate=0.25),
}

# %% [markdown]
# ## A graph and its positions
# Nodes have no order. The eigenvectors of the normalised Laplacian with the smallest non-trivial eigenvalues vary slowly along
# edges, so near nodes get near numbers:
# $$\Delta = I - D^{-1/2} A D^{-1/2}$$
# Neither their sign nor, where eigenvalues coincide, their rotation is determined; signs are drawn anew for each batch.


# %%
def laplacian(adjacency: Tensor) -> Tensor:
    """Normalised Laplacian of symmetric adjacency matrices (..., N, N), bool; a node without an edge counts as degree 1."""
    a = adjacency.float()
    scale = a.sum(-1).clamp(min=1).rsqrt()
    return torch.eye(a.shape[-1]) - scale[..., :, None] * a * scale[..., None, :]


def laplacian_positions(adjacency: Tensor, count: int = POSITIONS) -> Tensor:
    """(..., N, count): eigenvectors of the smallest eigenvalues but the first, of length sqrt(N), sign as it comes."""
    vectors = torch.linalg.eigh(laplacian(adjacency)).eigenvectors
    return vectors[..., 1 : count + 1] * adjacency.shape[-1] ** 0.5


def places(graph: Graphs) -> Tensor:
    """(N, 2): where to draw the nodes of one graph, those of a community around one centre."""
    labels, spots = graph.labels[0], torch.zeros(NODES, 2)
    for c in range(COMMUNITIES):
        members = (labels == c).nonzero()[:, 0]
        angle = 2 * torch.pi * torch.arange(len(members)) / len(members) + 0.4
        centre = torch.tensor([2.0 * (c % 2) - 1, 1.8 * (c // 2) - 0.9])
        spots[members] = centre + 0.62 * torch.stack([angle.cos(), angle.sin()], -1)
    return spots


def draw_nodes(ax: Any, style: Style, graph: Graphs, title: str, **look: Any) -> None:
    """One graph with its edges; `look` colours the nodes."""
    spots = places(graph)
    lines = spots[graph.adjacency[0].triu(1).nonzero()].numpy()  # (edges, 2 ends, 2)
    ax.add_collection(LineCollection(list(lines), colors=style.muted, linewidths=0.4, alpha=0.6, zorder=1))
    ax.scatter(*spots.T.numpy(), s=44, zorder=2, **({"edgecolors": style.ink, "linewidths": 0.8} | look))
    ax.set_title(title)
    ax.set_axis_off()


def draw_graph(style: Style, graph: Graphs) -> Figure:
    """The same graph three times: what is known, and two eigenvectors."""
    figure, (axes,) = panels(1, 3, width=5.4, height=2.2)
    known = [style.cycle[t - 1] if t else style.panel for t in graph.types[0].tolist()]
    draw_nodes(axes[0], style, graph, "known labels", c=known)
    for ax, vector in zip(axes[1:], (0, 1), strict=True):
        values = graph.positions[0, :, vector].numpy()
        limit = float(abs(values).max())
        draw_nodes(
            ax, style, graph, f"eigenvector {vector + 2}", c=values, cmap=style.diverging, vmin=-limit, vmax=limit
        )
    return figure


if __name__ == "__main__":
    run = Run.start("graph-transformer", pretrained=False)
    preset = PRESETS[run.preset]
    test = communities("test", preset.test, run.seeds[0], laplacian_positions)
    run.figure(
        "graph_positions",
        partial(draw_graph, graph=test[:1]),
        caption="A test graph, its communities drawn apart. Left: all that the nodes carry, one label for each community. Then "
        "the second and third eigenvectors of the Laplacian, as positions: nodes of one community tend to have like values, "
        "although no edge says which community it belongs to.",
        alt="A graph of 32 nodes in four groups, drawn three times: with one coloured node in each group, and with all nodes "
        "coloured by the value of the second and of the third Laplacian eigenvector.",
    )

# %% [markdown]
# ## Attention along edges
# Each node asks, its neighbours answer, and the weights sum to one over the edges into a node:
# $$\hat h_i = O\,\Vert_k \sum_{j\in\mathcal N_i} w^k_{ij}\, V^k h_j, \qquad
# w^k_{ij} = \mathrm{softmax}_j\big(Q^k h_i\cdot K^k h_j / \sqrt{d_k}\big)$$
# With edge features, $E^k e_{ij}$ multiplies the score, and the products of a layer, projected, are the next $e_{ij}$.
# Residuals, batch normalisation and a feed-forward network follow. The same code attends between all pairs where all pairs are
# given as edges.


# %%
class Branches(nn.Module):
    """What follows attention, for nodes or for edges: projection, residual, norm, feed-forward, residual, norm (Eqs. 4-7)."""

    def __init__(self, width: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.out, self.norm1, self.norm2 = nn.Linear(width, width), norm(width), norm(width)
        self.ffn = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, attended: Tensor) -> Tensor:
        x = self.norm1(x + self.out(attended))
        return self.norm2(x + self.ffn(x))


class TransformerLayer(nn.Module):
    """Attention of each node over its edges, with a channel of edge features where `bonds`: h (n, D), e (E, D) -> h, e."""

    def __init__(self, width: int, heads: int = 4, bonds: bool = False, norm: type[nn.Module] = nn.BatchNorm1d) -> None:
        super().__init__()
        self.heads, self.bonds = heads, bonds
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.nodes = Branches(width, norm)
        if bonds:
            self.edge, self.edges = nn.Linear(width, width, bias=False), Branches(width, norm)

    def attend(self, h: Tensor, e: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (E, heads), and the products (E, heads, D / heads) whose sums are the scores."""
        source, target = edges
        q, k = (projection(h).unflatten(-1, (self.heads, -1)) for projection in (self.q, self.k))
        products = q.index_select(0, target) * k.index_select(0, source) / q.shape[-1] ** 0.5
        if self.bonds:
            products = products * self.edge(e).unflatten(-1, (self.heads, -1))  # Eq. 12
        exponents = products.sum(-1).clamp(-5, 5).exp()  # clamped for stability, as in the paper
        sums = gather(exponents, target, len(h)).index_select(0, target)  # faster than [target]
        return exponents / sums.clamp(min=1e-6), products

    def forward(self, h: Tensor, e: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        weights, products = self.attend(h, e, edges)
        values = self.v(h).unflatten(-1, (self.heads, -1)).index_select(0, edges[0])
        attended = gather(weights[..., None] * values, edges[1], len(h)).flatten(1)  # (n, heads, D / heads) -> (n, D)
        return self.nodes(h, attended), self.edges(e, products.flatten(1)) if self.bonds else e


class Network(nn.Module):
    """Embeddings, layers, and a readout of three linear maps that halve the width: graphs -> scores (G, N, K).

    `bonds` types of edges, 0 where edges carry nothing; `positions` eigenvectors, 0 for none.
    """

    def __init__(
        self, layers: Sequence[nn.Module], width: int, types: int, bonds: int, positions: int, classes: int
    ) -> None:
        super().__init__()
        self.types, self.layers = nn.Embedding(types, width), nn.ModuleList(layers)
        self.bonds = nn.Embedding(bonds, width) if bonds else None
        self.positions = nn.Linear(positions, width) if positions else None
        first, second, last = (nn.Linear(a, b) for a, b in pairwise((width, width // 2, width // 4, classes)))
        self.readout = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)

    def start(self, graphs: Graphs) -> tuple[Tensor, Tensor, Tensor]:
        """h (n, D), e (E, D) and edges (2, E) of the graphs as one graph of n = G N nodes."""
        graph, target, source = graphs.adjacency.nonzero(as_tuple=True)
        edges = torch.stack([source, target]) + graph * graphs.types.shape[1]
        h = self.types(graphs.types.flatten())
        if self.positions is not None:
            h = h + self.positions(graphs.positions.flatten(0, 1))  # Eq. 1: added once, at the input
        if self.bonds is not None:
            return h, self.bonds(graphs.bonds[graph, target, source]), edges
        return h, h.new_ones(edges.shape[1], h.shape[1]), edges

    def forward(self, graphs: Graphs) -> Tensor:
        h, e, edges = self.start(graphs)
        for layer in self.layers:
            h, e = layer(h, e, edges)
        return self.readout(h).unflatten(0, graphs.types.shape)


def build(preset: Preset) -> Network:
    """An untrained Graph Transformer for communities."""
    layers = [TransformerLayer(preset.width, preset.heads) for _ in range(preset.layers)]
    return Network(layers, preset.width, COMMUNITIES + 1, 0, POSITIONS, COMMUNITIES)


if __name__ == "__main__":
    model = build(preset)
    h, e, edges = model.start(test[:1])
    weights, _ = model.layers[0].attend(h, e, edges)  # type: ignore[operator]
    sums = gather(weights, edges[1], NODES)[edges[1]]
    run.show("attention_sums", f"{NODES} nodes, {edges.shape[1]} directed edges; weights {tuple(weights.shape)} sum to "
             f"{sums.min():.3f} to {sums.max():.3f} over the edges into a node")  # fmt: skip

# %% [markdown]
# ## Train it to find communities
# One node of each community has a label; all other nodes start equal, and only edges tell where they belong.


# %%
def train(
    model: nn.Module, run: Run, graphs: Graphs, steps: int, seed: int, rate: float = RATE, flips: bool = True
) -> None:
    """Trains on all nodes that are asked; with `flips`, the signs of positions are drawn anew for each batch."""
    graphs, generator = graphs.to(run.device), torch.Generator(run.device).manual_seed(seed)

    def loss(model: nn.Module, index: Tensor) -> Tensor:
        batch = graphs[index].flipped(generator) if flips else graphs[index]
        return nn.functional.cross_entropy(model(batch).flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORE)

    preset, order = PRESETS[run.preset], torch.arange(len(graphs), device=run.device)
    batches = minibatches([order], preset.batch, steps, seed)
    fit(model, batches, loss, steps=steps, learning_rate=rate * preset.rate, device=run.device)


@torch.inference_mode()
def attention_of(model: Network, graphs: Graphs, node: int) -> Tensor:
    """The weights that a node of the first graph gives to all nodes (N,) in the last layer, mean over heads."""
    h, e, edges = model.start(graphs)
    layer: Any
    for layer in model.layers:
        weights, (h, e) = layer.attend(h, e, edges)[0].mean(1), layer(h, e, edges)
    into = edges[1] == node
    return torch.zeros(graphs.types.numel(), device=h.device).index_add(0, edges[0, into], weights[into])[:NODES].cpu()


def draw_answers(style: Style, graph: Graphs, answers: Tensor, node: int, weights: Tensor) -> Figure:
    """Left: the communities that the network finds (N,). Right: the weights (N,) that one node gives."""
    figure, axes = panels(1, 2, width=5.4, height=2.8)
    left, right = axes[0]
    wrong = (answers != graph.labels[0]).tolist()
    rims = {"edgecolors": [style.ink if each else "none" for each in wrong], "linewidths": 2.0}
    draw_nodes(
        left, style, graph, f"{wrong.count(False)} of {NODES} right", c=[style.cycle[c] for c in answers], **rims
    )
    draw_nodes(right, style, graph, "whom one node asks", c=weights.numpy(), cmap=style.sequential, vmin=0)
    right.scatter(*places(graph)[node].numpy(), marker="*", s=200, color=style.cycle[1], edgecolors=style.ink, zorder=3)
    return figure


if __name__ == "__main__":
    seed_everything(run.seeds[0])
    model = build(preset)
    graphs = communities("train", preset.sizes[-1], run.seeds[0], laplacian_positions)
    train(model, run, graphs, preset.steps, run.seeds[0])
    with torch.inference_mode():
        answers = model(test.to(run.device)).argmax(-1).cpu()  # (G, N)
    right = 100 * (answers == test.labels).double().mean()
    run.show("trained", f"{count_parameters(model):,} parameters; {right:.1f} % of the nodes of test graphs right")
    typical = (answers == test.labels).sum(1).argsort()[len(test) // 2 :][:1]  # the median of all test graphs
    graph, answer = test[typical], answers[typical][0]
    node = int(graph.adjacency[0].sum(1).argmax())
    weights = attention_of(model, graph.to(run.device), node)
    run.figure(
        "attention",
        partial(draw_answers, graph=graph, answers=answer, node=node, weights=weights),
        caption="A typical test graph, the median by right answers. Left: the communities that the trained network finds (rims: "
        "wrong). Right: whom the best connected node (star) attends to in the last layer; only its neighbours have weight.",
        alt="The same graph twice: nodes coloured by the community that the network finds, most as they are grouped; and "
        "coloured by the attention weight that one starred node gives them.",
    )
    run.finish()

# %% [markdown]
# ## Unlike the paper
# - Small: three layers of width 32 in place of ten of 64 to 80, and four heads in place of eight.
# - Graphs of 32 nodes with four communities; CLUSTER has six, of 5 to 35 nodes each.
# - A fixed number of steps of AdamW with a cosine; the paper trains with Adam until the validation loss stays.
# - The loss is not weighted by class, as the communities are equally likely here.
# - No trained weights were published, so there is none to try on data of your own.
