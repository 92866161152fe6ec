"""Why a step is cheap: products, attention and activations that keep and compute less. No file here knows a method."""
