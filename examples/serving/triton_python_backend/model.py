"""A model of Triton's Python backend that is always fresh. Each batch is computed by one version, and says which.

    models/fresh/config.pbtxt       beside this file; its parameter `log` is the address of the update log
    models/fresh/1/model.py         this file

It needs evergrad[torch] in the Python that the backend runs, and a Triton that knows parameters of responses. It was
checked against a stand-in of Triton's interface, and has not run in Triton itself.
"""

import json

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

import evergrad


class TritonPythonModel:
    def initialize(self, args: dict) -> None:
        log = json.loads(args["model_config"])["parameters"]["log"]["string_value"]
        layers = torch.nn.Linear(4, 64), torch.nn.Tanh(), torch.nn.Linear(64, 3)
        self.model = torch.nn.Sequential(*layers).eval()  # your own
        self.attached = evergrad.attach(self.model, log)  # Triton tells the model is ready once this has a version

    def execute(self, requests: list) -> list:
        inputs = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        with self.attached.pin() as version, torch.inference_mode():
            y = self.model(torch.from_numpy(np.concatenate(inputs))).numpy()
        outputs = np.split(y, np.cumsum([len(x) for x in inputs])[:-1])
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("y", output)], parameters={"evergrad_version": version})
            for output in outputs
        ]

    def finalize(self) -> None:
        self.attached.close()
