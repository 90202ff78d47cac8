"""Losses straight from the logits: value and gradient in one go.

Every loss is a function of margins, so its gradient is a reweighted softmax. It is made in the
forward pass, in the buffer that backward hands over: nothing else has the size of the logits. The
numbers are those of the plain path.

- `function`: the autograd function.
- `chunk`, `torch_kernels`: some rows at a time, by PyTorch's operations.
- `triton_launch`, `triton_kernels`, `triton_source`: all rows at once, on a GPU.
"""
