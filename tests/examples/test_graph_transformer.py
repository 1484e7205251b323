"""The Graph Transformer example: layer, positions and graphs are right, arms are of one size, and the counts are the paper's."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from lab import messages
from lab.data import graphs as data
from torch import Tensor, nn

example: Any = import_module("graph-transformer")
claims: Any = import_module("claims.graph-transformer")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def communities(count: int, seed: int = 0) -> data.Graphs:
    return data.communities("test", count, seed, example.laplacian_positions)


@pytest.mark.parametrize(("name", "count"), [("zinc", 588_929), ("pattern", 522_982), ("cluster", 524_026)])
def test_the_published_configurations_have_the_parameters_of_table_1(name: str, count: int) -> None:
    assert claims.published_parameters(name) == count


def dense(layer: Any, h: Tensor, mask: Tensor) -> Tensor:
    """The layer with torch's attention kernel: h (N, D), mask (N, N) of pairs (to, from) that may attend -> (N, D)."""
    q, k, v = (p(h).unflatten(-1, (layer.heads, -1)).transpose(0, 1)[None] for p in (layer.q, layer.k, layer.v))
    attended = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)[0]  # (heads, N, D / heads)
    result: Tensor = layer.nodes(h, attended.transpose(0, 1).flatten(1))
    return result


def test_attention_along_edges_equals_masked_attention_of_torch() -> None:
    graphs, layer = communities(1), example.TransformerLayer(16, 4).eval()
    assert (graphs.adjacency[0].sum(1) > 0).all()  # softmax over nothing would be undefined
    h, edges = torch.randn(data.NODES, 16), graphs.adjacency[0].nonzero().T.flip(0)
    ours, _ = layer(h, torch.ones(edges.shape[1], 16), edges)
    torch.testing.assert_close(ours, dense(layer, h, graphs.adjacency[0]), rtol=1e-4, atol=1e-5)


def test_weights_sum_to_one_over_the_edges_into_a_node() -> None:
    edges = communities(1).adjacency[0].nonzero().T
    layer = example.TransformerLayer(16, 4, bonds=True)
    weights, _ = layer.attend(torch.randn(data.NODES, 16), torch.randn(len(edges.T), 16), edges)
    reached = edges[1].unique()
    torch.testing.assert_close(messages.gather(weights, edges[1], data.NODES)[reached], torch.ones(len(reached), 4))


def test_an_edge_type_changes_the_answer_only_where_bonds_are_used() -> None:
    graphs = communities(2)
    other = replace(graphs, bonds=1 - graphs.bonds)
    for bonds in (0, data.BONDS):
        model = example.Network([example.TransformerLayer(16, 4, bool(bonds))], 16, 5, bonds, 4, 4).eval()
        assert torch.equal(model(graphs), model(other)) is not bool(bonds)


@pytest.mark.parametrize("name", ["bonds", "gcn", "gated"])
def test_renumbered_nodes_give_renumbered_answers(name: str) -> None:
    model, order = claims.build_arm(name, "smoke").double().eval(), torch.randperm(data.NODES)
    graphs = communities(4)
    graphs = replace(graphs, positions=graphs.positions.double())
    pairs = (slice(None), order[:, None], order)
    moved = data.Graphs(graphs.types[:, order], graphs.adjacency[pairs], graphs.bonds[pairs], graphs.positions[:, order],
                        graphs.labels[:, order])  # fmt: skip
    torch.testing.assert_close(model(moved), model(graphs)[:, order], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_information_travels_one_edge_for_each_layer(layers: int) -> None:
    assert claims.reach(layers) == layers


def test_positions_are_eigenvectors_of_the_laplacian() -> None:
    adjacency = communities(1, 3).adjacency[0]
    positions, delta = example.laplacian_positions(adjacency, 4), example.laplacian(adjacency)
    moved = delta @ positions
    values = (positions * moved).sum(0) / (positions * positions).sum(0)
    torch.testing.assert_close(moved, values * positions, rtol=1e-3, atol=1e-4)
    assert (values.diff() >= -1e-5).all()


def test_on_a_ring_the_given_positions_are_eigenvectors_too() -> None:
    rings = data.rings("test", 3, 0)
    delta = example.laplacian(rings.adjacency)
    values = (1 - torch.tensor([1.0, 2, 1, 2]).mul(2 * torch.pi / data.RING).cos()).expand(3, 1, 4)
    torch.testing.assert_close(delta @ rings.positions, values * rings.positions, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(rings.positions[0].sort(0).values, rings.positions[1].sort(0).values)  # each its rotation


def test_the_answer_on_a_ring_lies_at_the_opposite_node() -> None:
    rings = data.rings("val", 20, 0)
    apart = torch.linalg.matrix_power(rings.adjacency.double(), 3)
    nearer = apart + torch.linalg.matrix_power(rings.adjacency.double(), 2) + rings.adjacency + torch.eye(data.RING)
    graph, root = (rings.types >= data.VALUES).nonzero(as_tuple=True)
    opposite = (nearer[graph, root] == 0).nonzero()[:, 1]
    assert torch.equal(rings.types[graph, opposite], rings.labels[graph, root])


def test_each_community_has_exactly_one_known_node() -> None:
    graphs = communities(10)
    known = graphs.types > 0
    assert (known.sum(1) == data.COMMUNITIES).all()
    assert torch.equal(graphs.types[known] - 1, graphs.labels[known])
    assert torch.equal(graphs.adjacency, graphs.adjacency.mT)
    assert not graphs.adjacency.diagonal(dim1=1, dim2=2).any()


def test_a_flip_changes_signs_of_whole_eigenvectors_and_nothing_else() -> None:
    graphs = communities(20)
    flipped = graphs.flipped(torch.Generator().manual_seed(0))
    signs = (flipped.positions / graphs.positions).nanmean(1)  # (G, k); where a position is 0 its sign is unknown
    assert set(signs.round().flatten().tolist()) == {-1.0, 1.0}
    torch.testing.assert_close(flipped.positions, graphs.positions * signs.round()[:, None])
    assert torch.equal(flipped.adjacency, graphs.adjacency)


def test_drawn_weights_are_those_of_the_node_and_sum_to_one() -> None:
    model, graphs = example.build(example.PRESETS["smoke"]).eval(), communities(1)
    weights = example.attention_of(model, graphs, 5)
    assert weights.sum().item() == pytest.approx(1, abs=1e-5)
    assert not weights[~graphs.adjacency[0, 5]].any()


@pytest.mark.parametrize("preset", ["quick", "full"])
@pytest.mark.parametrize("names", [list(claims.NAMES), [f"ring_{name}" for name in claims.RINGS]])
def test_arms_of_a_task_have_about_as_many_parameters(preset: str, names: list[str]) -> None:
    sizes = [claims.count_parameters(claims.build_arm(name, preset)) for name in names]
    assert max(sizes) < 1.1 * min(sizes), dict(zip(names, sizes, strict=True))


def test_all_seeds_draw_their_own_graphs() -> None:
    assert not torch.equal(communities(4, 0).adjacency, communities(4, 1).adjacency)
    assert not torch.equal(data.rings("test", 4, 0).types, data.rings("test", 4, 1).types)


def test_every_arm_was_searched_alike_and_the_file_to_read_uses_what_was_chosen() -> None:
    path = Path(claims.__file__).parent / "graph-transformer.searches.json"
    kept = json.loads(path.read_text("utf-8"))
    assert kept["learning rate, communities"]["arms"]["edges"]["chosen"] == example.RATE
    assert set(kept["learning rate, communities"]["arms"]) == set(claims.NAMES)
    assert set(kept["learning rate, ring"]["arms"]) == {f"ring_{name}" for name in claims.RINGS}
    for search in kept.values():
        assert len({tuple(each["grid"]) for each in search["arms"].values()}) == 1


@pytest.mark.parametrize("name", ["edges", "bonds", "gcn", "gated"])
def test_a_step_runs_in_bfloat16(name: str) -> None:
    model, graphs = claims.build_arm(name, "smoke"), communities(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nn.functional.cross_entropy(model(graphs).flatten(0, 1), graphs.labels.flatten())
    loss.backward()
    assert all(each.grad.isfinite().all() for each in model.parameters() if each.grad is not None)
