"""irnet: iterative visual reasoning over image regions. Importing it starts no CUDA context and imports no Triton."""

__version__ = "0.1.0"
