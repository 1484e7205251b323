# %% [markdown]
# # Detectron2: what does one configuration change, and what does it leave?
#
# A configuration is a record of four fields, and a detector is built from it out of torchvision's parts; Detectron2 itself
# is not needed. One field is changed at a time: which modules change, which weights are kept, and what does the swap cost?
# Three more experiments test the geometry that Detectron2 mended, whether the heads learn on a plain vision transformer, and
# how long a CPU would train.
#
# | symbol (card) | here | meaning |
# |---|---|---|
# | $I$ | `images` | (B, 3, H, W) |
# | $F = \mathrm{backbone}(I)$ | `features` | maps of 256 channels at strides 4, 8, 16, 32 and 64 |
# | $P = \mathrm{proposals}(F)$ | `regions` | boxes (R, 4), xyxy in pixels |
# | $D = \mathrm{heads}(F, P)$ | `judge` | class and box of each region, and a mask or keypoints of each detection |

# %%
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal
from urllib.error import URLError

import torch
from lab.data.scenes import Scenes, make_scenes
from lab.figures import Style, draw_boxes, panels, seed_bars, seed_lines, show_image
from lab.metrics import timed
from lab.run import Run
from lab.training import count_parameters, fit, seed_everything
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights, fcos_resnet50_fpn, retinanet_resnet50_fpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import mobilenet_backbone, resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, paste_masks_in_image
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.models.vision_transformer import VisionTransformer
from torchvision.ops import MultiScaleRoIAlign, box_iou, roi_align
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

Backbone = Literal["resnet50", "resnet18", "mobilenet", "vit_small", "vit_tiny"]
Neck = Literal["fpn", "fpn_norm"]
Heads = Literal["box", "mask", "keypoint"]

WIDTH, CLASSES, KEYPOINTS = (
    256,
    91,
    17,
)  # channels of each map; classes and keypoints of COCO as torchvision counts them
VITS = {"vit_small": (384, 12, 6), "vit_tiny": (192, 4, 3)}  # width, depth, heads
MODULES = ("backbone", "rpn", "roi_heads")  # F, P and D
SIDES = (32, 64, 128, 256, 512)  # of the anchors, one for each map

# %% [markdown]
# ## A configuration is data
# The record says nothing about how a part is built; a builder for each field does. As in Detectron2, the pyramid belongs
# to the backbone, so that proposals and heads only ever see maps of 256 channels.


# %%
@dataclass(frozen=True)
class Config:
    """What a detector is made of; the default is the Faster R-CNN of the zoo."""

    backbone: Backbone = "resnet50"
    neck: Neck = "fpn"
    proposal: int = 1  # convolutions of the proposal network
    heads: Heads = "box"


@dataclass(frozen=True)
class Preset:
    """Sizes of a run.

    Attributes:
        backbones: that are timed; the first is the base of the swaps.
        swaps: that are compared, and that are counted, at most.
        side: of the images in pixels.
        regions, detections: boxes that the box head, and the mask or keypoint head get.
        repeats: timed calls.
        boxes: random ones, in the experiment on geometry.
        scenes, steps, learning_rate: of the training.
    """

    backbones: tuple[Backbone, ...] = ("resnet50", "resnet18", "mobilenet", "vit_small")
    swaps: int = 9
    side: int = 256
    regions: int = 100
    detections: int = 4
    repeats: int = 3
    boxes: int = 200
    scenes: int = 4
    steps: int = 30
    learning_rate: float = 3e-4


PRESETS = {
    "smoke": Preset(backbones=("mobilenet", "resnet18"), swaps=1, side=128, regions=4, detections=1, repeats=1, boxes=10,
                    scenes=1, steps=2),
    "quick": Preset(),
    "full": Preset(regions=1000, detections=100, repeats=20, boxes=1000, steps=200),
}  # fmt: skip


class SimplePyramid(nn.Module):
    """A plain ViT whose last map, of stride 16, gives all maps (arXiv:2203.16527, Section 3): (B, 3, H, W) -> maps."""

    def __init__(self, side: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.out_channels = WIDTH
        self.body = VisionTransformer(side, 16, depth, heads, width, 4 * width)
        self.body.heads = nn.Sequential()
        up = [nn.ConvTranspose2d(width, width, 2, stride=2) for _ in range(3)]
        scales = [nn.Sequential(up[0], nn.GELU(), up[1]), up[2], nn.Identity(), nn.MaxPool2d(2)]  # strides 4 to 32
        self.levels = nn.ModuleList(
            nn.Sequential(scale, nn.Conv2d(width, WIDTH, 1), nn.GroupNorm(1, WIDTH),
                          nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.GroupNorm(1, WIDTH))
            for scale in scales
        )  # fmt: skip

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        tokens = self.body._process_input(images)  # (B, N, D), N = (H / 16) (W / 16)
        tokens = torch.cat([self.body.class_token.expand(len(images), -1, -1), tokens], dim=1)
        tokens = self.body.encoder(tokens)[:, 1:]  # without the class token
        x = tokens.transpose(1, 2).unflatten(2, (images.shape[2] // 16, -1))  # (B, N, D) -> (B, D, H / 16, W / 16)
        maps = {str(i): level(x) for i, level in enumerate(self.levels)}
        return OrderedDict(maps, pool=functional.max_pool2d(maps["3"], 1, 2))


def build_backbone(config: Config, side: int) -> nn.Module:
    """Images (B, 3, H, W) -> five maps (B, 256, H / s, W / s)."""
    norm = nn.BatchNorm2d
    if config.backbone in VITS:
        return SimplePyramid(side, *VITS[config.backbone])
    model: Any
    if config.backbone == "mobilenet":
        model = mobilenet_backbone(backbone_name="mobilenet_v3_large", weights=None, fpn=True, norm_layer=norm,
                                   trainable_layers=6, returned_layers=[1, 2, 3, 5], extra_blocks=LastLevelMaxPool())  # fmt: skip
    else:
        model = resnet_fpn_backbone(backbone_name=config.backbone, weights=None, norm_layer=norm, trainable_layers=5)
    if config.neck == "fpn_norm":
        for block in (*model.fpn.inner_blocks, *model.fpn.layer_blocks):
            block.append(norm(WIDTH))
    return model  # type: ignore[no-any-return]


def build_proposals(config: Config, regions: int) -> RegionProposalNetwork:
    """Maps -> the best `regions` boxes of each image."""
    anchors = AnchorGenerator(tuple((side,) for side in SIDES), ((0.5, 1.0, 2.0),) * len(SIDES))
    head = RPNHead(WIDTH, anchors.num_anchors_per_location()[0], conv_depth=config.proposal)
    before, after = {"training": 1000, "testing": 1000}, {"training": 200, "testing": regions}
    return RegionProposalNetwork(anchors, head, 0.7, 0.3, 256, 0.5, before, after, 0.7)


def build_heads(config: Config, detections: int) -> RoIHeads:
    """Maps and regions -> detections; without a threshold, so that random weights give some too."""
    maps = ["0", "1", "2", "3"]
    parts: dict[str, nn.Module] = {}
    if config.heads == "mask":
        parts = {
            "mask_roi_pool": MultiScaleRoIAlign(maps, 14, 2),
            "mask_head": MaskRCNNHeads(WIDTH, (256,) * 4, 1),
            "mask_predictor": MaskRCNNPredictor(256, 256, CLASSES),
        }
    if config.heads == "keypoint":
        parts = {
            "keypoint_roi_pool": MultiScaleRoIAlign(maps, 14, 2),
            "keypoint_head": KeypointRCNNHeads(WIDTH, (512,) * 8),
            "keypoint_predictor": KeypointRCNNPredictor(512, KEYPOINTS),
        }
    box = MultiScaleRoIAlign(maps, 7, 2), TwoMLPHead(WIDTH * 7 * 7, 1024), FastRCNNPredictor(1024, CLASSES)
    return RoIHeads(*box, 0.5, 0.5, 64, 0.25, None, 0.0, 0.5, detections, **parts)


def build(config: Config, preset: Preset, seed: int = 0) -> GeneralizedRCNN:
    """The detector of a configuration; each part starts from the seed, so equal parts have equal weights."""
    seed_everything(seed)
    backbone = build_backbone(config, preset.side)
    seed_everything(seed)
    proposals = build_proposals(config, preset.regions)
    seed_everything(seed)
    heads = build_heads(config, preset.detections)
    transform = GeneralizedRCNNTransform(preset.side, preset.side, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    return GeneralizedRCNN(backbone, proposals, heads, transform)


def changed(one: nn.Module, other: nn.Module) -> set[str]:
    """Which of the three modules differ, in names, shapes or values."""

    def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
        return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)

    return {m for m in MODULES if not same(getattr(one, m).state_dict(), getattr(other, m).state_dict())}


# %% [markdown]
# ## The stages of a generalized R-CNN
# Hooks on the modules record what really passes in one forward pass of a Mask R-CNN.


# %%
STAGES = ("backbone.body", "backbone.fpn", "rpn.head", "rpn", "roi_heads.box_roi_pool", "roi_heads.box_head",
          "roi_heads.box_predictor", "roi_heads.mask_roi_pool", "roi_heads.mask_head", "roi_heads.mask_predictor")  # fmt: skip


def shapes_in(value: Any) -> list[tuple[int, ...]]:
    """Shapes of all tensors in nested lists, tuples and dicts, in order."""
    if isinstance(value, Tensor):
        return [tuple(value.shape)] if value.ndim else []
    parts = value.values() if isinstance(value, Mapping) else value
    return [shape for part in parts for shape in shapes_in(part)] if isinstance(value, Mapping | list | tuple) else []


@torch.inference_mode()
def recorded(model: nn.Module, image: Tensor, stages: Sequence[str] = STAGES) -> dict[str, list[tuple[int, ...]]]:
    """Shapes of what each stage returns for an image (3, H, W), in the order of the calls."""
    found: dict[str, list[tuple[int, ...]]] = {}

    def hook(_: nn.Module, __: Any, output: Any, name: str) -> None:
        found[name] = shapes_in(output)

    handles = [model.get_submodule(name).register_forward_hook(partial(hook, name=name)) for name in stages]
    model.eval()([image])
    for handle in handles:
        handle.remove()
    return found


def load_pretrained(model: nn.Module) -> None:
    """Loads torchvision's Mask R-CNN, trained on COCO.

    Raises:
        SystemExit: the weights are neither stored nor to be had.
    """
    weights = MaskRCNN_ResNet50_FPN_Weights.COCO_V1
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError) as error:
        raise SystemExit(f"--weights pretrained: {weights.url} cannot be loaded ({error}).\n"
                         "Connect to the internet once, or run with --weights random.") from error  # fmt: skip
    wrong = [key for keys in model.load_state_dict(state, strict=False) for key in keys]
    assert all(key.endswith("num_batches_tracked") for key in wrong), wrong  # frozen norms do not count batches


def stages_figure(run: Run, preset: Preset) -> None:
    """The stages with the shapes that hooks record; with `--weights pretrained`, also real detections in the image."""
    pretrained = run.settings.weights == "pretrained"
    model = build(Config(heads="mask"), preset, run.seeds[0]).to(run.device)
    if pretrained:
        load_pretrained(model)
    image = make_scenes("test", 1, seed=0, canvas=preset.side).images[0].to(run.device)
    shapes = recorded(model, image)
    with torch.inference_mode():
        boxes = model([image])[0]["boxes"] if pretrained else torch.zeros(0, 4)
    run.figure(
        "stages",
        partial(draw_stages, image=image.cpu(), shapes=shapes, boxes=boxes.cpu()),
        caption=f"A Mask R-CNN built from the configuration, on an image of {preset.side} x {preset.side} px. The shapes "
        "are what hooks recorded in one forward pass; the two branches of the heads cut their own features from the maps.",
        alt="An image and below it three columns, backbone, proposals and heads, each with its stages and the shapes of "
        "the tensors that leave them.",
    )


def draw_stages(style: Style, image: Tensor, shapes: Mapping[str, list[tuple[int, ...]]], boxes: Tensor) -> Figure:
    figure, axes = panels(1, 4, height=3.7, width_ratios=[1, 1, 1, 1])
    show_image(axes[0, 0], image, "image I")
    draw_boxes(axes[0, 0], boxes)
    titles = {"backbone": "F = backbone(I)", "rpn": "P = proposals(F)", "roi_heads": "D = heads(F, P)"}
    for ax, (colour, (module, title)) in zip(axes[0, 1:], zip(style.cycle, titles.items(), strict=False), strict=True):
        ax.set(xlim=(0, 1), ylim=(0, 1), title=title)
        ax.set_axis_off()
        y = 0.98
        for name in (each for each in shapes if each.split(".")[0] == module):
            lines = [" x ".join(map(str, shape)) for shape in shapes[name]]
            text = "\n".join([name.removeprefix(f"{module}."), *lines])
            box = {"facecolor": style.panel, "edgecolor": colour, "boxstyle": "round,pad=0.35"}
            ax.text(0.03, y, text, va="top", fontsize=8.5, linespacing=1.2, color=style.ink, bbox=box)
            y -= 0.046 * (len(lines) + 1) + 0.055
    return figure


# %% [markdown]
# ## One field, one module
# From the Faster R-CNN, each field is set to each other value. The modules are compared weight by weight. The counts of
# parameters and MACs (800 x 1344 px, 1,000 regions, 100 detections, as in the published networks) come from torch's meta
# device. RetinaNet and FCOS, torchvision's own, are other meta-architectures: weights are compared by name and shape.


# %%
SWAPS: dict[str, tuple[Any, ...]] = {
    "backbone": ("resnet18", "mobilenet", "vit_small"),
    "neck": ("fpn_norm",),
    "proposal": (2,),
    "heads": ("mask", "keypoint"),
}
BELONGS = {"backbone": "backbone", "neck": "backbone", "proposal": "rpn", "heads": "roi_heads"}


def swaps(base: Config) -> list[tuple[str, Config]]:
    """All configurations that differ from the base in one field, with the field."""
    return [
        (field, replace(base, **{field: value}))
        for field, values in SWAPS.items()
        for value in values
        if value != getattr(base, field)
    ]


def kept(one: nn.Module, other: nn.Module, parts: tuple[str, ...] = ("",)) -> float:
    """Share (%) of the first model's weights, in `parts` of it, that the second has with the same name and shape."""
    ours = {name: each for name, each in one.named_parameters() if name.startswith(parts)}
    theirs = {name: each.shape for name, each in other.named_parameters()}
    same = sum(each.numel() for name, each in ours.items() if theirs.get(name) == each.shape)
    return 100 * same / sum(each.numel() for each in ours.values())


def macs(call: Callable[[], object]) -> float:
    """Multiplications with additions of a call, in 10^9."""
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops()) / 2e9


def counts(config: Config) -> dict[str, dict[str, float]]:
    """Parameters (10^6) and MACs (10^9) of backbone, proposals, box head and second head, without weights."""
    with torch.device("meta"):
        model: Any = build(config, Preset(side=1344))
        model.train()  # the fused attention of evaluation is not counted
        images = torch.empty(1, 3, 1344 if config.backbone in VITS else 800, 1344)
        features = list(model.backbone(images).values())
        heads, pooled = model.roi_heads, torch.empty(1000, WIDTH, 7, 7)
        found = {
            "backbone": {"macs": macs(lambda: model.backbone(images)), "parameters": count_parameters(model.backbone)},
            "proposals": {"macs": macs(lambda: model.rpn.head(features)), "parameters": count_parameters(model.rpn)},
            "box head": {"macs": macs(lambda: heads.box_predictor(heads.box_head(pooled))),
                         "parameters": count_parameters(heads.box_head) + count_parameters(heads.box_predictor)},
        }  # fmt: skip
        if config.heads != "box":
            head, last = getattr(heads, f"{config.heads}_head"), getattr(heads, f"{config.heads}_predictor")
            regions = torch.empty(100, WIDTH, 14, 14)
            found[f"{config.heads} head"] = {"macs": macs(lambda: last(head(regions))),
                                             "parameters": count_parameters(head) + count_parameters(last)}  # fmt: skip
    return {part: {"macs": each["macs"], "parameters": each["parameters"] / 1e6} for part, each in found.items()}


PARTS = ("backbone", "proposals", "box head", "mask head", "keypoint head")  # in the order of their colours


def swap(run: Run, preset: Preset) -> None:
    """What a change of one field changes, and what the parts cost."""
    experiment = run.experiment(
        "swap", question="What does a change of one field change?", data="no data: weights compared, operations counted"
    )
    base = Config(backbone=preset.backbones[0])
    reference, changes = build(base, preset), []
    for field, config in swaps(base)[: preset.swaps]:
        found = changed(reference, build(config, preset))
        changes.append(len(found | {BELONGS[field]}))  # one, only where it is the module of the field and no other
        assert found, f"{config} has the weights of {base}"
    exact = partial(experiment.result, exact=True)
    exact("modules_changed_most", [max(changes)], unit="", meaning="Most modules that one changed field changes, of 3")
    with torch.device("meta"):
        box, mask, keypoint = (build(Config(heads=each), preset) for each in ("box", "mask", "keypoint"))
        one_stage = {
            "retinanet": retinanet_resnet50_fpn(weights=None, weights_backbone=None),
            "fcos": fcos_resnet50_fpn(weights=None, weights_backbone=None),
        }
    for name, other in {"mask": mask, "keypoint": keypoint, **one_stage}.items():
        meaning = f"Weights of the Faster R-CNN that a change to {name} keeps"
        exact(f"weights_kept_{name}", [kept(box, other)], unit="%", meaning=meaning)
    body, rest = (
        [kept(box, other, parts) for other in one_stage.values()] for parts in (("backbone.body",), MODULES[1:])
    )
    said = "of the Faster R-CNN that a change to RetinaNet or FCOS keeps"
    exact("body_kept_one_stage", [min(body)], unit="%", meaning=f"Weights of the ResNet-50 {said}, the lower share")
    exact(
        "heads_kept_one_stage",
        [max(rest)],
        unit="%",
        meaning=f"Weights of proposals and heads {said}, the higher share",
    )
    others = [config for field, config in swaps(Config()) if field in ("backbone", "heads")]
    chosen = [Config(), *others[-preset.swaps :]]
    costs = {f"{each.backbone}, {each.heads}": counts(each) for each in chosen}
    for name, parts in costs.items():
        key = name.replace(", ", "_")
        for measure, unit in (("macs", "G"), ("parameters", "M")):
            total = sum(each[measure] for each in parts.values())
            exact(f"{measure}_{key}", [total], unit=unit, meaning=f"All {measure} of {name}")
    parts = costs["resnet50, keypoint"]
    ratio = parts["keypoint head"]["macs"] / parts["backbone"]["macs"]
    exact(
        "keypoint_over_backbone", [ratio], unit="", meaning="MACs of the keypoint head on 100 detections over ResNet-50"
    )
    experiment.figure(
        "costs",
        partial(draw_costs, costs=costs),
        caption="Parameters and MACs of configurations that differ in the backbone (above) or the heads (below), counted at "
        "800 x 1344 px (ViT: 1344 x 1344, all attention global), with 1,000 regions and 100 detections.",
        alt="Stacked bars of parameters and of MACs by part, one bar for each configuration.",
    )


def draw_costs(style: Style, costs: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Figure:
    figure, axes = panels(1, 2, height=3.4, sharey=True)
    parts = {
        part: colour
        for part, colour in zip(PARTS, style.cycle, strict=False)
        if any(part in each for each in costs.values())
    }
    for ax, (measure, label) in zip(
        axes[0], (("parameters", "parameters ($10^6$)"), ("macs", "MACs ($10^9$)")), strict=True
    ):
        left = [0.0] * len(costs)
        for part, colour in parts.items():
            values = [each.get(part, {}).get(measure, 0.0) for each in costs.values()]
            ax.barh(range(len(costs)), values, left=left, color=colour, label=part)
            left = [a + b for a, b in zip(left, values, strict=True)]
        ax.set_yticks(range(len(costs)), list(costs))
        ax.set(xlabel=label, xlim=(0, 1.06 * max(left)))
    axes[0, 0].invert_yaxis()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(parts))
    return figure


# %% [markdown]
# ## The time of backbone and heads
# On one image, with regions and detections that are given, so that no time depends on what random weights happen to find.
# For each seed, weights, image and boxes are drawn anew.


# %%
def random_boxes(count: int, side: int, seed: int) -> Tensor:
    """Boxes inside an image, xyxy in pixels, with sides of 16 px to half the image: (count, 4)."""
    generator = torch.Generator().manual_seed(seed)
    size = 16 + torch.rand(count, 2, generator=generator) * (side / 2 - 16)
    low = torch.rand(count, 2, generator=generator) * (side - size)
    return torch.cat([low, low + size], dim=1)


def judge(heads: Any, features: dict[str, Tensor], regions: Tensor, side: int, kind: Heads) -> tuple[Tensor, ...]:
    """One branch of the heads on regions (R, 4): classes and boxes, or masks, or heatmaps of keypoints."""
    pool, head, last = (getattr(heads, f"{kind}_{part}") for part in ("roi_pool", "head", "predictor"))
    out = last(head(pool(features, [regions], [(side, side)])))
    return out if isinstance(out, tuple) else (out,)


@torch.inference_mode()
def times(run: Run, preset: Preset, seed: int) -> dict[str, float]:
    """Median milliseconds of each backbone with its pyramid, and of each branch of the heads."""
    side = preset.side
    found: dict[str, float] = {}
    images = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(seed)).to(run.device)
    regions = random_boxes(preset.regions, side, seed).to(run.device)
    for name in preset.backbones:
        seed_everything(seed)
        backbone = build_backbone(Config(backbone=name), side).to(run.device).eval()
        call = torch.inference_mode()(partial(backbone, images))
        found[name] = timed(call, preset.repeats, 1, run.device).median
    features = backbone(images)
    for kind, count in (("box", preset.regions), ("mask", preset.detections), ("keypoint", preset.detections)):
        heads = build_heads(Config(heads=kind), preset.detections).to(run.device).eval()  # type: ignore[arg-type]
        branch = torch.inference_mode()(partial(judge, heads, features, regions[:count], side, kind))  # type: ignore[arg-type]
        found[kind] = timed(branch, preset.repeats, 1, run.device).median
    return found


def latency(run: Run, preset: Preset) -> None:
    """Milliseconds of each part, swapped alone."""
    boxes = f"{preset.regions} regions and {preset.detections} detections"
    experiment = run.experiment(
        "latency",
        question="What does a swap cost in time?",
        data=f"one image of {preset.side} px with {boxes}, all random",
    )
    found = [times(run, preset, seed) for seed in run.progress(run.seeds, what="latency")]
    for name in found[0]:
        where = f"on {boxes}" if name in ("box", "mask", "keypoint") else "with its pyramid"
        experiment.result(f"ms_{name}", [each[name] for each in found], unit="ms", meaning=f"Time of {name} {where}")
    experiment.figure(
        "latency",
        partial(draw_latency, found=found, backbones=preset.backbones),
        caption=f"Time on one image of {preset.side} px. Left: backbones with their pyramid. Right: branches of the heads, "
        f"the box branch on {preset.regions} regions, the others on {preset.detections} detections. Dots are seeds; colours "
        "stand for the same parts as in the figure of the costs.",
        alt="Bars of milliseconds for each backbone and for each branch of the heads.",
    )


def draw_latency(style: Style, found: Sequence[Mapping[str, float]], backbones: Sequence[str]) -> Figure:
    figure, axes = panels(1, 2, height=2.8)
    heads = [part.removesuffix(" head") for part in PARTS[2:]]
    shown = {"backbones": (backbones, style.cycle[:1]), "heads": (heads, style.cycle[2:])}
    for ax, (title, (names, colours)) in zip(axes[0], shown.items(), strict=True):
        values = [[each[name] for each in found] for name in names]
        seed_bars(ax, [name.replace("_", " ") for name in names], values, colours)
        ax.set(title=title, ylabel="ms an image")
    return figure


# %% [markdown]
# ## The geometry that was mended
# Three conventions of Detectron, each beside Detectron2's: RoIAlign without and with the shift by half a cell, read off a
# map whose values are its own coordinates; the size of a box with and without an added pixel, by whether the IoU of two
# boxes stays when the image is halved; a perfect 28 x 28 mask of an ellipse, pasted at whole pixels or sampled.


# %%
def roi_error(boxes: Tensor, side: int, aligned: bool, stride: int = 16) -> float:
    """Mean distance in pixels between where RoIAlign samples and where it should, along x."""
    at = (torch.arange(2 * side // stride) + 0.5) * stride  # centres of the cells, in pixels
    ramp = at.expand(1, 1, len(at), -1).contiguous()  # (1, 1, H, W)
    boxes = boxes + stride  # away from the border, where values are repeated
    read = roi_align(ramp, [boxes], 7, 1 / stride, sampling_ratio=2, aligned=aligned)[:, 0, 0]  # (n, 7)
    part = (torch.arange(7) + 0.5) / 7
    true = boxes[:, :1] + (boxes[:, 2:3] - boxes[:, :1]) * part
    return float((read - true).abs().mean())


def iou_error(boxes: Tensor, added: float) -> float:
    """Mean change (%) of the IoU of neighbours, boxes shifted by an eighth, when the image is halved."""
    other = boxes + (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2) / 8
    grow = torch.tensor([0.0, 0.0, added, added])
    full, half = (box_iou(s * boxes + grow, s * other + grow).diagonal() for s in (1.0, 0.5))
    return float(100 * (full - half).abs().mean())


def ellipses(boxes: Tensor, height: int, width: int) -> Tensor:
    """Ellipses that fill their boxes, as the covered part of each of 4 x 4 points of a pixel: (n, H, W)."""
    y, x = ((torch.arange(4 * length) + 0.5) / 4 for length in (height, width))
    (x0, y0, x1, y1) = (each[:, None] for each in boxes.unbind(1))
    across, down = (2 * x - x0 - x1) / (x1 - x0), (2 * y - y0 - y1) / (y1 - y0)  # (n, 4 W), (n, 4 H)
    inside = (across[:, None, :] ** 2 + down[:, :, None] ** 2 <= 1).float()
    return functional.avg_pool2d(inside[:, None], 4)[:, 0]


def sampled_paste(masks: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Masks (n, 1, M, M), read at the centre of each pixel of the image: (n, 1, side, side)."""
    at = torch.arange(side) + 0.5
    x, y = (2 * (at - boxes[:, i : i + 1]) / (boxes[:, i + 2] - boxes[:, i])[:, None] - 1 for i in (0, 1))  # (n, side)
    grid = torch.stack([x[:, None, :].expand(-1, side, -1), y[:, :, None].expand(-1, -1, side)], dim=-1)
    return functional.grid_sample(masks, grid, align_corners=False)


def paste_errors(boxes: Tensor, side: int) -> dict[str, float]:
    """1 - IoU (%) of the true ellipse and its pasted mask, with both ways to paste."""
    unit = torch.tensor([[0.0, 0.0, 28.0, 28.0]])
    masks = ellipses(unit, 28, 28).expand(len(boxes), 1, 28, 28).contiguous()
    true = ellipses(boxes, side, side) >= 0.5
    ways = {"whole": paste_masks_in_image(masks, boxes, (side, side)), "sampled": sampled_paste(masks, boxes, side)}
    ious = {
        name: ((m := pasted[:, 0] >= 0.5) & true).sum((1, 2)) / (m | true).sum((1, 2)) for name, pasted in ways.items()
    }
    return {name: float(100 * (1 - iou.mean())) for name, iou in ious.items()}


def fidelity(run: Run, preset: Preset) -> None:
    """How much each mended convention was off."""
    data = f"{preset.boxes} random boxes in an image of {preset.side} px"
    experiment = run.experiment("fidelity", question="What did Detectron's rounding and pixels cost?", data=data)
    boxes = [random_boxes(preset.boxes, preset.side, seed) for seed in run.seeds]
    pastes = [paste_errors(each, preset.side) for each in boxes]
    found = {
        "roi_error": ("px", [[roi_error(b, preset.side, aligned) for b in boxes] for aligned in (False, True)]),
        "iou_error": ("%", [[iou_error(b, added) for b in boxes] for added in (1.0, 0.0)]),
        "paste_error": ("%", [[each[way] for each in pastes] for way in ("whole", "sampled")]),
    }
    meanings = {"roi_error": "Distance of RoIAlign's samples from their place, stride 16",
                "iou_error": "Change of an IoU when the image is halved", "paste_error": "1 - IoU of a pasted mask"}  # fmt: skip
    for name, (unit, (old, new)) in found.items():
        for values, way in ((old, "detectron"), (new, "detectron2")):
            experiment.result(f"{name}_{way}", values, unit=unit, meaning=f"{meanings[name]}, as in {way.title()}")
        gain = [a - b for a, b in zip(old, new, strict=True)]
        experiment.result(f"{name}_gain", gain, unit=unit, meaning=f"{meanings[name]}: Detectron less Detectron2")
    experiment.figure(
        "fidelity",
        partial(draw_fidelity, found=found),
        caption="Three errors of geometry with the conventions of Detectron and of Detectron2. Left: where RoIAlign samples. "
        "Middle: IoU of two boxes, when the image is halved. Right: a perfect mask, pasted. Dots are seeds.",
        alt="Three pairs of bars, old and new convention, for the error of RoIAlign, of the IoU and of mask pasting.",
    )


def draw_fidelity(style: Style, found: Mapping[str, tuple[str, Sequence[Sequence[float]]]]) -> Figure:
    figure, axes = panels(1, 3, height=2.8)
    titles = ("shift of samples (px)", "change of IoU (%)", "1 - IoU of mask (%)")
    for ax, title, (_, values) in zip(axes[0], titles, found.values(), strict=True):
        seed_bars(ax, ["Detectron", "Detectron2"], values)
        ax.set(title=title, xlim=(-0.65, 1.65))
    return figure


# %% [markdown]
# ## A plain vision transformer under the same heads
# Proposals and heads stay as they are; only the field of the backbone differs. Both detectors are trained from scratch
# on a handful of scenes: not to detect well, but to see whether the heads learn from the maps they get.


# %%
def loss_on(model: nn.Module, scenes: Scenes) -> Tensor:
    """Sum of the four losses of a Faster R-CNN; label 0 is the background."""
    pairs = zip(scenes.boxes, scenes.labels, strict=True)
    losses = model(list(scenes.images), [{"boxes": boxes, "labels": labels + 1} for boxes, labels in pairs])
    return torch.stack(list(losses.values())).sum()


def learned(run: Run, preset: Preset, backbone: Backbone, seed: int) -> list[float]:
    """Loss of each step."""
    small = replace(preset, side=128)
    scenes = make_scenes("train", preset.scenes, seed=seed, canvas=small.side)
    model = build(Config(backbone=backbone), small, seed)
    return fit(model, lambda _: (scenes,), loss_on, steps=preset.steps, learning_rate=preset.learning_rate,
               device=run.device)  # fmt: skip


def transformer(run: Run, preset: Preset) -> None:
    """Whether the same heads learn on a plain ViT."""
    experiment = run.experiment(
        "transformer", question="Do the heads learn on a plain vision transformer?", steps=preset.steps,
        data=f"{preset.scenes} digit scenes of 128 px, the same for training and loss",
    )  # fmt: skip
    names: tuple[Backbone, ...] = ("vit_tiny", "resnet18")
    curves: dict[str, list[list[float]]] = {
        name: [learned(run, preset, name, seed) for seed in run.progress(run.seeds, what=name)] for name in names
    }
    for name, losses in curves.items():
        ratio = [100 * sum(each[-3:]) / len(each[-3:]) / each[0] for each in losses]
        experiment.result(
            f"loss_left_{name}", ratio, unit="%", meaning=f"Loss of the last steps in the first one, {name}"
        )
    experiment.figure(
        "transformer",
        partial(draw_curves, curves=curves),
        caption="Training loss on a few scenes, from scratch, with a small plain ViT or a ResNet-18 under the same proposals "
        "and heads. Bands go from the lowest to the highest seed.",
        alt="Two falling lines, loss against training step, for the vision transformer and the ResNet.",
    )


def draw_curves(style: Style, curves: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    figure, axes = panels(1, 1, height=2.8)
    for (name, losses), line in zip(curves.items(), ("-", "--"), strict=True):
        seed_lines(axes[0, 0], range(1, len(losses[0]) + 1), losses, name.replace("_", " "), linestyle=line)
    for band in axes[0, 0].collections:
        band.set(alpha=0.4, linewidth=0.8)  # seen on a dark page too
    axes[0, 0].set(xlabel="step", ylabel="loss", ylim=(0, None))
    axes[0, 0].legend()
    return figure


# %% [markdown]
# ## A schedule without a GPU
# The shortest schedule of the zoo is 90,000 steps of 16 images. One step of backbone and proposals, forward and backward, is
# timed on the CPU and extrapolated by the number of pixels to the smallest images that the zoo trains on. The heads, the
# larger images and the optimiser are left out, so the true time is longer.


# %%
SCHEDULE, IMAGES, LEAST = 90_000, 16, (640, 853)  # steps, images in a step, smallest image of COCO's usual 4 : 3


def schedule_days(milliseconds: float, side: int) -> float:
    """Days of the schedule, if one image (side, side) takes so long; convolutions cost by the pixel."""
    pixels = LEAST[0] * LEAST[1] / side**2
    return SCHEDULE * IMAGES * pixels * milliseconds / 1e3 / 86_400


def step_time(preset: Preset, seed: int) -> float:
    """Median milliseconds of forward and backward pass of backbone and proposals, on the CPU."""
    model: Any = build(Config(), preset, seed).train()
    image = torch.rand(1, 3, preset.side, preset.side, generator=torch.Generator().manual_seed(seed))

    def step() -> None:
        maps = list(model.backbone(image).values())
        scores, deltas = model.rpn.head(maps)
        torch.stack([each.mean() for each in (*scores, *deltas)]).sum().backward()  # type: ignore[no-untyped-call]

    return timed(step, preset.repeats, 1).median


def without_gpu(run: Run, preset: Preset) -> None:
    """What the shortest schedule would take on one CPU."""
    experiment = run.experiment(
        "without_gpu", question="How long would a CPU train for the shortest schedule of the zoo?",
        data=f"a random image of {preset.side} px, timed; {SCHEDULE:,} steps of {IMAGES} images, extrapolated",
    )  # fmt: skip
    found = [step_time(preset, seed) for seed in run.progress(run.seeds, what="training step")]
    meaning = f"Training step of a ResNet-50 Faster R-CNN without heads, for an image of {preset.side} px"
    experiment.result("ms_training_image", found, unit="ms", meaning=meaning)
    threads = torch.get_num_threads()
    meaning = f"Least time of the zoo's shortest schedule on {threads} thread{'s' * (threads > 1)} of this CPU"
    days = [schedule_days(each, preset.side) for each in found]
    experiment.result("cpu_days_schedule", days, unit="days", meaning=meaning)


# %% [markdown]
# ## Unlike Detectron2
# - The parts are torchvision's, which follow the same design. Its RoIAlign in the detectors, its rounded anchors and its
#   pasting still are the older ones. Cascade, panoptic and FCOS heads are left out.
# - A dataclass takes the place of YAML and LazyConfig, builders that of the registry.
# - The ViT attends globally in every block and has no pre-training; ViTDet uses windows in most blocks.


# %%
def main(argv: Sequence[str] | None = None) -> None:
    """Run all experiments and write the record."""
    run = Run.start("detectron2", argv=argv)
    preset = PRESETS[run.preset]
    stages_figure(run, preset)
    swap(run, preset)
    latency(run, preset)
    fidelity(run, preset)
    transformer(run, preset)
    without_gpu(run, preset)
    run.finish()


if __name__ == "__main__":
    main()
