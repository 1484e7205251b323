"""Cascade Mask R-CNN (arXiv:1712.00726) as CascadeROIHeads of Detectron2 has it (Misc/cascade_mask_rcnn_R_50_FPN_3x.yaml).

Backbone, proposals and masks are those of torchvision's Mask R-CNN. Boxes are looked at three times, each time by a head of its
own, which moves a box alike for all classes. It predicts 91 classes, as torchvision does, where Detectron2 has 80.
"""

from __future__ import annotations

from torch import Tensor, nn

from scripts.architectures.definitions.libraries import FixedBoxes

STAGES = 3


class CascadeMaskRCNN(FixedBoxes):
    """Mask R-CNN of a ResNet-50 with a cascade of heads for boxes; as many boxes as it keeps at most go through each."""

    def __init__(self) -> None:
        from torchvision.models import detection

        super().__init__(detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None))
        heads = self.detector.roi_heads
        inputs, width = heads.box_head.fc6.in_features, heads.box_head.fc7.out_features
        classes = heads.box_predictor.cls_score.out_features
        heads.box_head, heads.box_predictor = _Cascade(inputs, width, classes), nn.Identity()


class _Cascade(nn.Module):
    def __init__(self, inputs: int, width: int, classes: int) -> None:
        from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

        super().__init__()
        self.heads = nn.ModuleList(TwoMLPHead(inputs, width) for _ in range(STAGES))
        self.predictors = nn.ModuleList(FastRCNNPredictor(width, classes) for _ in range(STAGES))
        for predictor in self.predictors:
            predictor.bbox_pred = nn.Linear(width, 4)  # for any class

    def forward(self, pooled: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Features of boxes (N, C, 7, 7) -> scores (N, classes) and a move (N, 4) of each stage."""
        return [predict(head(pooled)) for head, predict in zip(self.heads, self.predictors, strict=True)]
