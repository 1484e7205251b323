"""The example on the Graph Transformer: layer, counts, graphs and positions are right, and the script runs."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.torch

gt: ModuleType = importlib.import_module("graph-transformer")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("graph-transformer")
    gt.main(["--preset", "smoke", "--device", "cpu", "--out", str(out)])
    found: dict[str, Any] = json.loads((out / "record.json").read_text())
    return found | {"out": str(out)}


def test_a_smoke_run_leaves_results_and_figures(record: dict[str, Any]) -> None:
    expected = {"positions_gain", "edges_gain", "ring_edges_4", "gcn_lead_smallest_set", "positions_over_edges_1024"}
    assert expected <= set(record["results"])
    assert [figure["name"] for figure in record["figures"]] == [
        "graph_positions",
        "attention",
        "ring",
        "arms",
        "data",
        "cost",
    ]
    for figure in record["figures"]:
        assert all((Path(record["out"]) / figure[style]).stat().st_size > 1000 for style in ("light", "dark"))


@pytest.mark.parametrize(("name", "count"), [("zinc", 588_929), ("pattern", 522_982), ("cluster", 524_026)])
def test_the_published_configurations_have_the_parameters_of_table_1(name: str, count: int) -> None:
    assert gt.count_parameters(gt.published(name)) == count


def test_attention_along_edges_equals_masked_attention_of_torch() -> None:
    graphs = gt.communities("test", 1, 0)
    layer = gt.TransformerLayer(16, 4).eval()
    h = torch.randn(gt.NODES, 16)
    linked = graphs.adjacency[0] & (graphs.adjacency[0].sum(1) > 0)[:, None]
    edges = linked.nonzero().T.flip(0)
    ours, _ = layer(h, torch.ones(edges.shape[1], 16), edges)
    torch.testing.assert_close(ours, gt.dense_layer(layer, h, linked), rtol=1e-4, atol=1e-5)


def test_weights_sum_to_one_over_the_edges_into_a_node() -> None:
    edges = gt.communities("test", 1, 0).adjacency[0].nonzero().T
    weights, _ = gt.TransformerLayer(16, 4, bonds=True).attend(
        torch.randn(gt.NODES, 16), torch.randn(len(edges.T), 16), edges
    )
    reached = edges[1].unique()
    torch.testing.assert_close(gt.gather(weights, edges[1], gt.NODES)[reached], torch.ones(len(reached), 4))


def test_an_edge_type_changes_the_answer_only_where_bonds_are_used() -> None:
    graphs = gt.communities("test", 2, 0)
    other = gt.replace(graphs, bonds=1 - graphs.bonds)
    for bonds in (0, gt.BONDS):
        model = gt.Network([gt.TransformerLayer(16, 4, bool(bonds))], 16, 5, bonds, 4, 4).eval()
        assert torch.equal(model(graphs), model(other)) is not bool(bonds)


def test_renumbered_nodes_give_renumbered_answers() -> None:
    assert gt.equivariance_error(gt.communities("test", 4, 1)) < 1e-12


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_information_travels_one_edge_per_layer(layers: int) -> None:
    assert gt.reach(layers) == layers


def test_positions_are_eigenvectors_of_the_laplacian() -> None:
    adjacency = gt.communities("test", 1, 3).adjacency[0]
    positions, delta = gt.laplacian_positions(adjacency, 4), gt.laplacian(adjacency)
    moved = delta @ positions
    values = (positions * moved).sum(0) / (positions * positions).sum(0)
    torch.testing.assert_close(moved, values * positions, rtol=1e-3, atol=1e-4)
    assert (values.diff() >= -1e-5).all()


def test_on_a_ring_the_given_positions_are_eigenvectors_too() -> None:
    rings = gt.rings("test", 3, 0)
    delta = gt.laplacian(rings.adjacency)
    values = (1 - torch.tensor([1.0, 2, 1, 2]).mul(2 * torch.pi / gt.RING).cos()).expand(3, 1, 4)
    torch.testing.assert_close(delta @ rings.positions, values * rings.positions, rtol=1e-4, atol=1e-4)


def test_the_answer_on_a_ring_lies_at_the_opposite_node() -> None:
    rings = gt.rings("val", 20, 0)
    apart = torch.linalg.matrix_power(rings.adjacency.double(), 3)
    nearer = apart + torch.linalg.matrix_power(rings.adjacency.double(), 2) + rings.adjacency + torch.eye(gt.RING)
    graph, root = (rings.types >= gt.VALUES).nonzero(as_tuple=True)
    opposite = (nearer[graph, root] == 0).nonzero()[:, 1]
    assert torch.equal(rings.types[graph, opposite], rings.labels[graph, root])


def test_each_community_has_exactly_one_known_node() -> None:
    graphs = gt.communities("train", 10, 0)
    known = graphs.types > 0
    assert (known.sum(1) == gt.COMMUNITIES).all()
    assert torch.equal(graphs.types[known] - 1, graphs.labels[known])
    assert torch.equal(graphs.adjacency, graphs.adjacency.mT)
    assert not graphs.adjacency.diagonal(dim1=1, dim2=2).any()


def test_all_arms_have_nearly_the_same_parameters() -> None:
    preset = gt.PRESETS["quick"]
    counts = [
        gt.count_parameters(gt.make(arm, preset, gt.width_of(arm, preset, 5, 4), 5, 4))
        for arm in gt.arms_of(preset).values()
    ]
    assert max(counts) < 1.06 * min(counts)


def test_pretrained_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="No trained weights"):
        gt.main(["--preset", "smoke", "--device", "cpu", "--weights", "pretrained", "--out", str(tmp_path)])
