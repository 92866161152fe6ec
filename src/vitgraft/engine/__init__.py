"""How a model is run: on which device, with activations that are kept, a training step, answers, and what they cost."""
