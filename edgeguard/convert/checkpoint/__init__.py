"""Hugging Face checkpoint → ONNX through optimum: its output layer at chosen places only, and checked against torch.

Inputs   input_ids, position_ids        int64 (batch, seq)
         attention_mask                 int64 (batch, past + seq): one for a token, zero for padding
         positions                      int64 (n): flat places b · seq + t
         past_key_values.{i}.key|value  (batch, n_head_kv, past, head)
Outputs  logits                         float32 (n, n_vocab)
         present.{i}.key|value          (batch, n_head_kv, past + seq, head)

Keys and values are float32, at "fp16" float16. No graph is handed out whose logits differ from the model's.

optimum, transformers and torch run in a process of their own: they talk on stdout, take gigabytes, and a
checkpoint is a stranger's file.
"""

from edgeguard.convert.checkpoint.checks import MODEL_TYPES, check_checkpoint
from edgeguard.convert.checkpoint.onnx_export import export

__all__ = ["MODEL_TYPES", "check_checkpoint", "export"]
