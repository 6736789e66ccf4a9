"""Trained models as files that other runtimes read: ONNX and StableHLO."""

import os

# From 1.29 on ONNX Runtime sends facts about models and sessions to Microsoft when it is imported,
# unless this is set (its Privacy.md): not from a hospital.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
