"""A replica's weights in other runtimes than PyTorch. Each module needs its own optional package, and no other.

safetensors    SafetensorsFile: one file that always holds the newest version
onnx           OnnxSession: an ONNX Runtime session over the replica's own memory (extra `onnx`)
onnx_graph     what an ONNX file says about its weights, by the wire format
"""
