"""Ground floor: what the gradients are, as tensors on the device and as plain numbers on the host."""
