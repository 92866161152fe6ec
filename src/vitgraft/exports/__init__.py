"""A run in the forms of others: ONNX, torch.export, timm, peft."""
