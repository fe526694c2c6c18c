"""mtlcore's own components, registered through the same hooks as everybody else's.

One file: it is a list.
"""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore.plugins import (
    AugmentationSpec,
    BackboneSpec,
    BalancerSpec,
    DatasetSpec,
    EpisodeSamplerSpec,
    ExporterSpec,
    HeadSpec,
    LauncherSpec,
    LoggerSpec,
    LossSpec,
    MetricSpec,
    NeckSpec,
    OptimizerSpec,
    SearcherSpec,
    hookimpl,
)

_MAPS = ("segmentation", "depth", "inverse-depth", "normals", "edges", "saliency")
_PER_SAMPLE = ("classification", "multilabel", "regression")


@hookimpl
def mtl_backbones() -> Iterator[BackboneSpec]:
    yield BackboneSpec(
        name="segnet",
        target="mtlcore.standard.segnet:SegNet",
        summary="Encoder and decoder of VGG-16 layout with pooling indices.",
        paper="Badrinarayanan et al., SegNet, TPAMI 2017",
    )
    yield BackboneSpec(
        name="resnet",
        target="mtlcore.standard.resnet:ResNet",
        summary="ResNet of 18 to 101 layers, dilated for finer maps, with weights from a file.",
        paper="He et al., Deep Residual Learning for Image Recognition, CVPR 2016",
    )
    yield BackboneSpec(
        name="unet",
        target="mtlcore.standard.unet:UNet",
        summary="Encoder with skipped maps and a decoder per task, or one for all.",
        paper="Ronneberger et al., U-Net, MICCAI 2015",
    )
    yield BackboneSpec(
        name="mlp",
        target="mtlcore.standard.mlp:MLP",
        summary="Shared linear layers for inputs that are vectors.",
    )


@hookimpl
def mtl_necks() -> Iterator[NeckSpec]:
    yield NeckSpec(
        name="fpn",
        target="mtlcore.standard.decoders:FPN",
        summary="Feature pyramid, its levels brought to the finest stride and added up.",
        paper="Kirillov et al., Panoptic Feature Pyramid Networks, CVPR 2019",
    )
    yield NeckSpec(
        name="upernet",
        target="mtlcore.standard.decoders:UPerNet",
        summary="Pyramid pooling of the deepest map, then a feature pyramid, all levels joined.",
        paper="Xiao et al., Unified Perceptual Parsing, ECCV 2018",
    )
    yield NeckSpec(
        name="segformer-mlp",
        target="mtlcore.standard.decoders:SegFormerMLP",
        summary="A linear layer per map, all joined at the finest stride.",
        paper="Xie et al., SegFormer, NeurIPS 2021",
    )
    yield NeckSpec(
        name="hrnet",
        target="mtlcore.standard.decoders:HRNetFusion",
        summary="All maps at the finest stride, side by side, mixed by a 1x1 convolution.",
        paper="Sun et al., HRNetV2, 2019, https://arxiv.org/abs/1904.04514",
    )
    yield NeckSpec(
        name="dpt",
        target="mtlcore.standard.decoders:DPTFusion",
        summary="Residual units add map after map, up to half the finest stride.",
        paper="Ranftl et al., Vision Transformers for Dense Prediction, ICCV 2021",
    )
    yield NeckSpec(
        name="unet",
        target="mtlcore.standard.unet:UNetNeck",
        summary="U-Net's decoder over the maps of any backbone.",
        paper="Ronneberger et al., U-Net, MICCAI 2015",
    )


@hookimpl
def mtl_heads() -> Iterator[HeadSpec]:
    yield HeadSpec(
        name="conv",
        target="mtlcore.standard.heads:ConvHead",
        task_kinds=("*",),
        layouts=("map",),
        default_for=(*_MAPS, "regression"),
        summary="A 3x3 and a 1x1 convolution on the main map.",
        paper="Liu et al., MTAN, CVPR 2019",
    )
    yield HeadSpec(
        name="pointwise",
        target="mtlcore.standard.heads:PointwiseHead",
        task_kinds=("*",),
        layouts=("map",),
        summary="A 1x1 convolution on the main map, for features that are made for the task.",
        paper="Long, Shelhamer and Darrell, Fully Convolutional Networks, CVPR 2015",
    )
    yield HeadSpec(
        name="deeplab",
        target="mtlcore.standard.heads:DeepLabHead",
        task_kinds=("*",),
        layouts=("map",),
        summary="Pyramid pooling by dilation on the main map; for a ResNet of stride 8 or 16.",
        paper="Chen et al., Rethinking Atrous Convolution (DeepLabV3), 2017",
    )
    yield HeadSpec(
        name="linear",
        target="mtlcore.standard.heads:LinearHead",
        task_kinds=("*",),
        layouts=("vector", "label"),
        default_for=_PER_SAMPLE,
        summary="One linear layer on a vector, or on the mean of a map.",
    )
    yield HeadSpec(
        name="tagging",
        target="mtlcore.standard.heads:TaggingHead",
        task_kinds=("*",),
        layouts=("sequence",),
        default_for=("tagging",),
        summary="One linear layer at each place of a sequence, such as a token.",
        paper="Devlin et al., BERT, NAACL 2019, https://aclanthology.org/N19-1423",
    )
    yield HeadSpec(
        name="fpn",
        target="mtlcore.standard.decoder_heads:fpn",
        task_kinds=("*",),
        layouts=("map",),
        summary="A decoder of the task's own: a feature pyramid, its levels added up.",
        paper="Kirillov et al., Panoptic Feature Pyramid Networks, CVPR 2019",
    )
    yield HeadSpec(
        name="upernet",
        target="mtlcore.standard.decoder_heads:upernet",
        task_kinds=("*",),
        layouts=("map",),
        summary="A decoder of the task's own: pyramid pooling, then a feature pyramid.",
        paper="Xiao et al., Unified Perceptual Parsing, ECCV 2018",
    )
    yield HeadSpec(
        name="segformer-mlp",
        target="mtlcore.standard.decoder_heads:segformer_mlp",
        task_kinds=("*",),
        layouts=("map",),
        summary="A decoder of the task's own: a linear layer per map, all joined.",
        paper="Xie et al., SegFormer, NeurIPS 2021",
    )
    yield HeadSpec(
        name="hrnet",
        target="mtlcore.standard.decoder_heads:hrnet",
        task_kinds=("*",),
        layouts=("map",),
        summary="A decoder of the task's own: all maps at the finest stride, mixed.",
        paper="Sun et al., HRNetV2, 2019, https://arxiv.org/abs/1904.04514",
    )
    yield HeadSpec(
        name="dpt",
        target="mtlcore.standard.decoder_heads:dpt",
        task_kinds=("*",),
        layouts=("map",),
        summary="A decoder of the task's own: residual units that add map after map.",
        paper="Ranftl et al., Vision Transformers for Dense Prediction, ICCV 2021",
    )
    yield HeadSpec(
        name="unet",
        target="mtlcore.standard.decoder_heads:unet",
        task_kinds=("*",),
        layouts=("map",),
        summary="A decoder of the task's own: U-Net's, over the maps of any backbone.",
        paper="Ronneberger et al., U-Net, MICCAI 2015",
    )


@hookimpl
def mtl_losses() -> Iterator[LossSpec]:
    yield LossSpec(
        name="cross-entropy",
        target="mtlcore.standard.losses:CrossEntropy",
        task_kinds=("segmentation", "classification", "tagging"),
        default_for=("segmentation", "classification", "tagging"),
        summary="Negative log-likelihood of the class, weighted by class if asked.",
    )
    yield LossSpec(
        name="l1",
        target="mtlcore.standard.losses:L1",
        task_kinds=("depth", "inverse-depth", "regression"),
        default_for=("depth", "inverse-depth", "regression"),
        summary="Absolute error.",
    )
    yield LossSpec(
        name="cosine",
        target="mtlcore.standard.losses:Cosine",
        task_kinds=("normals",),
        default_for=("normals",),
        summary="1 - cosine of the angle between unit vectors.",
    )
    yield LossSpec(
        name="normals-l1",
        target="mtlcore.standard.losses:NormalsL1",
        task_kinds=("normals",),
        summary="Absolute difference of unit vectors.",
        paper="Vandenhende et al., Multi-Task Learning for Dense Prediction, TPAMI 2021",
    )
    yield LossSpec(
        name="binary-cross-entropy",
        target="mtlcore.standard.losses:BinaryCrossEntropy",
        task_kinds=("edges", "saliency"),
        default_for=("edges", "saliency"),
        summary="Cross-entropy with rare positives weighted up.",
        paper="Vandenhende et al., Multi-Task Learning for Dense Prediction, TPAMI 2021",
    )
    yield LossSpec(
        name="mse",
        target="mtlcore.standard.losses:MSE",
        task_kinds=("regression", "depth"),
        summary="Squared error.",
    )
    yield LossSpec(
        name="huber",
        target="mtlcore.standard.losses:Huber",
        task_kinds=("edges", "regression", "depth"),
        summary="Squared error near zero, absolute error beyond; of probabilities for edges.",
        paper="Huber, Robust Estimation of a Location Parameter, 1964",
    )
    yield LossSpec(
        name="hu-depth",
        target="mtlcore.standard.losses:HuDepth",
        task_kinds=("depth",),
        summary="Logarithmic errors of depth and of its slopes, and the angle of the normals.",
        paper="Hu et al., Revisiting Single Image Depth Estimation, WACV 2019",
    )
    yield LossSpec(
        name="focal",
        target="mtlcore.standard.losses:Focal",
        task_kinds=("segmentation", "classification", "tagging"),
        summary="Cross-entropy that discounts what is already right.",
        paper="Lin et al., Focal Loss for Dense Object Detection, ICCV 2017",
    )
    yield LossSpec(
        name="multilabel-bce",
        target="mtlcore.standard.losses:MultiLabel",
        task_kinds=("multilabel",),
        default_for=("multilabel",),
        summary="Plain binary cross-entropy per label.",
    )


@hookimpl
def mtl_metrics() -> Iterator[MetricSpec]:
    yield MetricSpec(
        name="segmentation",
        target="mtlcore.standard.metrics:SegmentationMetric",
        task_kinds=("segmentation",),
        default_for=("segmentation",),
        summary="Mean intersection over union and pixel accuracy.",
    )
    yield MetricSpec(
        name="depth",
        target="mtlcore.standard.metrics:DepthMetric",
        task_kinds=("depth", "inverse-depth"),
        default_for=("depth", "inverse-depth"),
        summary="Absolute, relative and root-mean-square error, delta < 1.25.",
    )
    yield MetricSpec(
        name="normals",
        target="mtlcore.standard.metrics:NormalsMetric",
        task_kinds=("normals",),
        default_for=("normals",),
        summary="Mean and median angle, part of the pixels within 11.25, 22.5 and 30 degrees.",
    )
    yield MetricSpec(
        name="edges",
        target="mtlcore.standard.metrics:EdgesMetric",
        task_kinds=("edges", "saliency"),
        default_for=("edges", "saliency"),
        summary="Best pixel-exact F-measure over thresholds.",
    )
    yield MetricSpec(
        name="edges-ods",
        target="mtlcore.standard.edges:EdgesODS",
        task_kinds=("edges",),
        summary="Best F-measure over thresholds with a tolerance in place (odsF); slow.",
        paper="Martin et al., Learning to Detect Natural Image Boundaries, TPAMI 2004",
    )
    yield MetricSpec(
        name="edges-mae",
        target="mtlcore.standard.metrics_maps:ProbabilityError",
        task_kinds=("edges", "saliency"),
        summary="Mean absolute error of the probability.",
        paper="Upadhyay et al., MTML, 2022, https://arxiv.org/abs/2210.06989",
    )
    yield MetricSpec(
        name="normals-cosine",
        target="mtlcore.standard.metrics_maps:NormalsCosine",
        task_kinds=("normals",),
        summary="Mean cosine of the angle.",
        paper="Upadhyay et al., MTML, 2022, https://arxiv.org/abs/2210.06989",
    )
    yield MetricSpec(
        name="saliency-iou",
        target="mtlcore.standard.metrics_maps:SaliencyIoU",
        task_kinds=("saliency",),
        summary="Intersection over union, a mean over images, at the best threshold.",
        paper="Vandenhende et al., Multi-Task Learning for Dense Prediction, TPAMI 2021",
    )
    yield MetricSpec(
        name="saliency-maxf",
        target="mtlcore.standard.metrics_maps:SaliencyMaxF",
        task_kinds=("saliency",),
        summary="Largest F-measure over thresholds (maxF), over images or over pixels.",
        paper="Vandenhende et al., Multi-Task Learning for Dense Prediction, TPAMI 2021",
    )
    yield MetricSpec(
        name="classification",
        target="mtlcore.standard.metrics_vectors:ClassificationMetric",
        task_kinds=("classification",),
        default_for=("classification",),
        summary="Accuracy, macro F-measure, and the area under the curve of two classes.",
    )
    yield MetricSpec(
        name="tagging",
        target="mtlcore.standard.metrics_sequences:TaggingMetric",
        task_kinds=("tagging",),
        default_for=("tagging",),
        summary="F-measure of spans where classes are tags of BIO or BIOES, accuracy, macro F.",
        paper="Tjong Kim Sang and De Meulder, CoNLL-2003, https://aclanthology.org/W03-0419",
    )
    yield MetricSpec(
        name="top-accuracy",
        target="mtlcore.standard.metrics_vectors:TopAccuracy",
        task_kinds=("classification",),
        summary="Whether the class is among the five that the network finds likeliest.",
    )
    yield MetricSpec(
        name="multilabel-f1",
        target="mtlcore.standard.metrics_vectors:MultiLabelF1",
        task_kinds=("multilabel",),
        summary="F-measures of decisions, over all labels and as a mean over labels.",
    )
    yield MetricSpec(
        name="multilabel",
        target="mtlcore.standard.metrics_vectors:MultiLabelMetric",
        task_kinds=("multilabel",),
        default_for=("multilabel",),
        summary="Areas under the curve, exact, and F-measure.",
    )
    yield MetricSpec(
        name="regression",
        target="mtlcore.standard.metrics_vectors:RegressionMetric",
        task_kinds=("regression",),
        default_for=("regression",),
        summary="Mean absolute error, root of the mean square, explained variance.",
    )


@hookimpl
def mtl_balancers() -> Iterator[BalancerSpec]:
    yield BalancerSpec(
        name="equal",
        target="mtlcore.standard.balancers:Equal",
        summary="The plain sum of the losses.",
    )
    yield BalancerSpec(
        name="fixed",
        target="mtlcore.standard.balancers:Fixed",
        summary="A weighted sum with constant weights.",
    )
    yield BalancerSpec(
        name="uncertainty",
        target="mtlcore.standard.balancers:Uncertainty",
        summary="Learnt homoscedastic uncertainty, in its published forms.",
        paper="Kendall et al., Multi-Task Learning Using Uncertainty, CVPR 2018",
    )
    yield BalancerSpec(
        name="dwa",
        target="mtlcore.standard.balancers:DWA",
        summary="Dynamic weight average: slow tasks weigh most.",
        paper="Liu et al., MTAN, CVPR 2019",
    )
    yield BalancerSpec(
        name="rlw",
        target="mtlcore.standard.balancers:RLW",
        summary="Random weights in every step.",
        paper="Lin et al., Reasonable Effectiveness of Random Weighting, TMLR 2022",
    )
    yield BalancerSpec(
        name="gls",
        target="mtlcore.standard.balancers:GLS",
        summary="The geometric mean of the losses.",
        paper="Chennupati et al., MultiNet++, CVPR Workshops 2019",
    )
    yield BalancerSpec(
        name="unit-norm",
        target="mtlcore.standard.gramian_balancers:UnitNorm",
        summary="The sum of the task gradients, each scaled to length 1.",
    )


@hookimpl
def mtl_episode_samplers() -> Iterator[EpisodeSamplerSpec]:
    yield EpisodeSamplerSpec(
        name="joint",
        target="mtlcore.standard.samplers:Joint",
        summary="All tasks from one batch per step.",
    )


@hookimpl
def mtl_optimizers() -> Iterator[OptimizerSpec]:
    yield OptimizerSpec(
        name="adam",
        target="mtlcore.standard.optimizers:adam",
        summary="Adam with a schedule.",
        paper="Kingma & Ba, Adam, ICLR 2015",
    )
    yield OptimizerSpec(
        name="adamw",
        target="mtlcore.standard.optimizers:adamw",
        summary="Adam with decoupled weight decay and a schedule.",
        paper="Loshchilov & Hutter, Decoupled Weight Decay Regularization, ICLR 2019",
    )
    yield OptimizerSpec(
        name="sgd",
        target="mtlcore.standard.optimizers:sgd",
        summary="Stochastic gradient descent with momentum and a schedule.",
    )


@hookimpl
def mtl_datasets() -> Iterator[DatasetSpec]:
    yield DatasetSpec(
        name="rooms",
        target="mtlcore.datasets.rooms:Rooms",
        summary="Rendered furnished rooms with exact labels; nothing on disk.",
    )
    yield DatasetSpec(
        name="folder",
        target="mtlcore.datasets.folder:Folder",
        summary="Your own photographs: a folder per label and a dataset.toml.",
    )
    yield DatasetSpec(
        name="nyuv2",
        target="mtlcore.datasets.nyuv2:NYUv2",
        summary="NYUv2 in MTAN's .npy layout: 13 classes, depth, normals.",
        paper="Silberman et al., ECCV 2012; Liu et al., MTAN, CVPR 2019",
    )
    yield DatasetSpec(
        name="nyuv2-mat",
        target="mtlcore.datasets.nyuv2_mat:NYUv2Mat",
        summary="NYUv2's published MATLAB file: 13, 40 or 894 classes, depth.",
        paper="Silberman et al., ECCV 2012",
    )
    yield DatasetSpec(
        name="nyud-mt",
        target="mtlcore.datasets.nyud_mt:NYUDMT",
        summary="NYUD_MT: 40 or 41 classes, depth, normals, edges.",
        paper="Silberman et al., ECCV 2012; Vandenhende et al., TPAMI 2021",
    )
    yield DatasetSpec(
        name="cityscapes",
        target="mtlcore.datasets.cityscapes:Cityscapes",
        summary="Cityscapes in MTAN's .npy layout: 2, 7 or 19 classes, inverse depth.",
        paper="Cordts et al., CVPR 2016; Liu et al., MTAN, CVPR 2019",
    )
    yield DatasetSpec(
        name="cityscapes-png",
        target="mtlcore.datasets.cityscapes_png:CityscapesPNG",
        summary="Cityscapes' published PNG files: 19 or 7 classes, disparity or depth.",
        paper="Cordts et al., CVPR 2016",
    )
    yield DatasetSpec(
        name="kitti-semantics",
        target="mtlcore.datasets.kitti_semantics:KITTISemantics",
        summary="KITTI's 200 labelled streets: 19 or 7 classes.",
        paper="Alhaija et al., IJCV 2018",
    )
    yield DatasetSpec(
        name="kitti-depth",
        target="mtlcore.datasets.kitti_depth:KITTIDepth",
        summary="KITTI's drives with sparse annotated depth.",
        paper="Geiger et al., IJRR 2013; Uhrig et al., 3DV 2017",
    )
    yield DatasetSpec(
        name="vkitti",
        target="mtlcore.datasets.vkitti:VirtualKITTI",
        summary="Virtual KITTI 2: rendered streets, 14 classes, inverse depth.",
        paper="Cabon, Murray and Humenberger, 2020, https://arxiv.org/abs/2001.10773",
    )
    yield DatasetSpec(
        name="taskonomy",
        target="mtlcore.datasets.taskonomy:Taskonomy",
        summary="Taskonomy's buildings: 17 classes, depth, normals, edges, and five further maps.",
        paper="Zamir et al., Taskonomy, CVPR 2018",
    )
    yield DatasetSpec(
        name="pascal-context",
        target="mtlcore.datasets.pascal_context:PascalContext",
        summary="PASCAL_MT: classes, human parts, edges, normals, saliency.",
        paper="Maninis et al., ASTMT, CVPR 2019; Vandenhende et al., TPAMI 2021",
    )
    yield DatasetSpec(
        name="ade20k",
        target="mtlcore.datasets.ade20k:ADE20K",
        summary="ADE20K's scene parsing challenge: 150 classes, or those of a list.",
        paper="Zhou et al., Scene Parsing through ADE20K Dataset, CVPR 2017",
    )
    yield DatasetSpec(
        name="celeba",
        target="mtlcore.datasets.celeba:CelebA",
        summary="CelebA's faces: a task for each of 40 attributes, or one for all.",
        paper="Liu et al., Deep Learning Face Attributes in the Wild, ICCV 2015",
    )
    yield DatasetSpec(
        name="coco",
        target="mtlcore.datasets.coco:Coco",
        summary="Instances in COCO's JSON form as a class per pixel.",
        paper="Lin et al., Microsoft COCO, ECCV 2014",
    )
    yield DatasetSpec(
        name="images-csv",
        target="mtlcore.datasets.image_table:ImageTable",
        summary="Photographs with attributes, classes and numbers in a CSV table.",
    )
    yield DatasetSpec(
        name="tabular",
        target="mtlcore.datasets.tabular:Tabular",
        summary="Rows of a CSV or Parquet table, several columns of which are predicted.",
    )
    yield DatasetSpec(
        name="multi-mnist",
        target="mtlcore.datasets.multi_mnist:MultiMNIST",
        summary="Two handwritten digits in one 36x36 picture, a task for each.",
        paper="Sabour et al., NIPS 2017; Sener & Koltun, NeurIPS 2018",
    )
    yield DatasetSpec(
        name="several",
        target="mtlcore.datasets.concat:Concat",
        summary="Several datasets at once, each labelled for its own tasks.",
    )
    yield DatasetSpec(
        name="pretext",
        target="mtlcore.datasets.pretext:Pretext",
        summary="Pretext tasks made of another dataset's images: turns, places, colours, holes.",
        paper="Gidaris et al., ICLR 2018; Doersch et al., ICCV 2015; Zhang et al., ECCV 2016; "
        "Xie et al. (SimMIM), CVPR 2022",
    )


@hookimpl
def mtl_augmentations() -> Iterator[AugmentationSpec]:
    yield AugmentationSpec(
        name="photometric",
        target="mtlcore.standard.augmentations:Photometric",
        summary="Brightness, contrast and saturation of an image.",
        paper="Liu et al., SSD: Single Shot MultiBox Detector, ECCV 2016",
    )
    yield AugmentationSpec(
        name="rotate",
        target="mtlcore.standard.augmentations:Rotate",
        summary="Turns a sample about its middle, and scales it; normals turn with it.",
        paper="Maninis et al., ASTMT, CVPR 2019",
    )
    yield AugmentationSpec(
        name="cutmix",
        target="mtlcore.standard.augmentations:CutMix",
        summary="Pastes a box of another image of the batch, labels included.",
        paper="Yun et al., CutMix, ICCV 2019",
    )


@hookimpl
def mtl_loggers() -> Iterator[LoggerSpec]:
    yield LoggerSpec(
        name="json-lines",
        target="mtlcore.standard.loggers:JsonLines",
        summary="Every line of metrics.jsonl, to a stream or a file.",
    )


@hookimpl
def mtl_launchers() -> Iterator[LauncherSpec]:
    yield LauncherSpec(
        name="local",
        target="mtlcore.standard.launchers:Local",
        summary="A process on this machine for each cell.",
    )


@hookimpl
def mtl_searchers() -> Iterator[SearcherSpec]:
    yield SearcherSpec(
        name="random",
        target="mtlcore.standard.searchers:Random",
        summary="Every setting drawn by itself.",
        paper=(
            "Bergstra and Bengio, Random Search for Hyper-Parameter Optimization, JMLR 2012, "
            "https://jmlr.org/papers/v13/bergstra12a.html"
        ),
    )


@hookimpl
def mtl_exporters() -> Iterator[ExporterSpec]:
    yield ExporterSpec(
        name="torch-export",
        target="mtlcore.standard.exporters:TorchExport",
        summary="A program of torch.export, which needs torch alone.",
    )
