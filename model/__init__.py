"""AlexNet on the kernels: the network, its weights, and the commands."""
