# %% [markdown]
# # Detectron2: what does one changed field of a configuration change?
#
# A configuration is a record of four fields, and a detector is built from it out of torchvision's parts; Detectron2 itself
# is not needed. Each field is changed alone, and the weights that are left are counted. The experiments count what the parts
# cost, and test the geometry that Detectron2 mended.
#
# | symbol (card) | here | meaning |
# |---|---|---|
# | $I$ | `images` | (B, 3, H, W) |
# | $F = \mathrm{backbone}(I)$ | `backbone` | maps of 256 channels at strides 4, 8, 16, 32 and 64 |
# | $P = \mathrm{proposals}(F)$ | `rpn` | boxes (R, 4), xyxy in pixels |
# | $D = \mathrm{heads}(F, P)$ | `roi_heads` | class and box of each region, and a mask or keypoints of each detection |

# %%
# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from lab import weights
from lab.figures import Figure, Style, panels
from lab.run import Run
from lab.training import count_parameters, seed_everything
from matplotlib.patches import Rectangle
from torch import Tensor, nn
from torchvision.models import detection, vision_transformer

WIDTH, CLASSES, KEYPOINTS = 256, 91, 17  # channels of a map; classes and keypoints of COCO as torchvision counts them
SYNCHRONISATIONS_PER_STEP = None  # nothing is trained

# %% [markdown]
# ## A configuration is data
# The record says nothing about how a part is built; a builder for each module does. As in Detectron2, the pyramid belongs to
# the backbone, so that proposals and heads only ever see maps of 256 channels: $D = \mathrm{heads}(F, \mathrm{proposals}(F))$.


# %%
@dataclass(frozen=True)
class Config:
    """What a detector is made of; the default is the Faster R-CNN of the zoo."""

    backbone: Literal["resnet50", "resnet18", "mobilenet", "vit_small"] = "resnet50"
    neck: Literal["plain", "norm"] = "plain"
    proposals: int = 1  # convolutions of the proposal network
    heads: Literal["box", "mask", "keypoint"] = "box"


class SimplePyramid(nn.Module):
    """A plain ViT whose last map, of stride 16, gives all maps (arXiv:2203.16527, Section 3): (B, 3, H, W) -> maps."""

    def __init__(self, side: int, width: int = 384, depth: int = 12, heads: int = 6) -> None:
        super().__init__()
        self.out_channels = WIDTH
        self.body = vision_transformer.VisionTransformer(side, 16, depth, heads, width, 4 * width)
        self.body.heads = nn.Sequential()
        up = [nn.ConvTranspose2d(width, width, 2, stride=2) for _ in range(3)]
        scales = [nn.Sequential(up[0], nn.GELU(), up[1]), up[2], nn.Identity(), nn.MaxPool2d(2)]  # strides 4 to 32
        norm, same = partial(nn.GroupNorm, 1, WIDTH), partial(nn.Conv2d, WIDTH, WIDTH, 3, padding=1)
        self.fpn = nn.ModuleList(nn.Sequential(e, nn.Conv2d(width, WIDTH, 1), norm(), same(), norm()) for e in scales)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        tokens = self.body._process_input(images)  # (B, N, D), N = (H / 16) (W / 16)
        tokens = self.body.encoder(torch.cat([self.body.class_token.expand(len(images), -1, -1), tokens], 1))[:, 1:]
        x = tokens.mT.unflatten(2, (images.shape[2] // 16, -1))  # (B, N, D) -> (B, D, H / 16, W / 16)
        maps = {str(i): level(x) for i, level in enumerate(self.fpn)}
        return maps | {"pool": nn.functional.max_pool2d(maps["3"], 1, 2)}


def build_backbone(config: Config, side: int) -> nn.Module:
    """Images (B, 3, H, W) -> five maps (B, 256, H / s, W / s)."""
    utils, norm = detection.backbone_utils, nn.BatchNorm2d
    if config.backbone == "vit_small":
        return SimplePyramid(side)
    if config.backbone == "mobilenet":
        model = utils.mobilenet_backbone(backbone_name="mobilenet_v3_large", weights=None, fpn=True, norm_layer=norm,
                                         trainable_layers=6, returned_layers=[1, 2, 3, 5])  # fmt: skip
    else:
        model = utils.resnet_fpn_backbone(
            backbone_name=config.backbone, weights=None, norm_layer=norm, trainable_layers=5
        )
    for block in (*model.fpn.inner_blocks, *model.fpn.layer_blocks) if config.neck == "norm" else ():
        block.append(norm(WIDTH))
    return model


def build_proposals(config: Config) -> nn.Module:
    """Maps -> the best 1,000 boxes of each image."""
    sizes = tuple((side,) for side in (32, 64, 128, 256, 512))  # of the anchors, one for each map
    anchors = detection.anchor_utils.AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    head, most = detection.rpn.RPNHead(WIDTH, 3, conv_depth=config.proposals), {"training": 2000, "testing": 1000}
    return detection.rpn.RegionProposalNetwork(anchors, head, 0.7, 0.3, 256, 0.5, most, most, 0.7)


def build_heads(config: Config) -> nn.Module:
    """Maps and regions -> detections."""
    pool = partial(detection.faster_rcnn.MultiScaleRoIAlign, ["0", "1", "2", "3"], sampling_ratio=2)
    masks, points = detection.mask_rcnn, detection.keypoint_rcnn
    more: dict[str, tuple[nn.Module, ...]] = {"box": ()}
    if config.heads == "mask":
        more["mask"] = masks.MaskRCNNHeads(WIDTH, (256,) * 4, 1), masks.MaskRCNNPredictor(256, 256, CLASSES)
    if config.heads == "keypoint":
        more["keypoint"] = points.KeypointRCNNHeads(WIDTH, (512,) * 8), points.KeypointRCNNPredictor(512, KEYPOINTS)
    parts = {f"{config.heads}_{name}": each for name, each in
             zip(("head", "predictor", "roi_pool"), (*more[config.heads], pool(output_size=14)), strict=False)}  # fmt: skip
    box = detection.faster_rcnn.TwoMLPHead(WIDTH * 49, 1024), detection.faster_rcnn.FastRCNNPredictor(1024, CLASSES)
    only = parts if config.heads != "box" else {}
    return detection.roi_heads.RoIHeads(pool(output_size=7), *box, 0.5, 0.5, 512, 0.25, None, 0.05, 0.5, 100, **only)


def build(config: Config, side: int = 800) -> Any:
    """The detector of a configuration, for images that are resized to `side`."""
    transform = detection.transform.GeneralizedRCNNTransform(side, side, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    parts = build_backbone(config, side), build_proposals(config), build_heads(config)
    return detection.generalized_rcnn.GeneralizedRCNN(*parts, transform)


if __name__ == "__main__":
    run = Run.start("detectron2", pretrained=True)
    with torch.device("meta"):  # shapes alone, no weights
        base = build(Config())
    run.show("modules", [{"module": name, "parameters": count_parameters(getattr(base, name)), "class": type(part).__name__}
                         for name, part in base.named_children() if name != "transform"])  # fmt: skip

# %% [markdown]
# ## One field, one module
# From the Faster R-CNN each field is set to each other value. A weight is kept where the new detector has one of the same name
# and shape, so that trained weights could be loaded there. RetinaNet and FCOS are other meta-architectures: no field of the
# generalized R-CNN leads there.

# %%
SWAPS: dict[str, tuple[Any, ...]] = {
    "backbone": ("resnet18", "mobilenet", "vit_small"),
    "neck": ("norm",),
    "proposals": (2,),
    "heads": ("mask", "keypoint"),
}
BELONGS = {"backbone": "backbone", "neck": "backbone", "proposals": "rpn", "heads": "roi_heads"}
PARTS = {"body": "backbone.body", "pyramid": "backbone.fpn", "proposals": "rpn", "heads": "roi_heads"}
ONE_STAGE = {"RetinaNet": detection.retinanet_resnet50_fpn, "FCOS": detection.fcos_resnet50_fpn}


def swaps(base: Config) -> dict[str, tuple[str, Config]]:
    """Of all configurations that differ from the base in one field: what is changed, the field, and the configuration."""
    others = [(field, value) for field, values in SWAPS.items() for value in values if value != getattr(base, field)]
    return {f"{field}: {value}": (field, replace(base, **{field: value})) for field, value in others}


def weights_in(model: nn.Module, part: str = "") -> dict[tuple[str, torch.Size], int]:
    """Of each weight in a part of a model, by name and shape, how many numbers it has."""
    return {(name, each.shape): each.numel() for name, each in model.named_parameters() if name.startswith(part)}


def kept(one: nn.Module, other: nn.Module, *parts: str) -> float:
    """Share (%) of the first model's weights, in `parts` of it or all, that the second has with the same name and shape."""
    ours = {key: count for part in parts or ("",) for key, count in weights_in(one, part).items()}
    return 100 * sum(ours[key] for key in ours.keys() & weights_in(other).keys()) / sum(ours.values())


def new(one: nn.Module, other: nn.Module, part: str) -> int:
    """Numbers in the second model's weights, in a part of it, that the first does not have."""
    ours, theirs = weights_in(one), weights_in(other, part)
    return sum(theirs[key] for key in theirs.keys() - ours.keys())


def number(count: int) -> str:
    """In millions or thousands."""
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count / 1e3:.0f} k"


def draw_swaps(style: Style, table: dict[str, list[tuple[float, int]]]) -> Figure:
    figure, axes = panels(1, 1, width=5.4, height=5.4)
    ax = axes[0, 0]
    for row, cells in enumerate(table.values()):
        for column, (share, more) in enumerate(cells):
            same = share == 100 and not more
            colour = style.panel if same else style.cycle[1]
            ax.add_patch(Rectangle((column - 0.46, row - 0.42), 0.92, 0.84, color=colour, linewidth=0))
            said = "as it was" if same else f"{share:.0f} % kept" + f"\n+ {number(more)}" * (more > 0)
            ax.text(column, row, said, ha="center", va="center", fontsize=9, color=style.ink if same else style.page)
    ax.set(xlim=(-0.5, len(PARTS) - 0.5), ylim=(len(table) - 0.5, -0.5))
    ax.set_xticks(range(len(PARTS)), list(PARTS))
    ax.set_yticks(range(len(table)), [name.replace(": ", ":\n") for name in table])
    ax.xaxis.tick_top()
    ax.grid(False)
    ax.axhline(len(table) - len(ONE_STAGE) - 0.5, color=style.ink, linewidth=2)
    return figure


if __name__ == "__main__":
    with torch.device("meta"):
        others = {name: build(config) for name, (_, config) in swaps(Config()).items()}
        others |= {name: make(weights=None, weights_backbone=None) for name, make in ONE_STAGE.items()}
    found = {name: [(kept(base, other, part), new(base, other, part)) for part in PARTS.values()]
             for name, other in others.items()}  # fmt: skip
    rows = {name: {part: f"{share:.0f}, {more:,}" for part, (share, more) in zip(PARTS, each, strict=True)}
            for name, each in found.items()}  # fmt: skip
    run.show("kept", [{"weights kept (%), new": name} | row for name, row in rows.items()])
    run.figure(
        "swaps",
        partial(draw_swaps, table=found),
        caption="What is left of a Faster R-CNN R50-FPN when one field of its configuration changes: the share of its weights "
        "that is kept, and the numbers that are new. Each field reaches one module: backbone (body and pyramid), proposals or "
        "heads. Below the line, other meta-architectures: of the old modules they keep the body.",
        alt="A table with a row for each changed field and columns for body, pyramid, proposals and heads. In each of the upper "
        "rows one module is changed and the rest is as it was; in the two lower rows only the body is.",
    )

# %% [markdown]
# ## What passes from module to module
# Hooks record the shapes of one forward pass, here of a Mask R-CNN on ResNet-18 with random weights. Heads see nothing but
# maps of 256 channels and boxes; so whatever makes such maps can be their backbone.

# %%
STAGES = ("backbone", "rpn", "roi_heads.box_roi_pool", "roi_heads.box_predictor", "roi_heads.mask_roi_pool",
          "roi_heads.mask_predictor")  # fmt: skip


def shapes_in(value: Any) -> list[tuple[int, ...]]:
    """Shapes of all tensors in nested lists, tuples and dicts, in order."""
    if isinstance(value, Tensor):
        return [tuple(value.shape)] if value.ndim else []
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [shape for part in parts for shape in shapes_in(part)]


@torch.inference_mode()
def recorded(model: Any, image: Tensor, stages: tuple[str, ...] = STAGES) -> dict[str, list[tuple[int, ...]]]:
    """Shapes of what each stage returns for an image (3, H, W), in the order of the calls."""
    found: dict[str, list[tuple[int, ...]]] = {}

    def hook(_: nn.Module, __: Any, output: Any, name: str) -> None:
        found[name] = shapes_in(output)

    handles = [model.get_submodule(name).register_forward_hook(partial(hook, name=name)) for name in stages]
    model.eval()([image])
    for handle in handles:
        handle.remove()
    return found


if __name__ == "__main__":
    seed_everything(run.seeds[0])
    small = build(Config(backbone="resnet18", heads="mask"), side=128).to(run.device)
    small.roi_heads.score_thresh = 0.0  # random weights are never sure
    shapes = recorded(small, torch.rand(3, 128, 128, device=run.device))
    run.show("stages", [{"of an image of 128 x 128 px": name, "come": ", ".join("x".join(map(str, each)) for each in found)}
                        for name, found in shapes.items()])  # fmt: skip

# %% [markdown]
# ## Your own image
# torchvision's published Mask R-CNN fits weight by weight into what the configuration builds.


# %%
def published(image: Any) -> weights.Boxes:
    release = detection.MaskRCNN_ResNet50_FPN_Weights.COCO_V1
    network = build(replace(Config(), heads="mask")).eval()
    network.load_state_dict(
        release.get_state_dict(progress=False, check_hash=True), strict=False
    )  # norms count no batches
    (found,) = network([release.transforms()(image)])
    sure = found["scores"] >= 0.7
    return found["boxes"][sure], [release.meta["categories"][label] for label in found["labels"][sure].tolist()]


if __name__ == "__main__":
    name = "torchvision's maskrcnn_resnet50_fpn"
    weights.show_boxes(run, name, published, megabytes=180, otherwise="motorcycle", cache="TORCH_HOME")
    run.finish()

# %% [markdown]
# ## Unlike the paper
# - The parts are torchvision's, which follow the same design. Its RoIAlign in the detectors, its rounded anchors and its
#   pasting still are the older ones. Cascade and panoptic heads are left out.
# - A dataclass takes the place of YAML and LazyConfig, builders that of the registry.
# - The ViT attends globally in every block and has no pre-training; ViTDet uses windows in most blocks. It is built and
#   counted here, not trained: from random weights a few steps say nothing about it. Nothing else is trained either.
