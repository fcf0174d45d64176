"""An ONNX Runtime session over weights that are always fresh. It needs no torch.

    pip install 'evergrad[onnx]'
    echo '[[1, 2, 3, 4]]' | LOG=file:updates MODEL=model.onnx python onnx_session.py

The model is exported once, `torch.onnx.export(model, x, "model.onnx", input_names=["x"], ...)`; only its graph counts,
for its weights are the replica's memory.
"""

import json
import os
import sys

import numpy as np

import evergrad
from evergrad.adapters.onnx import OnnxSession

replica = evergrad.Replica(os.environ["LOG"])
replica.sync()
session = OnnxSession(os.environ["MODEL"], replica.follow())

for line in sys.stdin:  # a batch of rows in, answers and the version that computed them out
    (y,), version = session.run({"x": np.array(json.loads(line), dtype=np.float32)})
    print(json.dumps({"y": y.tolist(), "version": version}), flush=True)

replica.close()
