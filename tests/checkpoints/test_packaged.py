"""Weights read from the files of other libraries give what these libraries would give, and are read as what they are."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from messages import constant, field, model, node
from published import CARDS, ROOT

from scripts.cards.library import load_library
from scripts.cards.packaged import Packaged
from scripts.checkpoints import networks, packaged
from scripts.checkpoints.pictures import Picture
from scripts.checkpoints.trying import choose_packaged
from scripts.checkpoints.wire import message, onnx, tensorflow_constants

np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]
WORDS = load_library(ROOT / "model_cards", ROOT)[0].vocabulary


def chance(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype("f4")


@pytest.mark.parametrize("listed", [True, False])
def test_constants_of_a_tensorflow_graph_are_read(listed: bool) -> None:
    kernel, bias = chance(3, 3, 2), chance(1)
    other = field(1, field(1, "sum") + field(2, "Add"))
    found = tensorflow_constants(constant("a/kernel", kernel, listed) + other + constant("a/bias", bias, listed))
    assert list(found) == ["a/kernel", "a/bias"]
    assert np.array_equal(found["a/kernel"], kernel)
    assert np.array_equal(found["a/bias"], bias)


@pytest.mark.parametrize("broken", [b"\x0a\x05ab", b"\x0b", b"\x08\xff", b"\x0d\x00"])
def test_what_is_no_message_is_told(broken: bytes) -> None:
    with pytest.raises(ValueError, match=r"message ends|no kind"):
        message(broken)


@pytest.mark.parametrize("listed", [True, False])
def test_a_graph_of_onnx_gives_what_the_same_modules_give(listed: bool) -> None:
    nn = torch.nn
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1, groups=1), nn.BatchNorm2d(4, eps=0.1), nn.ReLU(),
        nn.ConvTranspose2d(4, 4, 2, stride=2, groups=2), nn.Sigmoid(),
    ).eval()  # fmt: skip
    torch.nn.init.normal_(layers[1].running_mean)
    weights = {name: each.numpy() for name, each in layers.state_dict().items() if each.ndim}
    norm = [f"1.{each}" for each in ("weight", "bias", "running_mean", "running_var")]
    steps = [
        node("Conv", ["x", "0.weight", "0.bias"], "a", group=1, strides=[2, 2], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["a", *norm], "b", epsilon=0.1),
        node("Relu", ["b"], "c"),
        node("ConvTranspose", ["c", "3.weight", "3.bias"], "d", group=2, strides=[2, 2], pads=[0, 0, 0, 0]),
        node("Sigmoid", ["d"], "e"),
        node("Add", ["e", "e"], "f"),
    ]
    graph = onnx(model(steps, weights, ["e", "f"], listed))
    x = torch.rand(1, 3, 8, 8)
    with torch.inference_mode():
        once, twice = networks.run_onnx(graph, {name: torch.from_numpy(w) for name, w in graph.tensors.items()}, x)
        assert torch.allclose(once, layers(x), atol=1e-6)
        assert torch.allclose(twice, 2 * once)


def brain_weights() -> dict[str, Any]:
    widths = [(1, 8), (8, 8), (8, 16), (16, 16), (16, 32), (32, 32), (64, 32), (32, 16), (16, 8), (8, 1)]
    made = {}
    for number, (before, after) in enumerate(widths):
        name = f"conv3d_{number}" if number else "conv3d"
        side = 1 if after == 1 else 3
        made |= {f"{name}/kernel": chance(side, side, side, before, after), f"{name}/bias": chance(after)}
    for number, (before, after) in enumerate([(32, 32), (32, 16), (16, 8)]):
        made[f"conv3d_transpose_{number}/kernel".replace("_0", "")] = chance(3, 3, 3, after, before)
    return {name: torch.from_numpy(each) for name, each in made.items()}


def test_the_brain_network_gives_a_logit_for_each_voxel() -> None:
    assert networks.brain_unet(brain_weights(), torch.rand(1, 1, 16, 16, 24)).shape == (1, 1, 16, 16, 24)


def test_a_transposed_convolution_lies_as_that_of_tensorflow_does() -> None:
    """It is the gradient of the convolution with a stride of two, which TensorFlow pads at the far end alone."""
    weights = brain_weights()
    kernel = weights["conv3d_transpose_2/kernel"].permute(4, 3, 0, 1, 2)
    small, large = torch.rand(1, 16, 2, 3, 4), torch.zeros(1, 8, 4, 6, 8, requires_grad=True)
    strided = torch.nn.functional.conv3d(torch.nn.functional.pad(large, (0, 1) * 3), kernel, stride=2)
    (strided * small).sum().backward()
    assert torch.allclose(networks._enlarged(weights, 2, small), large.grad, atol=1e-4)


def test_a_brain_is_cut_where_the_network_says_and_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from scripts.checkpoints.volumes import Volume

    pytest.importorskip("skimage")
    values = np.zeros((20, 24, 16), dtype="f4")
    values[5:15, 6:18, 4:12] = 100
    volume = Volume(values, (1, 1, 2))
    monkeypatch.setattr(networks, "brain_unet", lambda _, x: x - 0.5)
    path = tmp_path / "graph.pb"
    path.write_bytes(constant("any", chance(1)))
    runner = packaged._brain_mask(path, Picture(volume.image(), (), volume=volume), "cpu")
    found = runner.read(runner.forward())
    (brain,) = found.things
    assert brain.mask is not None
    assert brain.mask.shape == volume.image().size[::-1]
    assert 0.95 < brain.mask.sum() / (volume.views() > 50).sum() < 1.05
    millilitres = re.fullmatch(r"([\d.,]+) ml", found.remark)
    assert millilitres is not None
    assert float(millilitres[1]) == pytest.approx(10 * 12 * 8 * 2 / 1000, abs=0.6)


def test_a_peak_of_the_heatmap_becomes_a_box_on_the_picture(tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.zeros((64, 128, 3), dtype="u1")
    pixels[24:32, 40:48] = 255
    sums, nothing = np.full((1, 3, 4, 4), 1 / 48, "f4"), np.zeros((2, 3, 4, 4), "f4")
    weights = {"w": sums, "b": np.array([-128.0]), "n": nothing, "s": np.log([5.0, 3.0]), "o": np.zeros(2)}
    by_four = {"group": 1, "strides": [4, 4], "pads": [0, 0, 0, 0]}
    steps = [
        node("Conv", ["x", "w", "b"], "logit", **by_four),
        node("Sigmoid", ["logit"], "heat"),
        node("Conv", ["x", "n", "s"], "size", **by_four),
        node("Conv", ["x", "n", "o"], "offset", **by_four),
    ]
    path = tmp_path / "any.onnx"
    path.write_bytes(model(steps, weights, ["heat", "size", "offset"]))
    runner = packaged._centre_heatmap(path, Picture(Image.fromarray(pixels), ()), "cpu")
    boxes = np.array([thing.box for thing in runner.read(runner.forward()).things])
    assert len(boxes) > 0
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert (np.abs(middles - (44, 28)) < 6).all()
    assert np.allclose(
        boxes[:, 2:] - boxes[:, :2], np.array([12, 20]) / 5
    )  # at five times the size: 640 pixels for 128


def test_weights_of_a_vit_find_their_names_by_the_nodes_that_take_them(tmp_path: Path) -> None:
    from safetensors.numpy import load_file
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=28, mlp_ratio=1)
    original = Dinov2Model(config)
    original.save_pretrained(tmp_path)
    weights, tensors, steps = load_file(tmp_path / "model.safetensors"), {}, []
    for number, (name, each) in enumerate(sorted(weights.items())):
        if each.ndim == 2 and "mask_token" not in name:
            tensors[f"onnx::MatMul_{number}"] = each.T.copy()
            place = "/backbone/" + name.removesuffix(".weight").replace("layer.", "layer_").replace(".", "/")
            place = place.replace("layer_", "layer.")
            steps.append(node("MatMul", ["x", f"onnx::MatMul_{number}"], name, f"{place}/MatMul"))
        elif "position" in name:
            tensors |= {"onnx::Concat_1": each[:, :1].copy(), "onnx::Reshape_2": each[:, 1:].copy()}
        elif "mask_token" not in name:
            tensors[f"backbone.{name}"] = each
    found = packaged._vit_weights(onnx(model(steps, tensors, ["any"])))
    loaded, said = Dinov2Model.from_pretrained(None, config=config, state_dict=found, output_loading_info=True)
    assert not said["missing_keys"]
    x = torch.rand(1, 3, 28, 28)
    assert torch.allclose(loaded.eval()(x).last_hidden_state, original.eval()(x).last_hidden_state, atol=1e-5)


def test_classes_are_those_of_the_weights_under_other_names_in_the_same_order(tmp_path: Path) -> None:
    import timm
    from PIL import Image

    torch.manual_seed(0)
    original = timm.create_model("tf_efficientnet_lite0").eval()
    torch.save({f"_{name}": each for name, each in original.state_dict().items()}, tmp_path / "any.pth")
    runner = packaged._classes(tmp_path / "any.pth", Picture(Image.new("RGB", (40, 30), "red"), ()), "cpu")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(original))
    expected = original(transform(Image.new("RGB", (40, 30), "red"))[None])
    assert torch.equal(runner.forward(), expected)
    assert len(runner.read(expected).things) == 5


def test_weights_are_chosen_by_what_they_look_at_and_by_the_card_that_shows_them() -> None:
    def each(card: str | None, reader: str) -> Packaged:
        return SimpleNamespace(card=card, reader=reader)  # type: ignore[return-value]

    all_of_them = {
        "heads": each("a", "brain mask"),
        "faces": each("b", "centre heatmap"),
        "any": each(None, "patch tokens"),
    }
    assert list(choose_packaged(all_of_them, (), (), "picture")[0]) == ["faces", "any"]
    assert choose_packaged(all_of_them, (), (), "picture")[1] == []
    fit, problems = choose_packaged(all_of_them, ("a", "b", "c"), (), "volume")
    assert list(fit) == ["heads"]
    assert problems == [
        "c: no package carries weights that are shown on its page", "faces: takes a picture, and this is a volume",
    ]  # fmt: skip


@pytest.mark.parametrize("key", WORDS.packaged)
def test_packaged_weights_belong_to_a_card_and_a_task_and_say_what_they_are_not(key: str) -> None:
    each = WORDS.packaged[key]
    assert each.card is None or each.card in CARDS
    assert each.task in WORDS.tasks
    assert each.card is None or each.task in CARDS[each.card].tasks
    assert each.file.sha256 is not None
    assert "GPL" not in each.licence
