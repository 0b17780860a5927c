"""`python -m irnet` is `irnet`, which `torchrun -m irnet` needs."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
