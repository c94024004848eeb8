"""Allowed operators of TensorFlow models: those that only compute.

Other models are refused before TensorFlow loads them. A later check would be too late: while importing a graph,
TensorFlow evaluates constant parts, including `ReadFile` of a fixed name.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from yolotrt_core.console.text import printable
from yolotrt_core.errors import UsageError

# Operators that tf2onnx 1.17 converts (its handlers in tf2onnx/onnx_opset) and TensorFlow 2.21's structure operators,
# without those on strings, tables, queues and input pipelines. Function names are not included: functions are called
# through `PartitionedCall` and similar operators, and each is checked itself.
_STRUCTURE = """
    Assert Case Const ControlTrigger Enter Exit Identity IdentityN If LoopCond Merge NextIteration NoOp PartitionedCall
    Placeholder PlaceholderV2 PlaceholderWithDefault PreventGradient StatefulPartitionedCall StatelessCase StatelessIf
    StatelessWhile StopGradient Switch While
"""
_VARIABLES = """
    Assign AssignAddVariableOp AssignSubVariableOp AssignVariableOp DisableCopyOnRead ReadVariableOp ResourceGather
    ResourceGatherNd VarHandleOp VarIsInitializedOp Variable VariableShape VariableV2
"""
_NETWORK = """
    AvgPool AvgPool3D AvgPoolGrad BatchNormWithGlobalNormalization BiasAdd BiasAddGrad BiasAddV1 Conv2D
    Conv2DBackpropFilter Conv2DBackpropInput Conv3D Conv3DBackpropInputV2 CropAndResize DepthwiseConv2dNative
    DepthwiseConv2dNativeBackpropFilter DepthwiseConv2dNativeBackpropInput Dilation2D Elu EluGrad
    FakeQuantWithMinMaxArgs FakeQuantWithMinMaxVars FakeQuantWithMinMaxVarsPerChannel FusedBatchNorm
    FusedBatchNormGradV3 FusedBatchNormV2 FusedBatchNormV3 L2Loss LRN LeakyRelu LeakyReluGrad LogSoftmax MaxPool
    MaxPool3D MaxPoolGrad MaxPoolV2 MaxPoolWithArgmax QuantizeAndDequantizeV2 QuantizeAndDequantizeV3
    QuantizeAndDequantizeV4 Relu Relu6 Relu6Grad ReluGrad ResizeArea ResizeBicubic ResizeBilinear ResizeBilinearGrad
    ResizeNearestNeighbor ResizeNearestNeighborGrad Selu Sigmoid SigmoidGrad Softmax Softplus SoftplusGrad Softsign Tanh
    TanhGrad
"""
_ARITHMETIC = """
    Abs Acos Acosh Add AddN AddV2 All Any ApproximateEqual ArgMax ArgMin Asin Asinh Atan Atan2 Atanh BatchMatMul
    BatchMatMulV2 BatchMatMulV3 Bincount BitwiseAnd BitwiseOr BitwiseXor Bucketize Cast Ceil CheckNumerics
    CheckNumericsV2 ClipByValue Cos Cosh Cross Cumprod Cumsum DenseBincount Div DivNoNan Einsum Equal Erf Erfc
    EuclideanNorm Exp Expm1 Floor FloorDiv FloorMod Greater GreaterEqual Inv Invert InvertPermutation IsFinite IsInf
    IsNan LeftShift Less LessEqual Log Log1p LogicalAnd LogicalNot LogicalOr MatMul Max Maximum Mean Min Minimum Mod Mul
    MulNoNan Neg NotEqual Pow Prod RealDiv Reciprocal RightShift Rint Round Rsqrt RsqrtGrad SegmentMax SegmentMean
    SegmentMin SegmentProd SegmentSum Sign Sin Sinh Sqrt SqrtGrad Square SquaredDifference Sub Sum Tan TruncateDiv
    TruncateMod UnsortedSegmentMax UnsortedSegmentMin UnsortedSegmentProd UnsortedSegmentSum Xdivy Xlogy
"""
_SHAPES = """
    BatchToSpace BatchToSpaceND Bitcast BroadcastArgs BroadcastGradientArgs BroadcastTo Concat ConcatOffset ConcatV2
    DepthToSpace Diag DiagPart DynamicPartition DynamicStitch EnsureShape ExpandDims ExtractImagePatches Fill Gather
    GatherNd GatherV2 LinSpace ListDiff MatrixBandPart MatrixDiag MatrixDiagPart MatrixDiagPartV2 MatrixDiagPartV3
    MatrixDiagV2 MatrixDiagV3 MatrixSetDiagV3 MirrorPad MirrorPadGrad OneHot OnesLike Pack Pad PadV2
    ParallelDynamicStitch Range Rank Reshape Reverse ReverseSequence ReverseV2 Roll ScatterNd Select SelectV2 Shape
    ShapeN Size Slice SpaceToBatch SpaceToBatchND SpaceToDepth SparseToDense Split SplitV Squeeze StridedSlice
    StridedSliceGrad TensorScatterAdd TensorScatterMax TensorScatterMin TensorScatterSub TensorScatterUpdate Tile TopK
    TopKV2 Transpose Unique UniqueV2 UniqueWithCounts Unpack UnravelIndex Where ZerosLike
"""
# Box selection, noise that only training adds, and lists of loops.
_OTHERS = """
    CombinedNonMaxSuppression EmptyTensorList Multinomial NonMaxSuppression NonMaxSuppressionV2 NonMaxSuppressionV3
    NonMaxSuppressionV4 NonMaxSuppressionV5 RandomShuffle RandomStandardNormal RandomUniform RandomUniformInt
    StatelessRandomGetKeyCounter StatelessRandomNormalV2 StatelessRandomUniformV2 TensorArrayGatherV3 TensorArrayReadV3
    TensorArrayScatterV3 TensorArraySizeV3 TensorArrayV3 TensorArrayWriteV3 TensorListConcatV2 TensorListElementShape
    TensorListFromTensor TensorListGather TensorListGetItem TensorListLength TensorListPopBack TensorListPushBack
    TensorListReserve TensorListResize TensorListScatterV2 TensorListSetItem TensorListSplit TensorListStack
"""
ALLOWED = frozenset(" ".join((_STRUCTURE, _VARIABLES, _NETWORK, _ARITHMETIC, _SHAPES, _OTHERS)).split())


def refuse_operators(graph: Any) -> None:
    """Refuse a GraphDef with an operator that is not in `ALLOWED`, in the graph or a function of its library.

    Includes functions that are not called: TensorFlow finds some by an attribute.

    Raises:
        UsageError: names the operator and its node.
    """
    _refuse(graph.node, "the graph")
    for function in graph.library.function:
        _refuse(function.node_def, f"its function `{_short(function.signature.name)}`")


def _refuse(nodes: Iterable[Any], where: str) -> None:
    for node in nodes:
        if node.op not in ALLOWED:
            raise UsageError(
                f"the model contains an operator that is not allowed: expected only network operators, found "
                f"`{_short(node.op)}` (node `{_short(node.name)}` of {where}); nothing was run",
                hint="save the network alone: no files, tables, strings, printing, input pipelines or Python functions",
            )


def drop_saver(meta: Any) -> None:
    """Remove the functions that save and restore variables from a MetaGraphDef of TensorFlow 2, in place.

    They write and read files. Python does not need them: TensorFlow's loader reads `variables/` itself. If the model
    calls one, loading fails.
    """
    saver = {meta.saver_def.save_tensor_name.partition(":")[0], meta.saver_def.restore_op_name}
    calls = [node for node in meta.graph_def.node if node.name in saver]
    called = {node.attr["f"].func.name for node in calls}
    for node in calls:
        meta.graph_def.node.remove(node)
    library = meta.graph_def.library
    kept = [function for function in library.function if function.signature.name not in called]
    del library.function[:]
    library.function.extend(kept)


def _short(name: str) -> str:
    return printable(name[:80])
