"""Reading the build log, in the forms of TensorRT-RTX (real builds: test_builder.py) and of `tensorrt`."""

from __future__ import annotations

from yolotrt_tensorrt.build import build_log

# In the form that TensorRT 10 prints, after github NVIDIA/TensorRT issues 3737 and 4020; names are ours.
PLAIN = """Layers:
Name: Reformatting CopyNode for Input Tensor 0 to stem, LayerType: Reformat, Inputs: [ { Name: images, \
Location: Device, Dimensions: [1,3,64,64], Format/Datatype: Row major linear FP32 }], Outputs: [ { Name: r, \
Location: Device, Dimensions: [1,3,64,64], Format/Datatype: Half }], ParameterType: Reformat, Metadata:
Name: stem + act, LayerType: CaskConvolution, Inputs: [ { Name: r, Location: Device, Dimensions: [1,3,64,64], \
Format/Datatype: Half }], Outputs: [ { Name: s, Location: Device, Dimensions: [1,8,32,32], Format/Datatype: \
Thirty-two wide channel vectorized row major Int8 format }], ParameterType: Convolution, Kernel: [3,3], \
Weights: {"Type": "Half", "Count": 216}, Bias: {"Type": "Half", "Count": 8}, TacticName: t, StreamId: 0, Metadata:
Name: one + act1 || two + act2, LayerType: CaskConvolution, Inputs: [ { Name: s, Location: Device, Dimensions: \
[1,8,32,32], Format/Datatype: Thirty-two wide channel vectorized row major Int8 format }], Outputs: [ { Name: o, \
Location: Device, Dimensions: [1,16,32,32], Format/Datatype: Half }], ParameterType: Convolution, \
Weights: {"Type": "Int8", "Count": 1152}, Bias: {"Type": "Float", "Count": 16}, StreamId: 0, Metadata:
Name: head, LayerType: CaskGemmConvolution, Inputs: [ { Name: o, Location: Device, Dimensions: [1,16,32,32], \
Format/Datatype: Channel major FP16 format where channel % 8 == 0 }], Outputs: [ { Name: h, Location: Device, \
Dimensions: [1,16,32,32], Format/Datatype: Half }], Weights: {"Type": "Half", "Count": 256}, \
Metadata: [ONNX Layer: head]\x1e[ONNX Layer: head_bias]
"""

RTX = """Layers:
Name: a_myl0_1, LayerType: correlation, Inputs: [ { Name: i, Dimensions: [1,16,8,8], Datatype: Int8, Format: (NHWC) }, \
{ Name: shortcut, Dimensions: [1,16,8,8], Datatype: Float, Format: (NHWC) }], Constants: [ { Name: w, Dimensions: \
[16,16,3,3], Datatype: Int8, Format: (NHWC) }, { Name: b, Dimensions: [1,16,1,1], Datatype: Float, Format: x }], \
Outputs: [ { Name: o, Dimensions: [1,16,8,8], Datatype: Float, Format: (NHWC) }], Metadata: [ONNX Layer: a]\x1e\
[ONNX Layer: a_add]
Name: b_myl0_2, LayerType: correlation, Inputs: [ { Name: i, Dimensions: [1,16,8,8], Datatype: Half, Format: x }], \
Constants: [ { Name: w, Dimensions: [16,16,3,3], Datatype: Int8, Format: x }], Outputs: [ { Name: o, Dimensions: \
[1,16,8,8], Datatype: Half, Format: x }], Metadata: [ONNX Layer: b]
Name: cast, LayerType: kgen, Inputs: [ { Name: i, Dimensions: [1,16,8,8], Datatype: FP8, Format: x }], Constants: [], \
Outputs: [ { Name: o, Dimensions: [1,16,8,8], Datatype: Half, Format: x }], Metadata: [ONNX Layer: a][ONNX Layer: c]
Name: fc, LayerType: runtime_fusion, Inputs: [ { Name: i, Dimensions: [1,256,400], Datatype: BFloat16, Format: x }], \
Constants: [ { Name: b, Dimensions: [1,256,1], Datatype: Float, Format: x }, { Name: w, Dimensions: [1,256,256], \
Datatype: BFloat16, Format: x }], Outputs: [ { Name: o, Dimensions: [1,256,400], Datatype: BFloat16, Format: x }], \
Metadata: [ONNX Layer: d]__gemm_from_conv1x1
"""


def test_tensorrts_form() -> None:
    found = build_log.parse(["nothing", PLAIN])
    assert [layer.kind for layer in found] == ["Reformat", "CaskConvolution", "CaskConvolution", "CaskGemmConvolution"]
    counts = build_log.convolutions_by_precision(found, ["stem", "one", "two", "head"])
    assert counts == {"int8": 2, "fp16": 2}


def test_rtx_form_the_widest_factor_decides_and_a_shortcut_does_not() -> None:
    found = build_log.parse([RTX])
    assert found[0].operands == ("int8", "int8")
    assert found[0].nodes == ("a", "a_add")
    counts = build_log.convolutions_by_precision(found, ["a", "b", "c", "d"])
    # `b` keeps int8 weights and multiplies in half; `c` is named only by a cast.
    assert counts == {"int8": 1, "bf16": 1, "fp16": 1, "other": 1}


def test_a_log_without_layers_has_none() -> None:
    assert build_log.parse(["LayerType: is a word", ""]) == []
