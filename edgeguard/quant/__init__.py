"""What quantization does to a guard's scores: variants of a model, their scores, a report, a page."""

# What a study makes of its reference where nothing else is asked for.
DEFAULT_VARIANTS = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl", "onnx-int8", "onnx-int4")
