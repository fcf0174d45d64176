"""A module that is compiled once and always fresh: updates change its memory, and nothing is compiled anew.

pip install 'evergrad[torch]'
echo '[[1, 2, 3, 4]]' | LOG=file:updates python compiled_module.py
"""

import json
import os
import sys

import torch

import evergrad

model = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.Tanh(), torch.nn.Linear(64, 3)).eval()  # your own
compiled = torch.compile(model, dynamic=True, backend=os.environ.get("BACKEND", "inductor"))

with evergrad.attach(model, os.environ["LOG"]) as attached, torch.inference_mode():
    compiled(torch.zeros(2, 4))  # compiled before the first request
    for line in sys.stdin:  # a batch of rows in, answers and the version that computed them out
        x = torch.tensor(json.loads(line), dtype=torch.float32)
        with attached.pin() as version:
            y = compiled(x)
        print(json.dumps({"y": y.tolist(), "version": version}), flush=True)
